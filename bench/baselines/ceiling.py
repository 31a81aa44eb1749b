"""What the memory gives, and how things are timed: CUDA graphs over several input sets, taking turns.

A graph holds one launch for each input set, whose page ids are random over a pool far larger than L2; the median of its
replays over the number of sets is the time of one. Several contestants replay in turns in one process, so that a drift
of the clocks meets all of them; the spread is that of the replays.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

Thunk = Callable[[], object]
COLD_BYTES = 400 << 20  # what lies between two uses of the same bytes: several times L2


@dataclass(frozen=True)
class Timing:
    """Microseconds a launch: the median, quartiles and least of ``runs`` replays."""

    us: float
    low: float
    high: float
    least: float
    runs: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Timing:
        low, mid, high = statistics.quantiles(times, n=4)
        return cls(mid, low, high, min(times), len(times))

    def row(self, size: int, ceiling: float) -> dict[str, float]:
        """For a table: ``size`` bytes against ``ceiling`` bytes a second."""
        speed = size / self.us * 1e6
        return {**{k: round(v, 3) for k, v in asdict(self).items()}, "MB": round(size / 1e6, 2),
                "TBps": round(speed / 1e12, 3), "of_copy": round(speed / ceiling, 3)}  # fmt: skip


def sets_needed(size: int, least: int = 3, most: int = 24) -> int:
    """Input sets of ``size`` bytes each, enough that what one reads is out of L2 when it comes again."""
    return max(least, min(most, -(-COLD_BYTES // max(1, size))))


def capture(thunks: Sequence[Thunk]) -> torch.cuda.CUDAGraph:
    """All of them in one graph, each run once before on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for thunk in thunks:
            thunk()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for thunk in thunks:
            thunk()
    return graph


def replay(graph: torch.cuda.CUDAGraph, launches: int, runs: int) -> list[float]:
    """Microseconds a launch of each replay."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    for before, after in events:
        before.record()
        graph.replay()
        after.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) * 1e3 / launches for before, after in events]


def time_graph(thunks: Sequence[Thunk], runs: int = 15) -> Timing:
    """The time of one thunk."""
    graph = capture(thunks)
    replay(graph, len(thunks), 2)
    return Timing.of(replay(graph, len(thunks), runs))


def in_turns(contestants: dict[str, Sequence[Thunk]], runs: int = 5, turns: int = 5) -> dict[str, Timing]:
    """Each contestant's time; they replay ``runs`` times at a go, ``turns`` goes, back and forth."""
    graphs = {name: capture(thunks) for name, thunks in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(turns):
        for name in list(graphs)[:: 1 if turn % 2 == 0 else -1]:
            replay(graphs[name], len(contestants[name]), 1)
            times[name] += replay(graphs[name], len(contestants[name]), runs)
    return {name: Timing.of(found) for name, found in times.items()}


def twice(contestants: dict[str, Sequence[Thunk]], budget_ms: float = 40.0) -> dict[str, tuple[Timing, Timing]]:
    """Each contestant's time, measured twice; they take turns, forth and back, for ``budget_ms`` a measurement each.

    The gap between the two is the noise that a ratio of contestants has.
    """
    found: dict[str, list[Timing]] = {name: [] for name in contestants}
    graphs = {name: capture(thunks) for name, thunks in contestants.items()}
    each = {name: replay(graph, 1, 2)[1] / 1e3 for name, graph in graphs.items()}
    runs = {name: max(1, min(6, int(budget_ms / 4 / ms))) for name, ms in each.items()}
    for _ in range(2):
        times: dict[str, list[float]] = {name: [] for name in graphs}
        for turn in range(4):
            for name in list(graphs)[:: 1 if turn % 2 == 0 else -1]:
                replay(graphs[name], len(contestants[name]), 1)
                times[name] += replay(graphs[name], len(contestants[name]), runs[name])
        for name, got in times.items():
            found[name].append(Timing.of(got))
    return {name: (first, second) for name, (first, second) in found.items()}


def copy_bandwidth(sizes: Sequence[int] = (1 << 29, 1 << 30, 1 << 31)) -> float:
    """Bytes a second, read and written, of the best of device copies of these sizes.

    By a kernel as well as by copy: a copy node of a graph reached 2.8 TB/s on an H200 where the kernel had 4.27.
    """
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size // 4, device="cuda") for _ in range(2))
        for way in (lambda a=a, b=b: b.copy_(a), lambda a=a, b=b: torch.add(a, 1.0, out=b)):
            best = max(best, 2 * size / time_graph([way] * 4).us * 1e6)
    return best


def read_bandwidth(size: int = 1 << 31) -> float:
    """Bytes a second of a sum over a large buffer: reading alone, as far as torch's reduction gets."""
    x = torch.empty(size // 4, dtype=torch.float32, device="cuda").normal_()
    return size / time_graph([lambda: x.sum()] * 4).us * 1e6


def launch_floor() -> float:
    """Microseconds that one more dependent, all but empty kernel adds to a graph."""
    x = torch.zeros(1, device="cuda")
    return time_graph([lambda: x.add_(1)] * 64).us
