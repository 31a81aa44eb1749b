"""Which op of one function is which of another.

Names, locations, notes and the order of independent ops do not count. First come ops that compute the same from the
same, then those that are used for the same, and what is left is paired outwards from there, neighbours first: an op
that was changed is the one between what did not change.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vortex.ir.core import Function, Op
from vortex.ir.printer import attr

NOTHING = -1
"""The source of a read of memory that nothing before it has written."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The buffers that attributes of ops may name."""

    buffers: Collection[str] = ()
    called: Mapping[str, str] = field(default_factory=dict)
    """The names under which the other side knows them, where these are others."""

    def names(self, o: Op) -> list[str]:
        """The buffers that an op reads or writes."""
        return [x for x in o.attrs.values() if isinstance(x, str) and x in self.buffers]

    def attrs(self, o: Op) -> dict[str, object]:
        """The attributes that are not at their defaults, the result's type where it is one of them."""
        found = {f.name: getattr(o, f.name) for f in o.form.attrs if getattr(o, f.name) != f.default}
        return {k: self.called.get(x, x) if isinstance(x, str) else x for k, x in found.items()}


class Graph:
    """A function as numbered nodes, arguments first, with what each is made from.

    The sources of an op are its operands, then for each buffer that it names the op that wrote it last.
    """

    def __init__(self, f: Function, memory: Memory) -> None:
        self.f = f
        self.first = len(f.args)
        """The number of the first op."""
        numbers = {v: i for i, v in enumerate(f.args)}
        self.labels = ["argument"] * self.first
        self.sources: list[tuple[int, ...]] = [()] * self.first
        written: dict[str, int] = {}
        for i, o in enumerate(f.ops, self.first):
            named = memory.names(o)
            self.sources.append((*(numbers[v] for v in o.operands), *(written.get(n, NOTHING) for n in named)))
            self.labels.append(f"{o.name} {attr(memory.attrs(o))}")
            if o.result is not None:
                numbers[o.result] = i
            if o.role == "effect":
                written |= dict.fromkeys(named, i)
        self.users: list[list[tuple[int, int]]] = [[] for _ in self.labels]
        """Of each node who uses it, and as which of its sources."""
        for i, sources in enumerate(self.sources):
            for slot, source in enumerate(sources):
                if source != NOTHING:
                    self.users[source].append((i, slot))

    def op(self, node: int) -> Op:
        return self.f.ops[node - self.first]

    @property
    def ops(self) -> range:
        return range(self.first, len(self.labels))


