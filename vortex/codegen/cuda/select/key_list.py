"""Keys of pages that were listed in shared memory, in any order."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.cuda.storage import Arena
from vortex.codegen.cuda.warp import fetch_add
from vortex.codegen.tir import Expr, T, equal, i32, let, put, when


@dataclass(frozen=True)
class KeyList:
    """Entry ``i`` is a key at word ``stride * i + keys_at`` and its page at word ``stride * i + pages_at``."""

    arena: Arena
    keys_at: int
    pages_at: int
    stride: int
    count_at: int
    """The word that counts the entries; it must be 0 before the first one."""
    room: int | None = None
    """Entries there is room for, where there may be more: those are counted, but not kept."""

    def append(self, key: Expr, page: Expr) -> None:
        """Add an entry; any threads may do so at the same time, and a barrier must follow."""
        at = let("listed", fetch_add(self.arena.i32.ptr_to([self.count_at]), i32(1)))
        if self.room is None:
            self._put(at, key, page)
        else:
            with when(at < self.room):
                self._put(at, key, page)

    def _put(self, at: Expr, key: Expr, page: Expr) -> None:
        put(self.arena.u32, key, self.word(at))
        put(self.arena.i32, page, self.stride * at + self.pages_at)

    def word(self, at: Expr) -> Expr:
        """The word that holds the key of an entry."""
        return self.stride * at + self.keys_at

    def key(self, at: Expr) -> Expr:
        """The key of an entry."""
        return self.arena.u32[self.word(at)]

    def page(self, at: Expr) -> Expr:
        """The page of an entry."""
        return self.arena.i32[self.stride * at + self.pages_at]


def is_better(key: Expr, page: Expr, than: Expr, than_page: Expr) -> Expr:
    """Whether a page is selected before another one: by the larger key, of equal keys by the lower page."""
    return T.Or(key > than, T.And(equal(key, than), page < than_page))
