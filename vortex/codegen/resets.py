"""Where ``append`` writes ``init`` to state, on every target."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.arguments import Arguments
from vortex.codegen.narrow import stored_constant
from vortex.codegen.tir import Buffer, Expr, T, differ, let
from vortex.ir.dialects import page
from vortex.ir.types import TensorType


@dataclass(frozen=True)
class ResetTo:
    """One state buffer and what it begins with."""

    buffer: Buffer
    tile: tuple[int, ...]
    value: Expr
    of_pages: bool
    """Whether it has a tile for each page, rather than one for the slot."""


@dataclass(frozen=True)
class Begun:
    """How much of a request its slot knows before a step: nothing at its first append, which the request's own tokens
    tell unless others have filled its first pages (``fresh``).
    """

    args: Arguments
    slot: Expr
    now: Expr
    """The request's tokens, those of the step included; 0 in a padded row."""
    known: Expr
    """Those that the slot knows: state of pages that these fill stays, and state of the request if there are any."""

    @classmethod
    def of(cls, args: Arguments, r: Expr) -> Begun:
        """Of request ``r``."""
        offsets = args.buffers["row_offsets"]
        now = let("tokens_now", args.buffers["lengths"][r])
        before = T.max(T.int32(0), now - (offsets[r + 1] - offsets[r]))
        fresh = args.buffers["fresh"][r]
        known = let("known", T.Select(differ(fresh, T.int32(0)), T.int32(0), before))
        return cls(args, let("slot_of_row", args.buffers["slots"][r]), now, known)

    def reset(self, o: page.Reset) -> ResetTo:
        """What one op resets."""
        d = self.args.program.decls[o.buffer]
        assert isinstance(d.type, TensorType)
        value = stored_constant(d.attrs["init"], d.type.dtype)
        return ResetTo(self.args.buffers[f"state.{d.name}"], d.type.tile, value, d.attrs["layout"] == "entry")
