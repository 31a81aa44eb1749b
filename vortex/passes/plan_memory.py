"""Where every value lives: recomputed in place, in a tile on chip, or in the row's scratch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from vortex.ir.core import Function, Module, Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.rewrite import set_operands
from vortex.ir.staging import Staging, origin_of, over_pages, stage, updated
from vortex.ir.types import KEY_PADDING, MOST_CODE, TensorType, f32
from vortex.kinds.kind import KINDS
from vortex.passes.manager import Pass, PassContext, register

HEAVY = 64
"""Size of an expression, in ops and loads, beyond which its value is computed once into a tile."""


LARGE = 256
"""Numbers of a page from which on an elementwise result is computed anew at each use: a GPU keeps a tile for 32 pages a
warp.
"""


@register("plan-memory", stage="page", tag="exact", version=1, needed=True)
@dataclass(frozen=True, slots=True)
class PlanMemory(Pass):
    """Give each value a home and lay out the workspace, ``page_words * Pmax + row_words`` numbers a row.

    A note ``in`` on each op says where its result is: ``inline`` (recomputed where it is used), ``tile``
    (on chip, for the current page or row), or ``scratch`` at word ``slot`` of each page (kept from one
    pass over the pages to a later one; slots are reused when their passes do not meet). ``pass`` is the
    page pass the op runs in. Workspace buffers between kernels get an ``offset``; a selecting kernel
    gets a word per page for the sorted keys of each part of its selection, from ``keys`` on. A shortlist is a ``list``
    on chip, chosen by keys at ``slot``.

        %d = flow.dot(%q, %c) {spec = "gd,sd->sg"} : f32[S, 4]
          ->
        %d = flow.dot(%q, %c) {spec = "gd,sd->sg"} <pass = 0, in = "scratch", slot = 0> : f32[S, 4]
    """

    def run(self, module: Module, ctx: PassContext) -> Module:
        # keys are padded beyond the pages' words, while a later kernel still wants the row's
        ranks = any(isinstance(o, flow.Ranking) for f in module.functions.values() for o in f.ops)
        ragged, batched = 0, KEY_PADDING if ranks else 0
        for d in module.declared("buffer"):
            if d.attrs["role"] != "workspace" or not isinstance(d.type, TensorType):
                continue
            if d.attrs["layout"] == "ragged":
                d.attrs["offset"], ragged = ragged, ragged + d.type.numel
            else:
                d.attrs["offset"], batched = batched, batched + d.type.numel
        for f in module.functions.values():
            _copy_before_writing(f)
            _plan_kernel(f, ragged, batched)
        # one layout for all: what one kernel leaves behind the pages' words another must find there
        scorers = [f.attrs for f in module.functions.values() if KINDS[str(f.attrs["kind"])].workspace]
        for words in ("page_words", "row_words"):
            most = max((a[words] for a in scorers), default=0)
            for a in scorers:
                a[words] = most
        return module


def _copy_before_writing(f: Function) -> None:
    """Give what a kernel that changes state writes, where it is only read or seen in another shape, an op whose result
    can be kept: no element of state is written while another one may still be read.
    """
    writes = _writes_beside_state(f)
    if not writes:
        return
    behind = max(i for i, o in enumerate(f.ops) if not isinstance(o, page.Store)) + 1
    for o in writes:
        if o.x.owner is not None and o.x.owner.role in ("leaf", "view"):
            copied = flow.Cast(o.x, f32)
            copied.loc, copied.value.name = o.loc, f.fresh(f"{o.x.name}_kept")
            set_operands(o, [copied.value])
            placed: list[Op] = [copied]
            if f.ops.index(o) < behind:  # another kernel reads it, and what makes other state stands after it
                f.ops.remove(o)
                placed, behind = [copied, o], behind - 1
            f.ops[behind:behind] = placed
            behind += len(placed)


def _writes_beside_state(f: Function) -> list[page.Store]:
    """All that a kernel writes which changes state: state that nothing reads may become what other state was."""
    writes = [o for o in f.ops if isinstance(o, page.Store) and isinstance(o.x.type, TensorType)]
    return writes if updated(f) else []


def _plan_kernel(f: Function, ragged: int, batched: int) -> None:
    staging = stage(f)
    slots, words = _slots(staging, ragged)
    users, read = f.users(), _read(f, slots)
    kept = {o.x for o in _writes_beside_state(f)}
    weight: dict[Value, int] = {}
    for o in f.ops:
        if o.result is None:
            continue
        weight[o.result] = 1 + o.repeats * sum(weight[v] for v in o.operands)
        o.notes.pop("slot", None)
        if o.name.startswith("flow."):
            o.notes["pass"] = staging.loop[o]
        if isinstance(o, flow.Shortlist):
            o.notes["in"], o.notes["slot"], words = "list", words, words + 1
        elif o.result in slots:
            o.notes["in"], o.notes["slot"] = "scratch", slots[o.result]
        elif isinstance(o.result.type, TensorType) and not isinstance(o, page.Attend):
            heavy = weight[o.result] > HEAVY and o.role != "view"
            wanted = _needs_tile(o, users) and not _is_large(o)
            tile = o.result in kept or ((heavy or wanted) and o.result in read)
            o.notes["in"] = "tile" if tile else "inline"
        if o.notes.get("in") != "inline":
            weight[o.result] = 1
    selects = sum(isinstance(o, flow.Part) for o in f.ops)
    if selects:
        f.attrs["keys"], words = words, words + selects
    if KINDS[str(f.attrs["kind"])].workspace:
        f.attrs["page_words"], f.attrs["row_words"] = words, batched


def _read(f: Function, kept: Collection[Value]) -> set[Value]:
    """The values of which an element is read: not those from which only tensors without elements are made. What is
    ``kept`` or crosses pages is computed in any case.
    """
    found: set[Value] = set(kept)
    for o in reversed(f.ops):
        v = o.result
        if v is not None and o.crosses_pages():
            found.add(v)
        if v is None or (v in found and not _empty(v)):
            found.update(x for x in o.operands if not _empty(x))
    return found


def _empty(v: Value) -> bool:
    return isinstance(v.type, TensorType) and 0 in v.type.shape


def _slots(staging: Staging, first: int) -> tuple[dict[Value, int], int]:
    """A word offset for each kept value, and the words per page that all take together."""
    slots: dict[Value, int] = {}
    end = first
    for v, last in staging.kept.items():
        assert isinstance(v.type, TensorType)
        at = first
        for other, other_last in sorted(((w, staging.kept[w]) for w in slots), key=lambda p: slots[p[0]]):
            assert isinstance(other.type, TensorType)
            meet = staging.level[v] <= other_last and staging.level[other] <= last
            if meet and at < slots[other] + other.type.numel and slots[other] < at + v.type.numel:
                at = slots[other] + other.type.numel
        slots[v] = at
        end = max(end, at + v.type.numel)
    return slots, end


def _is_large(o: Op) -> bool:
    """Whether an elementwise result for each page is too large a tile to be worth keeping; codes times their scale are
    always.
    """
    t = o.value.type
    if o.role != "elementwise" or not isinstance(t, TensorType) or not over_pages(o.value):
        return False
    return t.numel > LARGE or (isinstance(o, flow.Mul) and any(_are_codes(v) for v in o.operands))


def _are_codes(v: Value) -> bool:
    t = origin_of(v).type
    return isinstance(t, TensorType) and t.dtype in MOST_CODE


def _needs_tile(o: Op, users: dict[Value, list[Op]]) -> bool:
    """Whether a result is worth keeping on chip rather than recomputing at its use."""
    v = o.value
    if o.role == "view" or (o.role == "leaf" and not isinstance(o, page.Load)):
        return False
    uses = _uses(v, users)
    if isinstance(o, page.Load):
        return not over_pages(v) and any(over_pages(u.result) for u, _ in uses if u.result is not None)
    if o.role == "nest":
        return True
    if not over_pages(v) and any(u.result is not None and over_pages(u.result) for u, _ in uses):
        return True
    return len(uses) > 1 or any(_replicates(u, v, seen) for u, seen in uses)


def _uses(v: Value, users: dict[Value, list[Op]]) -> list[tuple[Op, Value]]:
    """The ops that use ``v``, directly or through views, each with the value it sees."""
    found: list[tuple[Op, Value]] = []
    for u in users[v]:
        found += _uses(u.value, users) if u.role == "view" else [(u, v)]
    return found


def _replicates(user: Op, v: Value, seen: Value) -> bool:
    if user.rereads:
        return True
    if isinstance(user, flow.Reduce):
        operand = user.x.type
    else:
        operand = user.result.type if user.result is not None else v.type
    assert isinstance(v.type, TensorType)
    return isinstance(operand, TensorType) and operand.numel > v.type.numel
