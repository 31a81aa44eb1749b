"""How far predicted times were off, by kernels that were measured: what predictions of others are worth.

predicted.jsonl beside this file has a line for each committed measurement of a kernel, with what today's model predicts
of it; bench/predicted_times.py writes it, and a test holds the two together. A kernel is like those of its kind, form
and limiter that move as much, more than 50 MB or less.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from statistics import median

LARGE = 50e6
"""Bytes above which a kernel's time is that of its bytes, and no longer that of its launch."""
LAUNCHED = "launch"
"""The limiter of small kernels whose work is a quarter of their time at most."""
NEAR = 0.25
"""Part of the measured time that a prediction may be off."""
DATA = "predicted.jsonl"


@dataclass(frozen=True, slots=True)
class Kind:
    """What is alike in kernels whose predictions are off alike."""

    gpu: str
    kind: str
    form: str
    """As :func:`vortex.schedules.form.form_of` says."""
    limiter: str
    large: bool

    def __str__(self) -> str:
        size = f"{'above' if self.large else 'below'} {LARGE / 1e6:.0f} MB"
        form = f" {self.form}" if self.form else ""
        waits = f"that waits for {spoken(self.limiter)}"
        waits = "of little work beside its launch and choices" if self.limiter == LAUNCHED else waits
        return f"{self.kind}{form} {waits}, {size}"


@dataclass(frozen=True, slots=True)
class Compared:
    """One measurement beside what is predicted of it."""

    file: str
    """Under bench/results."""
    flow: str
    ir: str
    """The structural hash of the kernel's IR; empty where it was compiled otherwise than it would be today."""
    gpu: str
    kind: str
    form: str
    limiter: str
    requests: int
    rows: int
    """Requests times KV heads."""
    tokens: int
    kept: int
    megabytes: float
    predicted: float
    """Microseconds, as ``measured``."""
    measured: float

    @property
    def like(self) -> Kind:
        return Kind(self.gpu, self.kind, self.form, self.limiter, 1e6 * self.megabytes > LARGE)

    @property
    def ratio(self) -> float:
        """How many times as long as predicted it took."""
        return self.measured / self.predicted

    @property
    def near(self) -> bool:
        return abs(self.predicted - self.measured) <= NEAR * self.measured

    def as_line(self) -> str:
        """As the data have it."""
        return json.dumps(asdict(self), separators=(", ", ": "))

    def __str__(self) -> str:
        requests = "1 request" if self.requests == 1 else f"{self.requests} requests"
        return f"{self.flow}, {requests} of {self.tokens} tokens, bench/results/{self.file}"


@dataclass(frozen=True, slots=True)
class Worth:
    """What a prediction is worth, in words."""

    text: str
    off: bool
    """Whether it is known to be off by more than a quarter, or nothing is known."""


@cache
def compared() -> tuple[Compared, ...]:
    """All measurements."""
    text = files("vortex.targets").joinpath(DATA).read_text(encoding="utf-8")
    return tuple(Compared(**json.loads(line)) for line in text.splitlines())


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a layer's step: what a measurement is looked up by."""

    rows: int
    tokens: int
    kept: int
    """Pages, the reserved ones included."""
    page_size: int
    """Tokens of two steps are the same when their pages are."""

    def is_of(self, c: Compared) -> bool:
        pages = [-(-tokens // self.page_size) for tokens in (c.tokens, self.tokens)]
        same = (c.rows, pages[0]) == (self.rows, pages[1])
        return same and (c.kept == self.kept or c.kind != "attend")  # the others go over all pages, or none


def worth_of(like: Kind, ir: str = "", shape: Shape | None = None) -> Worth:
    """Of a prediction: by what a kernel of the same IR and form took at the same shape, else by kernels like it."""
    of_gpu = [c for c in compared() if c.gpu == like.gpu]
    if not of_gpu:
        return Worth(f"no prediction for {like.gpu} was ever held against a measurement", True)
    same = [c for c in of_gpu if ir and (c.ir, c.form) == (ir, like.form) and shape is not None and shape.is_of(c)]
    if same:
        c = max(same, key=lambda c: max(c.ratio, 1 / c.ratio))
        of = f", the furthest off of {len(same)}" if len(same) > 1 else ""
        return Worth(f"measured at this very shape{of}: {c.measured:.1f} us, {_times(c.ratio)} ({c})", not c.near)
    return _of_alike(like, [c for c in of_gpu if c.like == like])


def _of_alike(like: Kind, group: Sequence[Compared]) -> Worth:
    if not group:
        return Worth(f"no committed measurement on {like.gpu} is of {like}", True)
    n = f"{len(group)} committed measurement{'s' if len(group) > 1 else ''} of {like}"
    worst = max(group, key=lambda c: max(c.ratio, 1 / c.ratio))
    far = [c for c in group if not c.near]
    if not far:
        return Worth(f"{n}: at most {abs(worst.predicted / worst.measured - 1):.0%} off", False)
    middle = median(c.ratio for c in group)
    off = abs(1 / middle - 1) > NEAR or 4 * len(far) >= len(group)
    if len(group) == 1:
        return Worth(f"the one committed measurement of {like} was {_times(worst.ratio)} ({worst})", off)
    return Worth(f"{n}: {len(far)} more than {NEAR:.0%} off, at most {_times(worst.ratio)} ({worst})", off)


def _times(ratio: float) -> str:
    """How long something took, in words."""
    return f"{ratio:.2f} times as long as predicted" if ratio >= 1 else f"{ratio:.2f} of what is predicted"


def spoken(limiter: str) -> str:
    """A limiter as people read it."""
    return {"compute": "tensor cores", "latency": "the memory's latency"}.get(limiter, limiter)
