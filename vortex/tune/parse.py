"""Records from text that nobody vouches for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from vortex.kinds.kind import KINDS
from vortex.tune.record import STATUS, VERSION, Key, Knob, MachineKey, Measure, Record, Sample, Word
from vortex.untrusted_json import Check, Choice, JsonError, Length, Pattern, Range, parse, read

MOST_LINE = 1 << 16
"""Bytes of a line; no record is longer."""

Microseconds = Annotated[float, Check(lambda us: 0 < us < 1e9, "a number of microseconds above 0")]


Version = Annotated[int, Check(lambda v: v == VERSION, f"version {VERSION}")]
Env = Annotated[Mapping[Knob, Word], Length(0, 8), Check(lambda env: "template" in env, "an object with a template")]
Config = Annotated[Mapping[Knob, Annotated[int, Range(-(1 << 31), (1 << 31) - 1)]], Length(1, 24)]


class BadRecordError(ValueError):
    """Why a text is not a record."""


@dataclass(frozen=True, slots=True)
class _Times:
    p10: Microseconds
    p50: Microseconds
    p90: Microseconds

    def rounded(self) -> tuple[float, float, float]:
        return round(self.p10, 3), round(self.p50, 3), round(self.p90, 3)


def _in_order(times: _Times) -> bool:
    p10, p50, p90 = times.rounded()
    return 0 < p10 <= p50 <= p90


@dataclass(frozen=True, slots=True)
class _Sample:
    """A sample as a line has it."""

    status: Annotated[str, Choice(STATUS)]
    checked: bool
    us: Annotated[_Times, Check(_in_order, "p10 <= p50 <= p90")] | None
    n: Annotated[int, Range(0, 1 << 31)]
    by: Annotated[Mapping[Knob, Annotated[str, Pattern("[ -~]{0,200}", "printable text")]], Length(0, 8)]

    def made(self) -> Sample:
        us = None if self.us is None else self.us.rounded()
        return Sample(self.status, self.checked, us, self.n, tuple(sorted(self.by.items())))


def _timed(sample: _Sample) -> bool:
    return (sample.us is not None) == (sample.status == "ok")


def _whole(key: Key) -> bool:
    """Whether the bucket has powers of two on the axes of the kernel kind; :class:`JsonError` says where it has not."""
    axes = KINDS[key.kind].axes
    for axis, n in key.bucket._asdict().items():
        if (n > 0) != (axis in axes) or n & (n - 1):
            needed = "a power of two" if axis in axes else f"0 for {key.kind}"
            raise JsonError(needed, n).within(axis).within("bucket")
    return True


@dataclass(frozen=True, slots=True)
class _Line:
    """A record as a line has it."""

    v: Version
    id: Word
    key: Annotated[Key, Check(_whole, "a key")]
    target: MachineKey
    env: Env
    measure: Measure
    config: Config
    samples: Annotated[
        tuple[Annotated[_Sample, Check(_timed, "times where the status is ok, and null elsewhere,")], ...],
        Length(1, 1024),
    ]


def parse_line(line: str | bytes) -> Record:
    """The record of one line.

    Raises:
        BadRecordError: it is none; nothing else is ever raised for any text.
    """
    if len(line) > MOST_LINE:
        raise BadRecordError(f"has {len(line)} bytes; no record is longer than {MOST_LINE}")
    try:
        found = read(_Line, parse(line))
    except JsonError as e:
        raise BadRecordError(f"is not a record: {e}") from None
    samples = [s.made() for s in found.samples]
    made = Record.make(found.key, found.target, found.env, found.measure, found.config, samples)
    if found.id != made.id:
        raise BadRecordError(f"has the id {found.id}; {made.id}, the hash of its content, is needed")
    return made
