"""What ``debug=True`` looks at: the contents of the integer tensors of a step, which costs a host sync."""

from __future__ import annotations

from itertools import pairwise

import torch

from vortex.errors import PAGE_OUT_OF_RANGE
from vortex.runtime.tensors import wrong


def check_tables(lengths: torch.Tensor, page_table: torch.Tensor, page_size: int, pool: int) -> None:
    """Lengths fit the table, and the entries in use name pages of the pool.

    Raises:
        VortexError: VX6004 for a page that the pool lacks, VX6002 for a length.
    """
    width = page_table.shape[1]
    for row, length in enumerate(lengths.tolist()):
        if not 0 <= length <= width * page_size:
            raise wrong(
                f"lengths[{row}]", f"is {length}; the page table holds 0 to {width * page_size} tokens of a request"
            )
    columns = torch.arange(width, device=lengths.device)
    used = columns[None] * page_size < lengths[:, None]
    bad = (used & ((page_table < 0) | (page_table >= pool))).nonzero()
    if len(bad):
        row, col = bad[0].tolist()
        raise PAGE_OUT_OF_RANGE.at(row=row, col=col, page=int(page_table[row, col]), last=pool - 1)


def check_tokens(
    loc: torch.Tensor | None,
    row_offsets: torch.Tensor,
    lengths: torch.Tensor,
    page_table: torch.Tensor,
    page_size: int,
) -> None:
    """Each request's new tokens are its last ones, stored where its page table says or (a negative slot) nowhere.

    Raises:
        VortexError: VX6002 naming the first entry that is not so.
    """
    offsets, ends, table = row_offsets.tolist(), lengths.tolist(), page_table.tolist()
    slots = None if loc is None else loc.tolist()
    if offsets[0] != 0 or (slots is not None and offsets[-1] != len(slots)):
        tokens = "0 to T" if slots is None else f"0 to {len(slots)}"
        raise wrong("row_offsets", f"goes from {offsets[0]} to {offsets[-1]}; {tokens} is needed")
    for row, (first, last) in enumerate(pairwise(offsets)):
        if not 0 <= last - first <= ends[row]:
            why = f"{first} to {last} are {last - first} new tokens of the {ends[row]} that request {row} has"
            raise wrong(f"row_offsets[{row}:{row + 2}]", why)
        for i in range(first, last) if slots is not None else ():
            at = ends[row] - last + i
            want = table[row][at // page_size] * page_size + at % page_size
            if slots is not None and slots[i] >= 0 and slots[i] != want:
                raise wrong(f"loc[{i}]", f"is {slots[i]}; token {at} of request {row} is at {want} by the page table")


def check_selection(pages: torch.Tensor, counts: torch.Tensor, lengths: torch.Tensor, page_size: int) -> None:
    """Each row lists pages that its request has, ascending.

    Raises:
        VortexError: VX6002 naming the first row that does not.
    """
    capacity = pages.shape[2]
    n = (lengths + page_size - 1) // page_size
    for row, heads in enumerate(counts.tolist()):
        for head, count in enumerate(heads):
            if not 0 <= count <= capacity:
                raise wrong(f"counts[{row}, {head}]", f"is {count}; 0 to {capacity} is needed")
            listed = pages[row, head, :count].tolist()
            ascending = all(a < b for a, b in pairwise(listed))
            if not ascending or (listed and not 0 <= listed[0] <= listed[-1] < int(n[row])):
                why = f"is {listed}; ascending pages of 0 to {int(n[row]) - 1} are needed"
                raise wrong(f"pages[{row}, {head}]", why)
