"""What a configuration should cost, from the bytes it moves and what can be on its way at once.

The model ranks; it does not predict. Memory gives ``copy_bandwidth`` once ``copy_bandwidth * latency`` bytes are under
way, so a launch takes its bytes over whatever its CTAs keep in flight, in as many waves as the CTAs that fit need, and
a few fixed costs, such as filling the ring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2

from vortex.schedules.later_sweeps import LaterSweeps
from vortex.targets.gpu import Machine
from vortex.targets.roofline import CLUSTER_WAIT, KEPT_WORD, LIST, LISTED_PAGE

WARP_SECONDS = 0.12e-6
"""For each doubling of the warps that add up their parts."""
ITEM_SECONDS = 0.25e-6
"""For a CTA to find out what to do and begin."""
LAUNCH_SECONDS = 0.9e-6
"""Of a launch that does not overlap the one before."""
PLANNED_SECONDS = 0.15e-6
"""For reading a work list."""


ITEM_PAGES = 128
"""Fewest pages of an item of ``select`` by default."""
KEPT_REGISTERS = 64
"""Of a lane of ``select``, beside summaries on their way."""
SPILL = 1.2
"""How much longer bytes take, for the share of the registers wanted that is not there."""
UNHEARD = 0.3
"""The same where more CTAs an SM are asked for than fit: the compiler then bounds nothing."""
IDLE = 0.1
"""Share of the bandwidth that is lost where no more is on its way than would do."""
WAVE_SECONDS = 4e-6
"""For a wave of ``select`` to look up its rows, begin and end."""
KEY_SECONDS = 0.06e-6
"""For each key that a thread holds, needed or not."""
REREAD_SECONDS = 0.2e-6
"""For each key of a thread that it does not hold."""


@dataclass(frozen=True, slots=True)
class Work:
    """``rows`` of ``pages`` pages each, ``page_bytes`` a page: what a launch reads, and no configuration changes."""

    rows: int
    pages: int
    page_bytes: int

    @property
    def bytes(self) -> int:
        return self.rows * self.pages * self.page_bytes


def attend_seconds(config: Mapping[str, int], work: Work, page: int, machine: Machine) -> float:
    """Of ``attend`` with one CTA a row."""
    warps, stages, tile = config["warps"], config["stages"], config["tile"]
    tile_bytes = work.page_bytes * tile // page
    arena = warps * stages * tile_bytes
    fit = min(machine.ctas_of(arena, 32 * warps), machine.registers // (32 * warps * 144))
    if not fit:
        return float("inf")
    ctas = work.rows
    # the warps of a CTA share its pages: those left without one bring nothing on its way
    tiles = -(-work.pages * page // tile)
    busy = min(warps, tiles)
    depth = max(1, min(stages - 1, -(-tiles // warps)))
    slots = machine.sms * fit
    waves = -(-ctas // slots)
    under_way = min(ctas, slots) * busy * depth * tile_bytes
    rate = min(machine.copy_bandwidth, under_way / machine.latency)
    # a wave that is not full leaves SMs idle at its end
    per_sm = -(-ctas // machine.sms) * machine.sms / ctas if ctas < slots else waves * slots / ctas
    uneven = 1 + (min(per_sm, 2.0) - 1) * (0.5 if ctas > machine.sms else 0.15)
    steps = -(-tiles // (warps * depth)) * machine.latency * 0.35
    time = max(work.bytes / rate * uneven, machine.latency + steps * waves)
    time += ITEM_SECONDS * waves + WARP_SECONDS * log2(warps)
    time += 0.0 if config.get("overlap") else LAUNCH_SECONDS
    return time + PLANNED_SECONDS


def select_seconds(config: Mapping[str, int], work: Work, machine: Machine, later: LaterSweeps | None = None) -> float:
    """Of ``select``: its CTAs stream summaries and then choose, each row by itself; ``later`` is what they do between
    the two, which those of a cluster share.

    Bytes take their time, more where registers do not hold what is on its way; every wave of CTAs begins and ends
    without moving any. A choice goes over a row's keys in registers as often as a thread holds keys, and where they do
    not all fit it reads the row again and again.
    """
    threads, keys = config.get("threads", 256), config.get("keys", 8)
    residents = config.get("residents", 0) or max(1, 512 // threads)
    chip = config.get("chip_words", 8192)
    fit = machine.ctas_of(chip * 4, threads)
    if not fit:
        return float("inf")
    ahead = config.get("ahead", 32)
    registers = min(255, machine.registers // (threads * min(residents, fit)))
    wanted = KEPT_REGISTERS + ahead
    held = min(fit, residents, machine.registers // (threads * min(registers, wanted)))
    slots, cluster = machine.sms * held, config.get("cluster", 1)
    busy = slots if cluster == 1 else min(slots, work.rows * cluster)
    under_way = busy * threads * ahead * 4
    spilled = 0 if work.pages <= chip else work.rows * work.pages * 8
    crowded = 1 + SPILL * max(0, wanted - registers) / wanted + (UNHEARD if residents > fit else 0.0)
    # more on its way than would do saves a little still
    idle = IDLE * machine.copy_bandwidth * machine.latency / under_way
    rate = min(under_way / machine.latency, machine.copy_bandwidth * (1 - idle))
    time = (work.bytes + spilled) / rate * crowded
    chosen_from = work.pages if later is None else -(-work.pages // later.choosers)
    again = -(-chosen_from // threads) * REREAD_SECONDS if keys * threads < chosen_from else 0.0
    if cluster > 1:
        items = work.rows * cluster
    else:
        # plan cuts rows into items for two CTAs an SM, as far as they go
        items = max(work.rows, min(work.rows * -(-work.pages // ITEM_PAGES), 2 * machine.sms))
    waves = -(-items // slots)
    between = _between_seconds(later) if later is not None else 0.0
    return time + waves * (WAVE_SECONDS + keys * KEY_SECONDS + again + between) + LAUNCH_SECONDS


def _between_seconds(later: LaterSweeps) -> float:
    """Of the sweeps between the first and the choice of pages, by the rates that times are predicted with."""
    lists = later.lists * LIST + later.listed * LISTED_PAGE
    return lists + later.swept * KEPT_WORD + later.waits * CLUSTER_WAIT
