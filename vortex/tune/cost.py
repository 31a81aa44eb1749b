"""What a configuration should cost, from the bytes it moves and what can be on its way at once.

The model ranks; it does not predict. Memory gives ``bandwidth`` once ``bandwidth * latency`` bytes are under way, so a
launch takes its bytes over whatever its CTAs keep in flight, in as many waves as the CTAs that fit need, and a few
fixed costs: filling the ring, meeting at the end of a row that was split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2

from vortex.tune.record import Silicon
from vortex.tune.silicon import Speed

REGISTERS = 65536
"""Of an SM."""
THREADS = 2048
"""Of an SM."""
CTA_BYTES = 1024
"""Shared memory that the driver takes of each CTA."""
SM_BYTES = 1024
"""Shared memory of an SM beyond what one CTA may have."""

MERGE_SECONDS = 0.45e-6
"""For the CTAs of a row to meet once."""
WARP_SECONDS = 0.12e-6
"""For each doubling of the warps that add up their parts."""
ITEM_SECONDS = 0.25e-6
"""For a CTA to find out what to do and begin."""
LAUNCH_SECONDS = 0.9e-6
"""Of a launch that does not overlap the one before."""
PLANNED_SECONDS = 0.15e-6
"""For reading a work list."""


@dataclass(frozen=True, slots=True)
class Work:
    """``rows`` of ``pages`` pages each, ``page_bytes`` a page: what a launch reads, and no configuration changes."""

    rows: int
    pages: int
    page_bytes: int

    @property
    def bytes(self) -> int:
        return self.rows * self.pages * self.page_bytes


def attend_seconds(config: Mapping[str, int], work: Work, page: int, silicon: Silicon, speed: Speed) -> float:
    """Of ``attend``; ``splits`` is how many CTAs share a row (1 where the configuration does not say)."""
    warps, stages, tile = config["warps"], config["stages"], config["tile"]
    tile_bytes = work.page_bytes * tile // page
    arena = warps * stages * tile_bytes
    fit = min(
        (silicon.smem + SM_BYTES) // (arena + CTA_BYTES), THREADS // (32 * warps), REGISTERS // (32 * warps * 144)
    )
    if not fit:
        return float("inf")
    splits = max(1, min(config.get("splits", 1), work.pages))
    ctas = work.rows * splits
    # the warps of a CTA share its pages: those left without one bring nothing on its way
    tiles = -(-work.pages * page // (tile * splits))
    busy = min(warps, tiles)
    depth = max(1, min(stages - 1, -(-tiles // warps)))
    slots = silicon.sms * fit
    waves = -(-ctas // slots)
    under_way = min(ctas, slots) * busy * depth * tile_bytes
    rate = min(speed.bandwidth, under_way / speed.latency)
    # a wave that is not full leaves SMs idle at its end
    per_sm = -(-ctas // silicon.sms) * silicon.sms / ctas if ctas < slots else waves * slots / ctas
    uneven = 1 + (min(per_sm, 2.0) - 1) * (0.5 if ctas > silicon.sms else 0.15)
    steps = -(-tiles // (warps * depth)) * speed.latency * 0.35
    time = max(work.bytes / rate * uneven, speed.latency + steps * waves)
    time += ITEM_SECONDS * waves + WARP_SECONDS * log2(warps)
    time += MERGE_SECONDS * (1 + log2(splits) * 0.35) if splits > 1 else 0.0
    time += 0.0 if config.get("overlap") else LAUNCH_SECONDS
    return time + (PLANNED_SECONDS if config.get("planned", 1) else 0.0)


def select_seconds(config: Mapping[str, int], work: Work, silicon: Silicon, speed: Speed) -> float:
    """Of ``select``: its CTAs stream summaries; whatever is not on chip is written and read once more."""
    threads, held = config.get("threads", 256), config.get("in_flight", 0) or 2
    residents = config.get("residents", 0) or max(1, 512 // threads)
    arena = config.get("chip_words", 8192) * 4
    fit = min(residents, THREADS // threads, (silicon.smem + SM_BYTES) // (arena + CTA_BYTES))
    if not fit:
        return float("inf")
    ctas = max(work.rows, silicon.sms)
    under_way = min(ctas, silicon.sms * fit) * threads * held * 16
    rate = min(speed.bandwidth, under_way / speed.latency)
    spilled = 0 if work.pages <= config.get("chip_words", 8192) else work.rows * work.pages * 8
    rounds = -(-ctas // (silicon.sms * fit))
    return (work.bytes + spilled) / rate + rounds * 2 * speed.latency + LAUNCH_SECONDS
