"""Kernels that read what another just wrote become one kernel."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from vortex.ir.core import Function, Module, Value
from vortex.ir.dialects import page
from vortex.ir.rewrite import drop_dead
from vortex.ir.staging import stage
from vortex.ir.types import TensorType
from vortex.kinds.kind import KINDS
from vortex.passes.manager import Pass, PassContext, register

if TYPE_CHECKING:
    import networkx as nx


@register("fuse", stage="page", tag="exact", version=1)
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
        groups = _grouped(module, self.max_live)
        state = {d.name for d in module.declared("buffer") if d.attrs["role"] == "state"}
        program = Module("page", module.name, dict(module.attrs), dict(module.decls))
        by_kind: dict[str, list[list[Function]]] = {}
        for parts in groups:
            by_kind.setdefault(str(parts[0].attrs["kind"]), []).append(parts)
        work = {d.name for d in module.declared("buffer") if d.attrs["role"] == "workspace"}
        inner = work - _crossing(groups)
        for parts in groups:
            kind = str(parts[0].attrs["kind"])
            alike = by_kind[kind]
            name = kind if len(alike) == 1 else f"{kind}_{alike.index(parts)}"
            program.define(_join(name, parts, inner, state))
        named = {name for f in program.functions.values() for name in _stores(f) | _reads(f)}
        gone = work - named
        program.decls = {n: d for n, d in module.decls.items() if n not in gone}
        return program


def _stores(f: Function) -> set[str]:
    return {o.buffer for o in f.ops if isinstance(o, page.Store | page.Reset | page.Scatter | page.Plan)}


def _reads(f: Function) -> set[str]:
    return {o.buffer for o in f.ops if isinstance(o, page.Load | page.LoadSelection)}


def _grouped(module: Module, max_live: int) -> list[list[Function]]:
    """The kernels of each fused kernel, both in program order."""
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
    while merged:
        merged = False
        nodes = sorted(graph, key=lambda n: min(position[name] for name in n))
        for a, b in combinations(nodes, 2):
            parts = sorted((module.functions[n] for n in a | b), key=lambda f: position[f.name])
            if _fusible(parts, max_live, outlasting) and _acyclic(graph, a, b):
                graph = nx.relabel_nodes(nx.contracted_nodes(graph, a, b, self_loops=False, copy=True), {a: a | b})
                merged = True
                break
    order = nx.lexicographical_topological_sort(graph, key=lambda n: min(position[name] for name in n))
    return [sorted((module.functions[n] for n in node), key=lambda f: position[f.name]) for node in order]


def _fusible(parts: list[Function], max_live: int, outlasting: set[str]) -> bool:
    kinds = {str(f.attrs["kind"]) for f in parts}
    fusion = KINDS[kinds.pop()].fusion
    if kinds or fusion == "never":
        return False
    if fusion == "always":
        return True
    inner = {name for f in parts for name in _stores(f)} - outlasting
    return live_per_page(_join("trial", parts, inner)) <= max_live


def live_per_page(f: Function) -> int:
    """Numbers per page that the kernel keeps between its passes."""
    return sum(v.type.numel for v in stage(f).kept if isinstance(v.type, TensorType))


def _acyclic(graph: nx.DiGraph[frozenset[str]], a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether a and b may be one node: no path between them leads through a third."""
    import networkx as nx

    for x, y in ((a, b), (b, a)):
        for step in graph.successors(x):
            if step != y and nx.has_path(graph, step, y):
                return False
    return True


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