class Matching:
    """The pairs of nodes of two functions whose arguments are paired by ``arguments``."""

    def __init__(self, a: Graph, b: Graph, arguments: Mapping[int, int]) -> None:
        self.a, self.b = a, b
        self.there = dict(arguments)
        self.back = {j: i for i, j in arguments.items()}
        self._made = self._upward()
        used = self._downward()
        # of ops that compute the same, those first that are used for the same too
        self._same(*(list(zip(up, down, strict=True)) for up, down in zip(self._made, used, strict=True)))
        self._same(*self._made)
        self._same(*used, equally_many=True)
        self._neighbours()
        self._leaves()

    def agree(self, i: int, j: int) -> bool:
        """Whether node ``i`` of a and ``j`` of b are the same value, or were before one of them was changed."""
        if NOTHING in (i, j):
            return i == j
        here, there = self._made
        return here[i] == there[j] or (i in self.there and there[self.there[i]] == there[j])

    def rewired(self, i: int, j: int) -> bool:
        """Whether a pair of ops is made from other values."""
        left, right = self.a.sources[i], self.b.sources[j]
        return len(left) != len(right) or not all(map(self.agree, left, right))

    def in_order(self) -> Iterator[tuple[int | None, int | None]]:
        """Pairs of ops and those without a partner, in the order of a; those of b where they stand in b."""
        waiting = iter(self.b.ops)
        passed: set[int] = set()

        def before(j: int) -> Iterator[tuple[None, int]]:
            if j in passed:
                return
            for other in waiting:
                passed.add(other)
                if other == j:
                    return
                if other not in self.back:
                    yield None, other

        for i in self.a.ops:
            partner = self.there.get(i)
            if partner is not None:
                yield from before(partner)
            yield i, partner
        yield from before(NOTHING)

    def _pair(self, i: int, j: int) -> None:
        self.there[i], self.back[j] = j, i

    def _upward(self) -> tuple[list[int], list[int]]:
        """For each node of either side a number that says what it computes from the arguments."""
        known: dict[object, int] = {}

        def numbers(g: Graph, arguments: Mapping[int, object]) -> list[int]:
            made: list[int] = []
            for i, label in enumerate(g.labels):
                sources = tuple(NOTHING if s == NOTHING else made[s] for s in g.sources[i])
                key: object = arguments[i] if i < g.first else (label, sources)
                made.append(known.setdefault(key, len(known)))
            return made

        mine = {i: ("argument", i) if i in self.there else ("argument of a", i) for i in range(self.a.first)}
        theirs = {
            j: ("argument", self.back[j]) if j in self.back else ("argument of b", j) for j in range(self.b.first)
        }
        return numbers(self.a, mine), numbers(self.b, theirs)

    def _downward(self) -> tuple[list[int], list[int]]:
        """For each node of either side a number that says what it is used for."""
        known: dict[object, int] = {}

        def numbers(g: Graph) -> list[int]:
            made = [0] * len(g.labels)
            for i in reversed(range(len(g.labels))):
                key = (g.labels[i], tuple(sorted((made[user], slot) for user, slot in g.users[i])))
                made[i] = known.setdefault(key, len(known))
            return made

        return numbers(self.a), numbers(self.b)

    def _same(self, left: Sequence[Hashable], right: Sequence[Hashable], *, equally_many: bool = False) -> None:
        """Pair ops of the same key, in order; with ``equally_many`` only where that leaves none over."""
        found: dict[Hashable, tuple[list[int], list[int]]] = {}
        for side, (g, keys, taken) in enumerate(((self.a, left, self.there), (self.b, right, self.back))):
            for i in g.ops:
                if i not in taken:
                    found.setdefault(keys[i], ([], []))[side].append(i)
        for mine, theirs in found.values():
            if not equally_many or len(mine) == len(theirs):
                for i, j in zip(mine, theirs, strict=False):
                    self._pair(i, j)

    def _neighbours(self) -> None:
        """Pair what stands at the same place beside a pair, those first that agree most."""
        heap: list[tuple[int, int, int]] = []
        for i, j in self.there.items():
            self._push_around(heap, i, j)
        while heap:
            _, i, j = heapq.heappop(heap)
            if i not in self.there and j not in self.back:
                self._pair(i, j)
                self._push_around(heap, i, j)

    def _push_around(self, heap: list[tuple[int, int, int]], i: int, j: int) -> None:
        above = list(zip(self.a.sources[i], self.b.sources[j], strict=False))
        below = [(u, v) for u, slot in self.a.users[i] for v, other in self.b.users[j] if slot == other]
        for u, v in above + below:
            fresh = u not in self.there and v not in self.back
            if fresh and min(u - self.a.first, v - self.b.first) >= 0 and (likeness := self._likeness(u, v)):
                heapq.heappush(heap, (-likeness, u, v))

    def _likeness(self, i: int, j: int) -> int:
        """How much speaks for the pair; 0 where one does not stand for the other."""
        sources = sum(map(self.agree, self.a.sources[i], self.b.sources[j]))
        used = {(self.there.get(user), slot) for user, slot in self.a.users[i]} & set(self.b.users[j])
        if self.a.op(i).name != self.b.op(j).name:
            # another op in the same place: used for the same, if only in part where it is made from the same
            unused = not self.a.users[i] and not self.b.users[j]
            if (used or unused) and sources == len(self.a.sources[i]) == len(self.b.sources[j]):
                return 1 + sources + len(used)
            every = len(used) == len(self.a.users[i]) == len(self.b.users[j])
            kept = all(self.a.labels[user] == self.b.labels[self.there[user]] for user, _ in self.a.users[i] if every)
            return int(bool(used) and every and kept)
        return sources + len(used) + (4 if self.a.labels[i] == self.b.labels[j] else 2)

    def _leaves(self) -> None:
        """Pair what is left of the ops that read nothing, such as constants, in order."""
        left = [j for j in self.b.ops if j not in self.back and not self.b.sources[j]]
        for i in self.a.ops:
            if i not in self.there and not self.a.sources[i]:
                j = next((j for j in left if self.b.op(j).name == self.a.op(i).name), None)
                if j is not None:
                    left.remove(j)
                    self._pair(i, j)


def match_arguments(a: Function, b: Function) -> dict[int, int]:
    """Arguments by position: those of the same name, for a field's argument has the field's, then others in order."""
    names = {v.name: j for j, v in enumerate(b.args)}
    found = {i: names[v.name] for i, v in enumerate(a.args) if v.name in names}
    left = [j for j in range(len(b.args)) if j not in found.values()]
    rest = [i for i in range(len(a.args)) if i not in found]
    return found | dict(zip(rest, left, strict=False))
