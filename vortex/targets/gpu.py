"""The GPUs that targets stand for: what one multiprocessor holds, and the memory behind all of them.

Schedules are chosen and limiters predicted from these numbers alone, so that a machine that is not at hand gets a
schedule of its own all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vortex.ir.core import Module


WARP = 32
"""Threads of a warp, on every GPU there is a target for."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A GPU; sizes in bytes, rates a second."""

    name: str
    sms: int
    """Multiprocessors (SMs)."""
    threads: int
    """Of one SM, as ``ctas`` and ``registers``."""
    ctas: int
    registers: int
    shared: int
    """For all CTAs of an SM; each CTA takes ``reserved_shared`` beside its own."""
    reserved_shared: int
    cta_shared: int
    """The most that one CTA may have."""
    l2: int
    memory: int
    bandwidth: float
    """Of the memory, by the data sheet: what schedules must be able to keep busy."""
    copy_bandwidth: float
    """What a copy reaches: what times are predicted from."""
    latency: float
    """Seconds from a load to its data under load: what must be covered by bytes in flight. An estimate."""
    cover: float
    """Times ``bytes_needed`` that a schedule has room for in flight, since a ring is not full while it is refilled."""
    mma_flops: float
    """bf16 products and sums of tensor cores through warp-wide ``mma``, which our kernels use: an estimate, below what
    the instructions of the architecture reach."""

    @property
    def bytes_needed(self) -> int:
        """In flight on each SM, for the memory to be busy all the time (Little's law)."""
        return int(self.bandwidth * self.latency / self.sms)

    @property
    def flops_per_byte(self) -> float:
        """Arithmetic that a byte may cost before the tensor cores take longer than the memory."""
        return self.mma_flops / self.bandwidth

    def ctas_of(self, shared: int, threads: int) -> int:
        """CTAs of that shared memory and so many threads that an SM holds, registers aside."""
        return min(self.ctas, self.threads // threads, self.shared // (shared + self.reserved_shared))


H200 = Machine(
    name="H200",
    sms=132,
    threads=2048,
    ctas=32,
    registers=65536,
    shared=228 << 10,
    reserved_shared=1 << 10,
    cta_shared=227 << 10,
    l2=50 << 20,
    memory=141 * 10**9,
    bandwidth=4.8e12,
    copy_bandwidth=4.3e12,
    latency=0.8e-6,
    cover=2.0,
    mma_flops=6.2e14,
)
"""Measured, the copy as well: 64 KiB in flight on an SM read at its speed."""

B200 = Machine(
    name="B200",
    sms=148,
    threads=2048,
    ctas=32,
    registers=65536,
    shared=228 << 10,
    reserved_shared=1 << 10,
    cta_shared=227 << 10,
    l2=126 << 20,
    memory=180 * 10**9,
    bandwidth=8.0e12,
    copy_bandwidth=7.2e12,
    latency=0.9e-6,
    cover=3.0,
    mma_flops=5.6e14,
)
"""Not measured, so with a margin; a copy is taken to reach 90 % of the data sheet."""

MACHINES = {"sm_90a": H200, "sm_100a": B200}
"""By the name of a target. An H100 is an H200 with 80 GB at 3.35 TB/s: what covers the one covers the other."""

UNMEASURED = ("sm_100a",)
"""Targets whose schedules come from the numbers above, or from what another machine measured: never from their own."""


def machine_of(program: Module) -> Machine:
    """The GPU that a program was scheduled for; an H200 where it does not say."""
    return MACHINES.get(str(program.attrs.get("target", "")), H200)
