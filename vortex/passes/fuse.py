"""Kernels that read what another just wrote become one kernel."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from vortex.errors import Loc
from vortex.ir.core import Function, Module, Value
from vortex.ir.dialects import page
from vortex.ir.rewrite import drop_dead
from vortex.ir.staging import stage
from vortex.ir.types import TensorType
from vortex.kinds.kind import KINDS
from vortex.passes.manager import Pass, PassContext, register

if TYPE_CHECKING:
    import networkx as nx


@register("fuse", stage="page", tag="exact", version=1, needed=True)
@dataclass(frozen=True, slots=True)
class Fuse(Pass):
    """Join kernels of one kind and domain, as long as what a row keeps between page passes stays small.

    Softmax, statistics and the selection itself do not stop it: a kernel may walk its pages several
    times. Each buffer is loaded once in a fused kernel, a value that only travelled between two of its
    parts no longer leaves it, and all fields of a page come from one read of that page.

        kernel @select_d { %d = flow.dot(..)         page.store(%d) {buffer = "d"} }
        kernel @select_m { %d = page.load() {buffer = "d"}   %m = flow.reduce_mean(%d)   page.store(%m) {buffer = "m"} }
          ->
        kernel @select { %d = flow.dot(..)   %m = flow.reduce_mean(%d)   page.store(%m) {buffer = "m"} }

    ``max-live`` bounds the numbers per page that a fused kernel keeps between passes, where its kind says so
    (``select``).
    """

    max_live: int = 256

    def run(self, module: Module, ctx: PassContext) -> Module:
        decided = self.decide(module)
        state = {d.name for d in module.declared("buffer") if d.attrs["role"] == "state"}
        program = Module("page", module.name, dict(module.attrs), dict(module.decls))
        work = {d.name for d in module.declared("buffer") if d.attrs["role"] == "workspace"}
        inner = work - _crossing(list(decided.groups.values()))
        for name, parts in decided.groups.items():
            program.define(_join(name, parts, inner, state))
        named = {name for f in program.functions.values() for name in _stores(f) | _reads(f)}
        gone = work - named
        program.decls = {n: d for n, d in module.decls.items() if n not in gone}
        return program

    def decide(self, module: Module) -> Decided:
        """What becomes one kernel, and why the rest does not: the pass does this, ``vortex explain`` says it."""
        return _decide(module, self.max_live)


@dataclass(frozen=True, slots=True)
class Apart:
    """Two kernels of one kind that stay apart."""

    first: str
    second: str
    """By the names that they have when all is fused."""
    why: str
    loc: Loc | None
    """The line of the flow that is in the way."""


@dataclass(frozen=True, slots=True)
class Decided:
    """Which kernels become one."""

    groups: dict[str, list[Function]]
    """The kernels of each fused kernel by its name, both in program order."""
    apart: tuple[Apart, ...]


@dataclass(frozen=True, slots=True)
class _Reason:
    """Why kernels do not become one."""

    why: str
    loc: Loc | None = None


def _stores(f: Function) -> set[str]:
    return {o.buffer for o in f.ops if isinstance(o, page.Store | page.Reset | page.Scatter | page.Plan)}


def _reads(f: Function) -> set[str]:
    return {o.buffer for o in f.ops if isinstance(o, page.Load | page.LoadSelection)}


def _decide(module: Module, max_live: int) -> Decided:
    import networkx as nx

    kernels = list(module.functions.values())
    outlasting = {d.name for d in module.declared("buffer") if d.attrs["role"] != "workspace"}
    position = {f.name: i for i, f in enumerate(kernels)}
    graph: nx.DiGraph[frozenset[str]] = nx.DiGraph()
    graph.add_nodes_from(frozenset({f.name}) for f in kernels)
    for a, b in combinations(kernels, 2):
        # state is read, and then written: no kernel comes before one that reads what was there
        if _stores(a) & (_reads(b) | _stores(b)) or _reads(a) & _stores(b):
            graph.add_edge(frozenset({a.name}), frozenset({b.name}))
    merged = True
    reasons: dict[tuple[frozenset[str], frozenset[str]], _Reason] = {}
    while merged:
        merged = False
        reasons = {}
        nodes = sorted(graph, key=lambda n: min(position[name] for name in n))
        for a, b in combinations(nodes, 2):
            parts = sorted((module.functions[n] for n in a | b), key=lambda f: position[f.name])
            reason = _why_apart(parts, max_live, outlasting) or _between(graph, a, b)
            if reason is None:
                graph = nx.relabel_nodes(nx.contracted_nodes(graph, a, b, self_loops=False, copy=True), {a: a | b})
                merged = True
                break
            reasons[a, b] = reason
    order = list(nx.lexicographical_topological_sort(graph, key=lambda n: min(position[name] for name in n)))
    kind = {node: str(module.functions[min(node)].attrs["kind"]) for node in order}
    names = {}
    for node in order:
        alike = [other for other in order if kind[other] == kind[node]]
        names[node] = kind[node] if len(alike) == 1 else f"{kind[node]}_{alike.index(node)}"
    groups = {names[n]: sorted((module.functions[x] for x in n), key=lambda f: position[f.name]) for n in order}
    apart = [
        Apart(names[a], names[b], reason.why, reason.loc)
        for (a, b), reason in reasons.items()
        if kind[a] == kind[b]
    ]  # fmt: skip
    return Decided(groups, tuple(apart))


def _why_apart(parts: list[Function], max_live: int, outlasting: set[str]) -> _Reason | None:
    """What of the kernels themselves is against making them one; None where nothing is."""
    kinds = sorted({str(f.attrs["kind"]) for f in parts})
    if len(kinds) > 1:
        return _Reason(f"they are of kinds {' and '.join(kinds)}")
    fusion = KINDS[kinds[0]].fusion
    if fusion == "never":
        return _Reason(f"kernels of kind {kinds[0]} never become one")
    if fusion == "always":
        return None
    inner = {name for f in parts for name in _stores(f)} - outlasting
    kept = stage(_join("trial", parts, inner)).kept
    live = _live(kept)
    if live <= max_live:
        return None
    largest = max(kept, key=lambda v: v.type.numel if isinstance(v.type, TensorType) else 0)
    why = (
        f"one kernel would keep {live} numbers of a page between its sweeps, and 'max-live' allows {max_live}; "
        f"most of them are %{largest.name} : {largest.type}"
    )
    return _Reason(why, largest.owner.loc if largest.owner is not None else None)


def _live(kept: Collection[Value]) -> int:
    """Numbers of a page that a kernel keeps between its sweeps."""
    return sum(v.type.numel for v in kept if isinstance(v.type, TensorType))


def _between(graph: nx.DiGraph[frozenset[str]], a: frozenset[str], b: frozenset[str]) -> _Reason | None:
    """Why a and b may not be one node: a path between them leads through a third; None where none does."""
    import networkx as nx

    for x, y in ((a, b), (b, a)):
        for step in graph.successors(x):
            if step != y and nx.has_path(graph, step, y):
                return _Reason(f"{' and '.join(sorted(step))} must run after the one and before the other")
    return None


def _crossing(groups: list[list[Function]]) -> set[str]:
    """Buffers that one group writes and another reads."""
    owner = {name: i for i, parts in enumerate(groups) for f in parts for name in _stores(f)}
    return {n for i, parts in enumerate(groups) for f in parts for n in _reads(f) if owner.get(n, i) != i}


def _join(name: str, parts: list[Function], inner: set[str], state: Collection[str] = ()) -> Function:
    """One kernel that does what ``parts`` do one after another, with the knobs that somebody gave any of them; buffers
    ``inner`` are read by none but ``parts``, and ``state`` is written when all is read.
    """
    joined = Function("kernel", name, attrs=dict(parts[0].attrs))
    if given := {k: v for f in parts for k, v in f.attrs.get("schedule", {}).items()}:
        joined.attrs["schedule"] = given
    here: dict[str, Value] = {}
    """What was stored to, or loaded from, each buffer so far."""
    others: dict[type[page.Load], dict[str, Value]] = {page.LoadWords: {}, page.LoadPage: {}}
    """The same of what was loaded in words, or as rows of a whole page."""
    leaves: dict[tuple[str, str], Value] = {}
    reads = {b for f in parts for b in _reads(f)}
    last: list[page.Store] = []
    for f in parts:
        made: dict[Value, Value] = {}
        for o in f.ops:
            known = others.get(type(o), here) if isinstance(o, page.Load) else here
            if isinstance(o, page.Load) and o.buffer in known:
                made[o.value] = known[o.buffer]
                continue
            key = (o.name, f"{o.attrs} {o.result.type if o.result is not None else None}")
            if o.role == "leaf" and key in leaves:
                made[o.value] = leaves[key]
                continue
            local = isinstance(o, page.Store) and o.buffer in reads and o.buffer in inner
            if isinstance(o, page.Store) and local:
                here[o.buffer] = made[o.x]
                continue
            twin = o.with_operands([made[v] for v in o.operands])
            if isinstance(twin, page.Store) and twin.buffer in state:
                last.append(twin)
                continue
            joined.append(twin, o.result.name if o.result is not None else "")
            if isinstance(o, page.Store):
                here[o.buffer] = made[o.x]
            if o.result is not None:
                made[o.result] = twin.value
                if isinstance(o, page.Load):
                    known[o.buffer] = twin.value
                elif o.role == "leaf":
                    leaves[key] = twin.value
    for store in last:
        joined.append(store)
    drop_dead(joined)  # views repeated in several parts
    return joined
