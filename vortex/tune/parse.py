"""Records from text that nobody vouches for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import NoReturn

from vortex.ir.types import DTYPES
from vortex.kinds.buckets import LIMIT, Bucket
from vortex.kinds.kind import KINDS
from vortex.tune.record import STATUS, VERSION, Key, MachineKey, Measure, Record, Sample

MOST_LINE = 1 << 16
"""Bytes of a line; no record is longer."""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+@-]{0,95}")
_TEXT = re.compile(r"[ -~]{0,200}")
_KNOB = re.compile(r"[a-z][a-z0-9_]{0,31}")
_LONGEST_US = 1e9


class BadRecordError(ValueError):
    """Why a text is no record."""


def parse_line(line: str | bytes) -> Record:
    """The record of one line.

    Raises:
        BadRecordError: it is none; nothing else is ever raised for any text.
    """
    if len(line) > MOST_LINE:
        raise BadRecordError(f"has {len(line)} bytes; no record is longer than {MOST_LINE}")
    try:
        text = line.decode() if isinstance(line, bytes) else line
        data = _DECODER.decode(text)
    except BadRecordError:
        raise
    except (ValueError, RecursionError) as e:
        raise BadRecordError(f"is no JSON: {str(e)[:120]}") from None
    return _record(data)


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRecordError("names a field twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise BadRecordError(f"holds {name}")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _record(data: object) -> Record:
    d = _object(data, "the record", ("v", "id", "key", "target", "env", "measure", "config", "samples"))
    if d["v"] != VERSION or isinstance(d["v"], bool):
        _fail("v", f"version {VERSION}", d["v"])
    samples = d["samples"]
    if not isinstance(samples, list) or not 1 <= len(samples) <= 1024:
        _fail("samples", "a list of 1 to 1024", samples)
    found = Record.make(
        _key(d["key"]),
        _machine_key(d["target"]),
        _env(d["env"]),
        _measure(d["measure"]),
        _config(d["config"]),
        [_sample(s, f"samples[{i}]") for i, s in enumerate(samples)],
    )
    if d["id"] != found.id:
        _fail("id", f"{found.id}, the hash of its content", d["id"])
    return found


def _key(value: object) -> Key:
    d = _object(value, "key", ("kind", "ir", "bucket", "dtypes"))
    kind = d["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        _fail("key.kind", f"one of {', '.join(KINDS)}", kind)
    sizes = _object(d["bucket"], "key.bucket", ("rows", "columns", "kept"))
    for axis, n in sizes.items():
        number = _integer(n, f"key.bucket.{axis}", 0, LIMIT)
        if (number > 0) != (axis in KINDS[kind].axes) or number & (number - 1):
            _fail(f"key.bucket.{axis}", "a power of two" if axis in KINDS[kind].axes else f"0 for {kind}", n)
    dtypes = d["dtypes"]
    if not isinstance(dtypes, list) or len(dtypes) > 16 or not all(isinstance(t, str) and t in DTYPES for t in dtypes):
        _fail("key.dtypes", "a list of element types", dtypes)
    return Key(kind, _word(d["ir"], "key.ir"), Bucket(**sizes), tuple(dtypes))  # type: ignore[arg-type]


def _machine_key(value: object) -> MachineKey:
    d = _object(value, "target", ("arch", "sms", "smem"))
    sms = _integer(d["sms"], "target.sms", 1, 1 << 16)
    return MachineKey(_word(d["arch"], "target.arch"), sms, _integer(d["smem"], "target.smem", 0, 1 << 30))


def _env(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or "template" not in value or len(value) > 8:
        _fail("env", "an object with a template", value)
    return {_knob(k, "a key of env"): _word(v, f"env.{k[:32]}") for k, v in value.items()}


def _measure(value: object) -> Measure:
    d = _object(value, "measure", ("mode", "l2"))
    mode, l2 = d["mode"], d["l2"]
    if mode not in ("cudagraph", "wall") or l2 not in ("cold", "warm", "none"):
        _fail("measure", "a mode of cudagraph, wall and an l2 of cold, warm, none", value)
    return Measure(str(mode), str(l2))


def _config(value: object) -> dict[str, int]:
    if not isinstance(value, dict) or not 1 <= len(value) <= 24:
        _fail("config", "an object of 1 to 24 knobs", value)
    return {_knob(k, "a knob"): _integer(v, f"config.{k[:32]}", -(1 << 31), (1 << 31) - 1) for k, v in value.items()}


def _sample(value: object, where: str) -> Sample:
    d = _object(value, where, ("status", "checked", "us", "n", "by"))
    if d["status"] not in STATUS:
        _fail(f"{where}.status", f"one of {', '.join(STATUS)}", d["status"])
    if not isinstance(d["checked"], bool):
        _fail(f"{where}.checked", "true or false", d["checked"])
    by = d["by"]
    if not isinstance(by, dict) or len(by) > 8:
        _fail(f"{where}.by", "an object of at most 8", by)
    for k, v in by.items():
        _knob(k, f"a key of {where}.by")
        if not isinstance(v, str) or not _TEXT.fullmatch(v):
            _fail(f"{where}.by.{k}", "printable text", v)
    us = None if d["us"] is None else _times(d["us"], f"{where}.us")
    if (us is not None) != (d["status"] == "ok"):
        _fail(f"{where}.us", "times where the status is ok, and null elsewhere", d["us"])
    n = _integer(d["n"], f"{where}.n", 0, 1 << 31)
    return Sample(str(d["status"]), d["checked"], us, n, tuple(sorted(by.items())))


def _times(value: object, where: str) -> tuple[float, float, float]:
    d = _object(value, where, ("p10", "p50", "p90"))
    for name, x in d.items():
        if isinstance(x, bool) or not isinstance(x, int | float) or not 0 < x < _LONGEST_US or not isfinite(x):
            _fail(f"{where}.{name}", "microseconds above 0", x)
    p10, p50, p90 = (round(float(d[n]), 3) for n in ("p10", "p50", "p90"))  # type: ignore[arg-type]
    if not 0 < p10 <= p50 <= p90:
        _fail(where, "p10 <= p50 <= p90", value)
    return p10, p50, p90


def _object(value: object, where: str, names: tuple[str, ...]) -> Mapping[str, object]:
    if not isinstance(value, dict):
        _fail(where, "an object", value)
    if odd := value.keys() ^ set(names):
        raise BadRecordError(f"{where} lacks or should not have: {', '.join(sorted(map(ascii, odd)))[:120]}")
    return value


def _integer(value: object, where: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        _fail(where, f"an integer from {least} to {most}", value)
    return value


def _word(value: object, where: str) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        _fail(where, "a short name", value)
    return value


def _knob(value: object, where: str) -> str:
    if not isinstance(value, str) or not _KNOB.fullmatch(value):
        _fail(where, "a lower-case name", value)
    return value


def _fail(where: str, want: str, got: object) -> NoReturn:
    shown = str(type(got).__name__) if isinstance(got, list | dict) else repr(got)[:60]
    raise BadRecordError(f"{where}: {want} is needed, not {shown}")
