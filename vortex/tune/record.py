"""One configuration of one kernel on one machine, and how it fared: the unit that databases hold and share.

A record is a line of JSON. Its ``id`` is a hash of what was measured (key, target, environment, measurement,
configuration); what came out is in ``samples``, which take no part in the id. Records with the same id are the same
record with more samples, so merging databases is set union and cannot conflict.

    {"v":1, "id":"3f0c..", "key":{"kind":"select","ir":"vx1:9a..","bucket":{"rows":256,"columns":2048,"kept":32},
     "dtypes":["bf16"]}, "target":{"arch":"sm_90a","sms":132,"smem":232448},
     "env":{"template":"cuda.select@1","vortex":"0.1.0","tvm":"0.27.0.post1","nvcc":"13.0"},
     "measure":{"mode":"cudagraph","l2":"cold"}, "config":{"threads":256,...},
     "samples":[{"status":"ok","checked":true,"us":{"p10":41.1,"p50":41.3,"p90":42.0},"n":25,"by":{"gpu":"..",..}}]}

Nobody vouches for a record: parsing takes nothing but this shape, and a configuration counts only where it is a point
of the template's space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

from vortex.ir.types import DTYPES
from vortex.kinds.buckets import Bucket
from vortex.kinds.kind import KINDS
from vortex.untrusted_json import Choice, Length, Pattern, Range

VERSION = 1

STATUS = ("ok", "build", "launch", "wrong", "timeout", "crash")
"""How a measurement ended: a failure to build or launch, a wrong result, no end in time, a dead process."""

Word = Annotated[str, Pattern("[A-Za-z0-9][A-Za-z0-9_.:+@-]{0,95}", "a short name")]
Knob = Annotated[str, Pattern("[a-z][a-z0-9_]{0,31}", "a lower-case name")]

MOST_SAMPLES = 32
"""Of one record; the newest are kept."""

NOISY = 1.1
"""A sample whose 90th percentile is this many times its median says little."""


@dataclass(frozen=True, slots=True)
class MachineKey:
    """What of a machine decides which configuration is fast; product names are provenance only.

    On a GPU: architecture, SMs, bytes of shared memory a CTA may have. On a CPU: instruction set, cores, 0. Shared
    databases hold it as ``target`` with just these keys, so that the names of the fields stay as they are.
    """

    arch: Word
    sms: Annotated[int, Range(1, 1 << 16)]
    smem: Annotated[int, Range(0, 1 << 30)]

    def to_json(self) -> dict[str, object]:
        return {"arch": self.arch, "sms": self.sms, "smem": self.smem}

    def __str__(self) -> str:
        return f"{self.arch}, {self.sms} {'SMs' if self.smem else 'cores'}"


@dataclass(frozen=True, slots=True)
class Key:
    """Which kernel: its kind, the structural hash of its page IR with all it refers to, shape bucket, element types."""

    kind: Annotated[str, Choice(KINDS)]
    ir: Word
    bucket: Bucket
    dtypes: Annotated[tuple[Annotated[str, Choice(DTYPES, "one of the element types")], ...], Length(0, 16)]

    def to_json(self) -> dict[str, object]:
        b = self.bucket
        bucket = {"rows": b.rows, "columns": b.columns, "kept": b.kept}
        return {"kind": self.kind, "ir": self.ir, "bucket": bucket, "dtypes": list(self.dtypes)}


@dataclass(frozen=True, slots=True)
class Measure:
    """How time was taken: ``cudagraph`` or ``wall``; L2 at the start: ``cold``, ``warm`` or (CPU) ``none``."""

    mode: Annotated[str, Choice(("cudagraph", "wall"))]
    l2: Annotated[str, Choice(("cold", "warm", "none"))]


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: microseconds a launch as percentiles over ``n`` repeats, absent when it failed."""

    status: str
    checked: bool = False
    us: tuple[float, float, float] | None = None
    n: int = 0
    by: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, object]:
        us = None if self.us is None else dict(zip(("p10", "p50", "p90"), self.us, strict=True))
        return {"status": self.status, "checked": self.checked, "us": us, "n": self.n, "by": dict(self.by)}

    @property
    def at(self) -> str:
        """When, as ISO 8601 in UTC; empty if unknown."""
        return dict(self.by).get("at", "")

    @property
    def noisy(self) -> bool:
        return self.us is None or self.us[2] > NOISY * self.us[1]


LOST = {"cuda.attend@1": {"planned": 1}}
"""Knobs that a template had once, each with the value that it has behaved by ever since."""


GAINED = {"cuda.select@1": {"cluster": 1}}
"""Knobs that a template has now, each with the value that stands for how it behaved before."""


