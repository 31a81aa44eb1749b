"""Which pages a CTA of ``attend`` reads: its item of the work list, and where the pages and their tiles lie."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.ptx import WARP, ceil_quotient, overlap_wait, quotient, remainder, wide
from vortex.codegen.cuda.work_list import ATTEND, Entry, unpack_item
from vortex.codegen.tir import Buffer, Expr, T, i32, let, put


@dataclass(frozen=True)
class WorkItem:
    """Entries ``[begin, end)`` of one request's list of selected pages, for one KV head."""

    index: Expr
    """Of the item in the work list."""
    there: Expr
    """Whether the list has such an item; without one the other fields describe some request, and are not used."""
    request: Expr
    split: Expr
    """Which of the request's items this one is."""
    each: Expr
    """Pages of every item of the step, at least 1."""
    count: Expr
    """Pages selected for the request and head."""
    length: Expr
    """Tokens of the request."""
    begin: Expr
    end: Expr

    @classmethod
    def read(cls, args: Arguments, index: Expr, head: Expr, overlap: int) -> WorkItem:
        """Item ``index`` of the list of ``attend``, read before and after the wait for the previous kernel."""
        entry = Entry.read(args.buffers["work"], ATTEND, index)
        overlap_wait(overlap)
        there = let("there", index < entry.items)
        item = let("item", T.Select(there, entry.item, i32(0)))
        each = let("each", T.max(i32(1), entry.pages))
        request, split = unpack_item(item, "request", "split")
        count = let("count", args.buffers["counts"][request, head])
        length = let("length", args.buffers["lengths"][request])
        begin = let("begin", split * each)
        return cls(index, there, request, split, each, count, length, begin, let("end", T.min(begin + each, count)))

    def splits(self) -> Expr:
        """How many items have pages of this request and head; a request without any still writes its output."""
        return let("splits", T.max(i32(1), ceil_quotient(self.count, self.each)))

    def other(self, split: Expr) -> Expr:
        """The index of another item of the same request: they stand next to each other."""
        return self.index - self.split + split


@dataclass(frozen=True)
class Tiling:
    """How tiles of ``tile`` tokens lie in pages of ``page`` tokens; one of the two sizes divides the other.

        page 8, tile 16, parts = 2                     page 64, tile 16, of_page = 4
        entries of the list:  |p0|p1|p2|p3|            entries of the list:  |    p0     |    p1     |
        tiles:                |  0  |  1  |            tiles:                |0 |1 |2 |3 |4 |5 |6 |7 |

    Each lane of a warp holds one part of one of the next ``batch`` tiles: lane ``parts * i + p`` has part ``p`` of
    the i-th of them.
    """

    page: int
    tile: int

    @property
    def parts(self) -> int:
        """Pages in a tile."""
        return max(1, self.tile // self.page)

    @property
    def of_page(self) -> int:
        """Tiles in a page."""
        return max(1, self.page // self.tile)

    @property
    def batch(self) -> int:
        """Tiles whose page ids the lanes of a warp hold at once."""
        return WARP // self.parts

    @property
    def most(self) -> int:
        """The most tokens that one part of a tile has."""
        return min(self.page, self.tile)

    def tiles(self, pages: Expr) -> Expr:
        """How many tiles ``pages`` pages take."""
        return pages * self.of_page if self.parts == 1 else ceil_quotient(pages, self.parts)

    def entry(self, begin: Expr, tile: Expr, lane: Expr) -> Expr:
        """The entry of the list whose page this lane holds, where ``tile`` is the tile that the lane is about."""
        if self.parts == 1:
            return begin + quotient(tile, self.of_page)
        return begin + tile * self.parts + remainder(lane, self.parts)

    def first_token(self, tile: Expr) -> Expr:
        """Where a tile that is a part of its page begins in it, in tokens."""
        return remainder(tile, self.of_page) * self.tile

    def split_token(self, token: Expr) -> tuple[Expr, Expr]:
        """The part of its tile that a token is in, and its place in that part."""
        if self.parts == 1:
            return 0, token
        return quotient(token, self.page), remainder(token, self.page)


@dataclass(frozen=True)
class HeldPages:
    """In each lane's registers, the pages of the tiles that a warp copies next."""

    args: Arguments
    item: WorkItem
    tiling: Tiling
    ids: Buffer
    """Physical pages (physical blocks, where pages have several), by batch."""
    room: Buffer
    """How many tokens of the lane's part of a tile are the request's, by batch."""

    def clear(self, slot: int) -> None:
        """Hold nothing in ``slot``: no token of page 0."""
        put(self.ids, i32(0), slot)
        put(self.room, i32(0), slot)

    def hold(self, logical: Expr, tile: Expr, slot: int) -> None:
        """Look logical page ``logical`` up for ``tile`` and keep it in ``slot``."""
        table, request, each = self.args.buffers["page_table"], wide(self.item.request), self.args.page_blocks
        if each == 1:
            put(self.ids, table[request, logical], slot)
        else:
            put(self.ids, table[request, quotient(logical, each)] * each + remainder(logical, each), slot)
        begin = logical * self.tiling.page
        if self.tiling.of_page > 1:
            begin = begin + self.tiling.first_token(tile)
        put(self.room, T.max(i32(0), T.min(i32(self.tiling.most), self.item.length - begin)), slot)
