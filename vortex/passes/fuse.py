"""Kernels that read what another just wrote become one kernel."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from vortex.errors import Loc
from vortex.ir.core import Function, Module, Op, Value
from vortex.ir.dialects import page
from vortex.ir.rewrite import drop_dead
from vortex.ir.staging import Stager, stage, take
from vortex.ir.types import TensorType
from vortex.kinds.kind import KINDS
from vortex.passes.kernel_graph import KernelGraph, reads, stores
from vortex.passes.manager import Pass, PassContext, register


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
        named = {name for f in program.functions.values() for name in stores(f) | reads(f)}
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


def _decide(module: Module, max_live: int) -> Decided:
    """The first two kernels, in program order, that nothing keeps apart become one, as long as there are such."""
    kernels = list(module.functions.values())
    kind = [str(f.attrs["kind"]) for f in kernels]
    groups = _Groups(module, max_live)
    graph = groups.graph
    alike = {k: [n for n in range(len(kernels)) if kind[n] == k] for k in set(kind) if KINDS[k].fusion != "never"}
    here = 0
    while here < len(kernels):
        same = alike.get(kind[here], []) if here in graph.members else []
        # an earlier one was kept apart from each of the two that this one is of, and is asked again first
        if (first := next((n for n in same if n < here and groups.join(n, here)), None)) is not None:
            same.remove(here)
            here = first
        elif (other := next((n for n in same if n > here and groups.join(here, n)), None)) is not None:
            same.remove(other)
        else:
            here += 1
    order = graph.order()
    names = {}
    for n in order:
        same = [m for m in order if kind[m] == kind[n]]
        names[n] = kind[n] if len(same) == 1 else f"{kind[n]}_{same.index(n)}"
    apart = [
        Apart(names[a], names[b], reason.why, reason.loc)
        for a, b in combinations(sorted(order), 2)
        if kind[a] == kind[b] and (reason := groups.why_apart(a, b))
    ]
    return Decided({names[n]: groups.parts(n) for n in order}, tuple(apart))


class _Groups:
    """Kernels that become one, group by group; a group is called by the number of its first kernel."""

    def __init__(self, module: Module, max_live: int) -> None:
        self._kernels, self._max_live = list(module.functions.values()), max_live
        self._outlasting = {d.name for d in module.declared("buffer") if d.attrs["role"] != "workspace"}
        self.graph = KernelGraph(self._kernels)
        read = {name for f in self._kernels if _fusion(f) == "bounded" for name in reads(f)}
        self._trials = {
            n: _Trial.of([f]) if _follows(f, self._outlasting, read) else None
            for n, f in enumerate(self._kernels)
            if _fusion(f) == "bounded"
        }
        """What each group of such kernels would keep; None where that has to be found anew each time."""
        self._apart: set[tuple[int, int, int]] = set()
        """Two groups that stay apart, and how many kernels they have: that others become one does not help them."""

    def parts(self, *groups: int) -> list[Function]:
        """The kernels of groups, in program order."""
        return [self._kernels[n] for n in sorted(n for group in groups for n in self.graph.members[group])]

    def join(self, a: int, b: int) -> bool:
        """Make the two groups of one kind one, if nothing is against it."""
        state = a, b, len(self.graph.members[a]) + len(self.graph.members[b])
        if state in self._apart:
            return False
        trial, follows = None, self.graph.members[a][-1] < b
        if _fusion(self._kernels[a]) == "bounded":
            mine = self._trials[a]
            if mine is not None and self._trials[b] is not None:
                trial = mine.followed_by(self.parts(b)) if follows else _Trial.of(self.parts(a, b))
            live = trial.live if trial is not None else _live(self._kept(a, b))
            if live > self._max_live:
                self._apart.add(state)
                return False
        if self.graph.between(a, b):
            self._apart.add(state)
            return False
        self.graph.merge(a, b)
        if trial is not None and follows and mine is not None:
            mine.take(trial)
        else:
            self._trials[a] = trial
        return True

    def why_apart(self, a: int, b: int) -> _Reason | None:
        """What keeps two groups of one kind apart."""
        kind, fusion = self._kernels[a].attrs["kind"], _fusion(self._kernels[a])
        if fusion == "never":
            return _Reason(f"kernels of kind {kind} never become one")
        kept = self._kept(a, b) if fusion == "bounded" else ()
        if (live := _live(kept)) > self._max_live:
            largest = max(kept, key=lambda v: v.type.numel if isinstance(v.type, TensorType) else 0)
            why = (
                f"one kernel would keep {live} numbers of a page between its sweeps, and 'max-live' allows "
                f"{self._max_live}; most of them are %{largest.name} : {largest.type}"
            )
            return _Reason(why, largest.owner.loc if largest.owner is not None else None)
        if between := self.graph.between(a, b):
            names = " and ".join(sorted(self._kernels[n].name for n in between))
            return _Reason(f"{names} must run after the one and before the other")
        return None

    def _kept(self, a: int, b: int) -> Collection[Value]:
        """What one kernel of both would keep between its sweeps."""
        parts = self.parts(a, b)
        inner = {name for f in parts for name in stores(f)} - self._outlasting
        return stage(_join("trial", parts, inner)).kept


def _fusion(f: Function) -> str:
    return KINDS[str(f.attrs["kind"])].fusion


def _follows(f: Function, outlasting: Collection[str], read: Collection[str]) -> bool:
    """Whether what a kernel keeps can be found part after part, as those that come later leave its ops as they are: it
    writes no state, and no op is left without a use when another part takes what it stores.
    """
    used = {v for o in f.ops for v in o.operands}
    for o in f.ops:
        if isinstance(o, page.Store) and (
            (o.buffer in outlasting and o.buffer in read) or o.x.owner is None or o.x.owner.role in ("leaf", "view")
        ):
            return False
        if isinstance(o, page.LoadWords | page.LoadPage) and o.buffer not in outlasting:
            return False
        if o.result is not None and o.result not in used:
            return False
    return True


class _Trial:
    """A kernel of some parts, as far as it says what would be kept between its sweeps."""

    def __init__(self, joining: _Joining, stager: Stager) -> None:
        self._joining, self._stager = joining, stager

    @classmethod
    def of(cls, parts: Sequence[Function]) -> _Trial:
        made = cls(_Joining(), Stager())
        made._add(parts)
        return made

    @property
    def live(self) -> int:
        return _live(self._stager.kept)

    def followed_by(self, parts: Sequence[Function]) -> _Trial:
        """One with more parts after its own; this one stays as it is until :meth:`take`."""
        made = _Trial(self._joining.tried(), self._stager.tried())
        made._add(parts)
        return made

    def take(self, longer: _Trial) -> None:
        """Become what :meth:`followed_by` made."""
        self._joining.take(longer._joining)
        self._stager.take(longer._stager)

    def _add(self, parts: Sequence[Function]) -> None:
        for f in parts:
            for o in self._joining.add(f):
                self._stager.add(o)


def _live(kept: Collection[Value]) -> int:
    """Numbers of a page that a kernel keeps between its sweeps."""
    return sum(v.type.numel for v in kept if isinstance(v.type, TensorType))


def _crossing(groups: list[list[Function]]) -> set[str]:
    """Buffers that one group writes and another reads."""
    owner = {name: i for i, parts in enumerate(groups) for f in parts for name in stores(f)}
    return {n for i, parts in enumerate(groups) for f in parts for n in reads(f) if owner.get(n, i) != i}


class _Joining:
    """Parts, one after another, as the ops of one kernel: what was stored to or loaded from a buffer is at hand.

    Attributes:
        last: writes of state, which come when all is read.
    """

    def __init__(self, local: Collection[str] = (), state: Collection[str] = ()) -> None:
        """What is stored to buffers ``local`` does not leave the kernel."""
        self._local, self._state = local, state
        self.last: list[page.Store] = []
        self._here: MutableMapping[str, Value] = {}
        """What was stored to, or loaded from, each buffer so far."""
        self._others: dict[type[page.Load], MutableMapping[str, Value]] = {page.LoadWords: {}, page.LoadPage: {}}
        """The same of what was loaded in words, or as rows of a whole page."""
        self._leaves: MutableMapping[tuple[str, str], Value] = {}

    def add(self, f: Function) -> Iterator[Op]:
        """The ops of one more part."""
        made: dict[Value, Value] = {}
        for o in f.ops:
            known = self._others.get(type(o), self._here) if isinstance(o, page.Load) else self._here
            if isinstance(o, page.Load) and o.buffer in known:
                made[o.value] = known[o.buffer]
                continue
            key = (o.name, f"{o.attrs} {o.result.type if o.result is not None else None}") if o.role == "leaf" else None
            if key is not None and key in self._leaves:
                made[o.value] = self._leaves[key]
                continue
            if isinstance(o, page.Store) and o.buffer in self._local:
                self._here[o.buffer] = made[o.x]
                continue
            twin = o.with_operands([made[v] for v in o.operands])
            if isinstance(twin, page.Store) and twin.buffer in self._state:
                self.last.append(twin)
                continue
            yield twin
            if isinstance(o, page.Store):
                self._here[o.buffer] = made[o.x]
            if o.result is not None:
                made[o.result] = twin.value
                if isinstance(o, page.Load):
                    known[o.buffer] = twin.value
                elif key is not None:
                    self._leaves[key] = twin.value

    def tried(self) -> _Joining:
        """One that goes on from here, while this one stays as it is until :meth:`take`."""
        made = _Joining(self._local, self._state)
        made._here, made._leaves = ChainMap({}, self._here), ChainMap({}, self._leaves)
        made._others = {kind: ChainMap({}, known) for kind, known in self._others.items()}
        return made

    def take(self, tried: _Joining) -> None:
        """Go on from where ``tried``, which was made of this one, stands."""
        take(self._here, tried._here)
        take(self._leaves, tried._leaves)
        for kind, known in self._others.items():
            take(known, tried._others[kind])


def _join(name: str, parts: list[Function], inner: set[str], state: Collection[str] = ()) -> Function:
    """One kernel that does what ``parts`` do one after another, with the knobs that somebody gave any of them; buffers
    ``inner`` are read by none but ``parts``, and ``state`` is written when all is read.
    """
    joined = Function("kernel", name, attrs=dict(parts[0].attrs))
    if given := {k: v for f in parts for k, v in f.attrs.get("schedule", {}).items()}:
        joined.attrs["schedule"] = given
    read = {b for f in parts for b in reads(f)}
    joining = _Joining(read & inner, state)
    for f in parts:
        for o in joining.add(f):
            joined.append(o)
    for store in joining.last:
        joined.append(store)
    drop_dead(joined)  # views repeated in several parts
    return joined
