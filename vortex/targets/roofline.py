"""What a kernel waits for on a GPU, and how long it takes: its work by resource, each over the rate of that resource.

    resource            work                                rate
    memory              bytes                               of a copy
    latency             bytes                               bytes under way, over the time that each takes to come
    compute             FLOPs of tensor cores               of warp-wide mma
    scalar arithmetic   instructions, conversions as well   an instruction a lane and cycle, of few warps less
    spills              bytes that registers do not hold    of L1

The largest time is the limiter. Bytes come while tensor cores compute; scalar arithmetic and spills come on top, since
a lane waits for what it loaded before it computes with it. At the end of a row its last CTA works alone: it goes over
what was kept of the row's pages, chooses, and reads and ranks the pages of shortlists, while no other CTA has work left
or, in a large batch, while others read. In a cluster the CTAs of a row share what later sweeps read, and wait for each
other. Nothing here was measured on the kernel at hand; how far off predictions are where kernels were measured,
:mod:`vortex.targets.predicted` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vortex.kinds.buckets import buckets_of
from vortex.targets.gpu import Machine

LAUNCH = 5.0e-6
"""Seconds that each kernel of a layer takes beside its work: launch and work lists. Fitted to the layers of
bench/results/h200/layer.json, from 1 request to 128."""
UNLISTED_LAUNCH = 3.0e-6
"""The same of ``append``, which reads no work list and meets no other CTA: it took 2 us there of few requests, and up
to 9 of many, whose pages lie apart."""
KEPT_WORD = 1.0e-9
"""Seconds that the last CTA of a row takes for each word kept of a page, such as the key that it is chosen by. From
single requests: quest in bench/results/h200/layer.json, which keeps a word of a page, and mass in mass.json, which
keeps five; mass_clusters.json has it at 128K tokens, without the variant of few rows."""
FAR_WORD = 0.1e-9
"""Seconds for each word beyond those that shared memory has room for: of such a row the last CTA reads the greatest key
of each page tile, and few others. From single requests of 512K and 1M tokens in bench/results/h200/long_kept.json, of
which 8 pages are kept; of which 1021 are, a choice takes up to 24 us more."""
LIST = 3.0e-6
"""Seconds that each shortlist takes beside its pages: the CTAs of the row meet, and its last one begins anew."""
LISTED_PAGE = 70.0e-9
"""Seconds for each page of a shortlist, which the last CTA of the row looks up, reads, scores and ranks. From single
requests without clusters in bench/results/h200/clusters_tried.json, whose lists have 408 and 1636 pages."""
CLUSTER_WAIT = 1.4e-6
"""Seconds that the CTAs of a cluster wait for each other behind a sweep that they share. From single requests of 32K
tokens in clusters in bench/results/h200/steps_clusters.json and mass_clusters.json."""
BUSY_WARPS = 16
"""Warps on an SM that keep its lanes busy: four for each scheduler, as an instruction's result takes four cycles."""
CLOCK = 1.7e9
"""Cycles a second, an estimate; an SM has 128 lanes and reads or writes 128 bytes of L1 in one."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Work of a kernel, of any part of it, and what of the kernel is on an SM at a time."""

    bytes: float
    """Read and written."""
    scalar: float = 0.0
    """Instructions, each of one lane."""
    flops: float = 0.0
    """Of tensor cores."""
    spilled: float = 0.0
    """Bytes stored and loaded for want of registers."""
    in_flight: float = 0.0
    """Bytes under way on all SMs; 0 where they are not known to be few."""
    warps: float = BUSY_WARPS
    """Of an SM."""
    launch: float = LAUNCH
    """Seconds that it takes without work."""
    lists: int = 0
    """Shortlists that are chosen on the way."""
    listed: float = 0.0
    """Pages of the shortlists of a row, as many as one CTA goes over."""
    kept_words: float = 0.0
    """That one CTA of a row goes over behind the first sweep: of a page, times the pages that it goes over."""
    far_words: float = 0.0
    """Keys of the row beyond those that shared memory has room for, of which it reads few."""
    waits: int = 0
    """Of the CTAs of a cluster for each other."""

    @classmethod
    def of_bytes(
        cls,
        bytes: float,
        schedule: Mapping[str, object],
        resources: Mapping[str, object],
        machine: Machine,
        ctas: float | None = None,
    ) -> Demand:
        """Of a kernel that moves so many bytes, by its schedule and resources as a manifest has them.

        ``ctas`` are at work in all; unless told, as many as all SMs hold, or as the most rows have that a schedule in
        clusters ``serves``. What a CTA spills it spills each time that it has used up what it had in flight.
        """
        slots = machine.sms * max(1.0, number(resources, "ctas"))
        ctas = min(slots, ctas or _in_clusters(schedule) or slots)
        each = number(schedule, "bytes_in_flight")
        spilled = number(resources, "spills") * number(resources, "threads")
        return cls(
            bytes,
            bytes * number(schedule, "scalar_per_byte"),
            bytes * number(schedule, "flops_per_byte"),
            bytes * spilled / each if each else 0.0,
            each * ctas,
            (number(resources, "warps") or BUSY_WARPS) * ctas / slots,
        )


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds by resource, of which the largest is the limiter."""

    by_resource: dict[str, float]
    fixed: float = LAUNCH
    """Seconds in which the kernel waits for none of them: its launch, and what a CTA does behind the first sweep."""

    @classmethod
    def of(cls, work: Demand, machine: Machine) -> Times:
        """The times of some work on a GPU."""
        found = {
            "memory": work.bytes / machine.copy_bandwidth,
            "latency": work.bytes * machine.latency / work.in_flight if work.in_flight else 0.0,
            "compute": work.flops / machine.mma_flops,
            "scalar arithmetic": work.scalar / scalar_rate(machine, work.warps),
            "spills": work.spilled / l1_bandwidth(machine),
        }
        later = work.lists * LIST + work.listed * LISTED_PAGE + work.kept_words * KEPT_WORD + work.far_words * FAR_WORD
        return cls(found, work.launch + later + work.waits * CLUSTER_WAIT)

    @property
    def limiter(self) -> str:
        """The resource that takes longest; memory where nothing takes any time."""
        return max(self.by_resource, key=lambda name: self.by_resource[name])

    @property
    def shares(self) -> dict[str, float]:
        """Of each resource, its part of the kernel's time; that of memory is the part of the speed of a copy."""
        return {name: t / self.busy if self.busy else 0.0 for name, t in self.by_resource.items()}

    @property
    def busy(self) -> float:
        """Seconds that the work takes."""
        t = self.by_resource
        return max(t["memory"], t["latency"], t["compute"]) + t["scalar arithmetic"] + t["spills"]

    @property
    def seconds(self) -> float:
        """Of the kernel, its launch and the ends of its rows included."""
        return self.fixed + self.busy


def number(found: Mapping[str, object], name: str) -> float:
    """A number of a manifest; 0 where there is none of that name, or something else."""
    n = found.get(name)
    return float(n) if isinstance(n, int | float) else 0.0


def _in_clusters(schedule: Mapping[str, object]) -> float:
    """CTAs of the most rows that a schedule is for, where several share a row; 0 where none do, or any number of rows
    may come.
    """
    cluster = number(schedule, "cluster")
    return cluster * max((b.rows for b in buckets_of(schedule)), default=0) if cluster > 1 else 0.0


def scalar_rate(machine: Machine, warps: float = BUSY_WARPS) -> float:
    """Scalar instructions a second, over all lanes, where an SM has so many warps."""
    return machine.sms * 128 * CLOCK * min(1.0, warps / BUSY_WARPS)


def l1_bandwidth(machine: Machine) -> float:
    """Bytes a second, over all SMs."""
    return machine.sms * 128 * CLOCK
