"""The inputs of a row that go through shared memory in ``select``: asked for first, put there behind other loads."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.ptx import cta_sync, flat_view, wide
from vortex.codegen.cuda.storage import Arena
from vortex.codegen.cuda.warp import Cta
from vortex.codegen.sweep import Row
from vortex.codegen.tir import U32, Buffer, Expr, T, i32, let, local, put, when


@dataclass(frozen=True)
class Asked:
    """One word of the row's inputs on its way into a register."""

    place: Expr
    """Where it goes in shared memory."""
    word: Buffer
    inside: Expr
    """Whether this thread has such a word."""
    whole: bool
    """Whether all threads have one."""


@dataclass(frozen=True)
class RowInputs:
    """Brings the inputs of a row into shared memory."""

    args: Arguments
    places: dict[str, int]
    """Where each input begins in shared memory, by buffer."""
    arena: Arena
    cta: Cta
    row: Row

    def ask(self) -> list[Asked]:
        """Start loading the row's inputs into registers."""
        asked = []
        for name, at in self.places.items():
            words = self.args.type_of(name).numel // 2
            source = flat_view(self.args.buffers[name], U32, 4)
            for turn in range(-(-words // self.cta.threads)):
                place = let("input_word", self.cta.thread + turn * self.cta.threads)
                mine = local(f"{name}_word", 2, U32)
                put(mine, source[wide(self.row.index) * words + wide(T.min(place, i32(words - 1)))], 0)
                whole = (turn + 1) * self.cta.threads <= words
                asked.append(Asked(place + at, mine, place < words, whole))
        return asked

    def put(self, asked: list[Asked]) -> None:
        """Put the inputs that were asked for where they are read, behind a barrier."""
        for a in asked:
            if a.whole:
                put(self.arena.u32, a.word[0], a.place)
            else:
                with when(a.inside):
                    put(self.arena.u32, a.word[0], a.place)
        if asked:
            cta_sync()
