"""What ``debug=True`` looks at: the contents of the integer tensors of a step.

The tensors are looked at where they are; the one wait for the device is for the places of the first bad entries.
"""

from __future__ import annotations

import torch

from vortex.errors import CAPACITY, PAGE_OUT_OF_RANGE
from vortex.runtime.tensors import wrong

Tensor = torch.Tensor


def check_tables(lengths: Tensor, page_table: Tensor, page_size: int, pool: int) -> None:
    """Lengths fit the table, and the entries in use name pages of the pool.

    Raises:
        VortexError: VX6004 for a page that the pool lacks, VX6002 for a length.
    """
    most = page_table.shape[1] * page_size
    columns = torch.arange(page_table.shape[1], device=lengths.device)
    used = columns[None] * page_size < lengths[:, None]
    lost = used & ((page_table < 0) | (page_table >= pool))
    row, entry = _first((lengths < 0) | (lengths > most), lost)
    if row is not None:
        raise wrong(f"lengths[{row}]", f"is {int(lengths[row])}; the page table holds 0 to {most} tokens of a request")
    if entry is not None:
        row, col = divmod(entry, page_table.shape[1])
        raise PAGE_OUT_OF_RANGE.at(row=row, col=col, page=int(page_table[row, col]), last=pool - 1)


def check_budgets(budgets: Tensor, plan: Tensor, capacity: int) -> None:
    """Budgets of requests' own are budgets, and what ``plan`` [4, B] makes of them fits a selection.

    Raises:
        VortexError: VX6002 for numbers that no budget has, VX6006 for more pages than the selection holds.
    """
    own = budgets[:, 0] >= 0
    bad = own & ((budgets[:, 1] < 0) | (budgets[:, 2] < 1) | (budgets[:, 3] < 0) | (budgets[:, 4] < 1))
    kept = plan[:2].amin(0)
    odd, large = _first(bad, own & (kept > capacity))
    if odd is not None:
        raise wrong(f"budgets[{odd}]", f"is {budgets[odd].tolist()}; Budget(...).numbers() are needed, or a first -1")
    if large is not None:
        raise CAPACITY.at(need=int(kept[large]), capacity=capacity)


def check_slots(slots: Tensor, lengths: Tensor, room: int) -> None:
    """Each request has a slot of its own; a negative one is none.

    Raises:
        VortexError: VX6002 for a slot that there is no room for, or that two requests have.
    """
    real = (lengths > 0) & (slots >= 0)
    beyond = real & (slots >= room)
    same = (slots[:, None] == slots[None]) & real[:, None] & real[None]
    lost, twice = _first(beyond, same.sum(1) > 1)
    if lost is not None:
        raise wrong(f"slots[{lost}]", f"is {int(slots[lost])}; the state that was bound has slots 0 to {room - 1}")
    if twice is not None:
        raise wrong(f"slots[{twice}]", f"is {int(slots[twice])}, and another request's; each needs one of its own")


def check_one_each(row_offsets: Tensor) -> None:
    """No request has more than one new token.

    Raises:
        VortexError: VX6002 naming the first that has.
    """
    counts = row_offsets.long().diff()
    (request,) = _first(counts > 1)
    if request is not None:
        why = f"are {int(counts[request])} new tokens of request {request}; decode(new=...) takes in at most one"
        raise wrong(f"row_offsets[{request}:{request + 2}]", f"{why}, and append as many as there are")


def check_tokens(loc: Tensor | None, row_offsets: Tensor, lengths: Tensor, page_table: Tensor, page_size: int) -> None:
    """Each request's new tokens are its last ones, stored where its page table says or (a negative slot) nowhere.
    A request of length 0 is padding, whatever tokens are counted as its own.

    Raises:
        VortexError: VX6002 naming the first entry that is not so.
    """
    offsets = row_offsets.long()
    counts = offsets.diff()
    real = lengths > 0
    tokens = int(loc.shape[0]) if loc is not None else 0
    ends = (offsets[:1] != 0) if loc is None else torch.stack([offsets[0] != 0, offsets[-1] != tokens])
    token = torch.arange(tokens, device=lengths.device)
    # the request of each token; nonsense where the offsets are, but no index out of range
    row = torch.searchsorted(offsets[1:].contiguous(), token, right=True).clamp_(max=len(lengths) - 1)
    at = lengths[row] - offsets[row + 1] + token
    column = (at // page_size).clamp(0, page_table.shape[1] - 1)
    want = page_table[row, column].long() * page_size + at % page_size
    astray = torch.zeros(0, dtype=torch.bool, device=lengths.device)
    if loc is not None:
        astray = real[row] & (loc >= 0) & (loc != want)
    end, request, i = _first(ends, (counts < 0) | (real & (counts > lengths)), astray)
    if end is not None:
        needed = "0 to T" if loc is None else f"0 to {tokens}"
        raise wrong("row_offsets", f"goes from {int(offsets[0])} to {int(offsets[-1])}; {needed} is needed")
    if request is not None:
        first, last = offsets[request : request + 2].tolist()
        have = int(lengths[request])
        why = f"{first} to {last} are {last - first} new tokens of the {have} that request {request} has"
        raise wrong(f"row_offsets[{request}:{request + 2}]", why)
    if i is not None:
        assert loc is not None
        why = f"is {int(loc[i])}; token {int(at[i])} of request {int(row[i])} is at {int(want[i])} by the page table"
        raise wrong(f"loc[{i}]", why)


def check_selection(pages: Tensor, counts: Tensor, plan: Tensor) -> None:
    """Each row lists pages that its request has, ascending, and no more than the plan keeps: work is shared out by it.

    Raises:
        VortexError: VX6002 naming the first row that does not.
    """
    heads, capacity = pages.shape[1:]
    n, kept = plan[0, :, None, None], plan[1, :, None]
    listed = torch.arange(capacity, device=pages.device) < counts[..., None]
    astray = listed & ((pages < 0) | (pages >= n))
    falling = listed[..., 1:] & (pages[..., 1:] <= pages[..., :-1])
    many, odd = _first((counts < 0) | (counts > kept.clamp(max=capacity)), astray.any(-1) | falling.any(-1))
    if many is not None:
        row, head = divmod(many, heads)
        most = min(capacity, int(kept[row]))
        raise wrong(f"counts[{row}, {head}]", f"is {int(counts[row, head])}; 0 to {most} is needed")
    if odd is not None:
        row, head = divmod(odd, heads)
        have = pages[row, head, : int(counts[row, head])].tolist()
        raise wrong(f"pages[{row}, {head}]", f"is {have}; ascending pages of 0 to {int(n[row]) - 1} are needed")


def _first(*masks: Tensor) -> tuple[int | None, ...]:
    """Where each mask is first set, counted in row order; None where nowhere. Waits for the device once."""
    places = []
    for mask in masks:
        flat = mask.flatten()
        beyond = flat.new_full((1,), flat.numel(), dtype=torch.long)
        here = torch.arange(flat.numel(), device=flat.device)
        places.append(torch.cat([torch.where(flat, here, flat.numel()), beyond]).amin())
    found = torch.stack(places).tolist()
    return tuple(at if at < mask.numel() else None for at, mask in zip(found, masks, strict=True))
