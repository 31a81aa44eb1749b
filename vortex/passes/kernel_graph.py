"""Which kernels must run before which others, while some of them become one."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from vortex.ir.core import Function
from vortex.ir.dialects import page


def stores(f: Function) -> set[str]:
    """The buffers that a kernel writes."""
    return {o.buffer for o in f.ops if isinstance(o, page.Store | page.Reset | page.Scatter | page.Plan)}


def reads(f: Function) -> set[str]:
    """The buffers that a kernel reads."""
    return {o.buffer for o in f.ops if isinstance(o, page.Load | page.LoadSelection)}


class KernelGraph:
    """Groups of kernels, at first one of each; a group is called by its number, that of its first kernel.

    Attributes:
        members: the kernels of each group by number, in program order. Groups are in program order of their first
            kernels.
    """

    def __init__(self, kernels: Sequence[Function]) -> None:
        self.members: dict[int, list[int]] = {n: [n] for n in range(len(kernels))}
        self._after: list[dict[int, None]] = [{} for _ in kernels]
        self._before: list[set[int]] = [set() for _ in kernels]
        self._several: set[int] = set()
        """Groups of more than one kernel."""
        self._spans: list[tuple[int, int]] = []
        writers: dict[str, list[int]] = {}
        readers: dict[str, list[int]] = {}
        for n, f in enumerate(kernels):
            stored, read = stores(f), reads(f)
            first: set[int] = set()
            for name in stored | read:
                first.update(writers.get(name, ()))
            for name in stored:
                # state is read, and then written: no kernel comes before one that reads what was there
                first.update(readers.get(name, ()))
            for m in sorted(first):
                self._edge(m, n)
            for name in stored:
                writers.setdefault(name, []).append(n)
            for name in read:
                readers.setdefault(name, []).append(n)

    def merge(self, a: int, b: int) -> None:
        """Make group ``b``, which begins later, a part of group ``a``."""
        self.members[a] = sorted((*self.members[a], *self.members.pop(b)))
        before, after = self._before[b], self._after[b]
        for n in before:
            del self._after[n][b]
        for n in after:
            self._before[n].remove(b)
        for n in before - {a}:
            self._edge(n, a)
        for n in after:
            if n != a:
                self._edge(a, n)
        self._several = (self._several | {a}) - {b}
        self._spans = self._span()

    def between(self, a: int, b: int) -> list[int]:
        """The kernels of a group that must run after one of the two groups and before the other; empty for none."""
        for first, last in ((a, b), (b, a)):
            for step in self._after[first]:
                if step != last and self._leads(step, last):
                    return self.members[step]
        return []

    def order(self) -> list[int]:
        """The groups as they may run, the one that begins first first of those that are ready."""
        missing = {n: len(self._before[n]) for n in self.members}
        ready = [n for n, count in missing.items() if not count]
        heapify(ready)
        found = []
        while ready:
            found.append(heappop(ready))
            for n in self._after[found[-1]]:
                missing[n] -= 1
                if not missing[n]:
                    heappush(ready, n)
        return found

    def _edge(self, a: int, b: int) -> None:
        self._after[a][b] = None
        self._before[b].add(a)

    def _leads(self, step: int, last: int) -> bool:
        """Whether ``last`` must run after ``step``."""
        end = self.members[last][-1]
        seen, todo = {step}, [step]
        while todo:
            here = todo.pop()
            if here == last:
                return True
            new = [n for n in self._after[here] if n not in seen and (n == last or self._earliest(n) < end)]
            seen.update(new)
            todo += new
        return False

    def _earliest(self, n: int) -> int:
        """No kernel before this one runs after group ``n``: edges lead forwards in program order, and backwards within
        groups alone.
        """
        at = bisect(self._spans, (n, len(self._after))) - 1
        return self._spans[at][0] if at >= 0 and n <= self._spans[at][1] else n

    def _span(self) -> list[tuple[int, int]]:
        """From the first to the last kernel of each group of several, those that overlap as one."""
        found: list[tuple[int, int]] = []
        for first, last in sorted((n, self.members[n][-1]) for n in self._several):
            if found and first < found[-1][1]:
                found[-1] = found[-1][0], max(found[-1][1], last)
            else:
                found.append((first, last))
        return found