@dataclass(frozen=True)
class Record:
    """A configuration with its samples; see the file's docstring."""

    key: Key
    target: MachineKey
    env: tuple[tuple[str, str], ...]
    measure: Measure
    config: tuple[tuple[str, int], ...]
    samples: tuple[Sample, ...]

    @classmethod
    def make(
        cls,
        key: Key,
        target: MachineKey,
        env: Mapping[str, str],
        measure: Measure,
        config: Mapping[str, int],
        samples: Iterable[Sample],
    ) -> Record:
        """In canonical order."""
        return cls(key, target, tuple(sorted(env.items())), measure, tuple(sorted(config.items())), _kept(samples))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The part that the id is made from, as JSON."""
        return {
            "key": self.key.to_json(),
            "target": self.target.to_json(),
            "env": dict(self.env),
            "measure": {"mode": self.measure.mode, "l2": self.measure.l2},
            "config": dict(self.config),
        }

    @cached_property
    def point(self) -> tuple[tuple[str, int], ...]:
        """The configuration as a point of today's space: without knobs that the template has lost since, where they
        had the value that it stands for now, and with those that it has gained. It is what a choice is made from;
        ``config`` is what was measured.
        """
        lost = LOST.get(self.template, {})
        kept = {name: value for name, value in self.config if lost.get(name) != value}
        return tuple(sorted({**GAINED.get(self.template, {}), **kept}.items()))

    @cached_property
    def id(self) -> str:
        return hashlib.sha256(canonical([VERSION, self.identity]).encode()).hexdigest()[:32]

    @cached_property
    def lookup(self) -> str:
        """Hash of all that must match exactly but the bucket: records that compete have the same."""
        return lookup_of(self.key, self.target, self.template, self.measure)

    @property
    def template(self) -> str:
        return dict(self.env)["template"]

    @property
    def toolchain(self) -> tuple[tuple[str, str], ...]:
        """The part of the environment that matches softly: it is shown, not asked for."""
        return tuple((k, v) for k, v in self.env if k != "template")

    @property
    def us(self) -> float | None:
        """The median over samples of their medians; None unless a checked one is ok and none was wrong."""
        if any(s.status == "wrong" for s in self.samples):
            return None
        good = sorted(self._good, key=lambda s: s.us or (0.0, 0.0, 0.0))
        calm = [s for s in good if not s.noisy] or good
        times = sorted(s.us[1] for s in calm if s.us)
        return times[(len(times) - 1) // 2] if times else None

    @property
    def noisy(self) -> bool:
        """Whether no good sample is calm."""
        return all(s.noisy for s in self._good)

    @property
    def _good(self) -> list[Sample]:
        return [s for s in self.samples if s.status == "ok" and s.checked and s.us is not None]

    @property
    def at(self) -> str:
        """When it was last measured."""
        return max((s.at for s in self.samples), default="")

    @property
    def status(self) -> str:
        """``ok`` when its time counts, else the worst that happened."""
        if self.us is not None:
            return "ok"
        bad = [s for s in reversed(STATUS[1:]) if any(x.status == s for x in self.samples)]
        return "wrong" if "wrong" in bad else bad[0] if bad else "unchecked"

    def merged(self, other: Record) -> Record:
        """The same configuration with the samples of both."""
        assert self.id == other.id, "records of different configurations do not merge"
        return replace(self, samples=_kept([*self.samples, *other.samples]))

    def to_line(self) -> str:
        """As one line of JSON, always the same for the same record; no line end."""
        return canonical({"v": VERSION, "id": self.id, **self.identity, "samples": [s.to_json() for s in self.samples]})


def lookup_of(key: Key, target: MachineKey, template: str, measure: Measure) -> str:
    """Hash of the exact part of a query."""
    exact = [key.kind, key.ir, key.dtypes, target.to_json(), template, measure.mode, measure.l2]
    return hashlib.sha256(canonical(exact).encode()).hexdigest()[:24]


def _kept(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """The newest of the different samples, in a fixed order: a union that does not depend on who merged first."""
    return tuple(sorted(set(samples), key=lambda s: (s.at, canonical(s.to_json())))[-MOST_SAMPLES:])


def merge(*groups: Iterable[Record]) -> list[Record]:
    """All records of all groups, one of each id, sorted by id."""
    found: dict[str, Record] = {}
    for group in groups:
        for r in group:
            found[r.id] = found[r.id].merged(r) if r.id in found else r
    return [found[i] for i in sorted(found)]


def canonical(value: object) -> str:
    """JSON with sorted keys and no blanks."""
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
