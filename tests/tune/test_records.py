"""Records: one text each, merging is set union, nothing foreign gets in."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tune.records import record, records
from vortex.tune.exchange import read_lines, write_lines
from vortex.tune.parse import MOST_LINE, BadRecordError, parse_line
from vortex.tune.record import MOST_SAMPLES, Record, merge

groups = st.lists(records(), max_size=6)


@given(records())
@settings(max_examples=60, deadline=None)
def test_text_and_back(r: Record) -> None:
    again = parse_line(r.to_line())
    assert again == r
    assert again.to_line() == r.to_line()
    assert (again.id, again.lookup, again.us, again.status) == (r.id, r.lookup, r.us, r.status)


@given(groups, groups, groups)
@settings(max_examples=60, deadline=None)
def test_merge_is_set_union(a: list[Record], b: list[Record], c: list[Record]) -> None:
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, a) == merge(a) == merge(merge(a))
    assert {r.id for r in merge(a, b)} == {r.id for r in [*a, *b]}
    assert write_lines([*a, *b]) == write_lines([*b, *a])
    assert read_lines(write_lines(a) + write_lines(b)).records == merge(a, b)


def test_what_makes_an_id() -> None:
    one = record()
    assert record(us=99.0, at="2027-01-01T00:00:00Z").id == one.id
    others = [record({"warps": 8}), record(ir="vx1:01"), record(template="cuda.attend@2"), record(kind="append")]
    assert len({r.id for r in [one, *others]}) == 5


def test_time_of_a_record() -> None:
    at = [f"2026-01-0{i}T00:00:00Z" for i in range(1, 10)]
    [both] = merge([record(us=10.0)], [record(us=12.0, at=at[1])], [record(us=11.0, at=at[2])])
    assert both.us == 11.0
    assert not both.noisy
    [calm] = merge([record(us=10.0)], [record(us=5.0, at=at[1], spread=2.0)])
    assert calm.us == 10.0, "a noisy sample counts only where there is no other"
    assert record(checked=False).us is None
    assert record(checked=False).status == "unchecked"
    [wrong] = merge([record()], [record(status="wrong", at=at[1])])
    assert wrong.us is None
    assert wrong.status == "wrong"
    [crashed] = merge([record()], [record(status="crash", at=at[1])])
    assert crashed.us == 10.0, "a machine that died once says little of one that did not"
    many = merge(*[[record(us=float(i + 1), at=f"2026-01-01T00:{i:02d}:00Z")] for i in range(60)])
    assert len(many[0].samples) == MOST_SAMPLES
    assert many[0].samples[0].us is not None and many[0].samples[0].us[1] == 29.0, "the newest are kept"


GOOD = record().to_line()


def edited(**changes: Any) -> str:
    """GOOD with fields replaced, by path with double underscores; the id is made to fit where the shape allows."""
    data = json.loads(GOOD)
    for path, value in changes.items():
        at = data
        *way, last = path.split("__")
        for step in way:
            at = at[int(step)] if isinstance(at, list) else at[step]
        at[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("x", "not JSON"),
        ("[]", "object"),
        ("null", "object"),
        (GOOD[:-1], "not JSON"),
        (GOOD[:-1] + ',"more":1}', "more"),
        (GOOD[:-1] + ',"v":1}', "twice"),
        ("[" * 30000, "not JSON"),
        ('{"a":' * 12000, "not JSON"),
        (" " * (MOST_LINE + 1), "longer"),
        (GOOD.replace('"n":25', '"n":NaN'), "NaN"),
        (GOOD.replace('"n":25', '"n":1e999'), "integer"),
        (GOOD.replace('"n":25', '"n":' + "9" * 5000), "not JSON"),
        (edited(v=2), "version 1"),
        (edited(v=True), "v is True; an integer"),
        (edited(id="00" * 16), "the hash"),
        (edited(key__kind="os.system"), "one of"),
        (edited(key__bucket__rows=63), "power of two"),
        (edited(key__bucket__columns=64), "0 for attend"),
        (edited(key__bucket__rows=-1), "integer"),
        (edited(key__dtypes=["complex128"]), "element types"),
        (edited(key__ir="../../etc/passwd"), "short name"),
        (edited(env__template="a b"), "short name"),
        (edited(env={}), "template"),
        (edited(target__sms=0), "integer"),
        (edited(measure__l2="hot"), "l2"),
        (edited(config={}), "config is an object of 0; an object of 1 to 24"),
        (edited(config={"warps": "4"}), "integer"),
        (edited(config={"warps": 4.0}), "integer"),
        (edited(config={"warps": True}), "integer"),
        (edited(config={"warps": 1 << 40}), "integer"),
        (edited(config={"__class__": 4}), "lower-case"),
        (edited(samples=[]), "a list"),
        (edited(samples__0__status="fast"), "one of"),
        (edited(samples__0__us=None), "times where"),
        (edited(samples__0__us__p50=-1.0), r"samples\[0\]\.us\.p50 is -1.0; .* above 0"),
        (edited(samples__0__us__p10=1e8), "p10 <= p50"),
        (edited(samples__0__by={"at": "\u001b[31m"}), "printable"),
        (edited(samples__0__by={"at": "\ud800"}), "printable"),
        ('{"\ud800": 1}', "has no"),
        ('{"v":1,"id":0,"key":0,"target":0,"env":0,"measure":0,"config":0,"samples":[0]}', "id is 0"),
    ],
)
def test_what_is_no_record(line: str, why: str) -> None:
    with pytest.raises(BadRecordError, match=why):
        parse_line(line)
    reading = read_lines(line.encode("utf-8", "surrogatepass") + b"\n" + GOOD.encode())
    assert [r.to_line() for r in reading.records] == [GOOD]
    assert len(reading.problems) == (1 if line.strip() else 0)
    assert all(p.isprintable() for p in reading.problems)


def hostile(random: random.Random) -> bytes:
    """A record with something done to it."""
    data = bytearray(GOOD.encode())
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(data) + 1)
        match random.randrange(6):
            case 0:
                del data[at : at + random.randint(1, 40)]
            case 1:
                data[at:at] = bytes(random.randrange(256) for _ in range(random.randint(1, 8)))
            case 2:
                data[at:at] = random.choice((b"{", b"[", b"]", b"}", b'"', b"null", b"-1e99", b"NaN", b"\0", b"\n"))
            case 3:
                end = random.randint(at, len(data))
                data[at:at] = data[at:end]
            case 4 if data:
                data[at % len(data)] = random.randrange(256)
            case _:
                data[at:at] = "".join(random.choices(string.printable, k=5)).encode()
    return bytes(data)


def fuzz(count: int, seed: int) -> int:
    """How many of ``count`` hostile texts were still records; all others raise BadRecordError and nothing else."""
    chance, fine = random.Random(seed), 0
    for _ in range(count):
        text = hostile(chance)
        try:
            r = parse_line(text)
        except BadRecordError:
            continue
        fine += 1
        assert parse_line(r.to_line()) == r
    return fine


def test_hostile_lines() -> None:
    assert fuzz(500, 0) < 50


@pytest.mark.full
def test_many_hostile_lines() -> None:
    assert fuzz(10_000, 1) < 1000


def test_a_knob_that_a_template_lost() -> None:
    listed, grid = (record({"warps": 4, "planned": p}) for p in (1, 0))
    assert dict(listed.point) == {"warps": 4}
    assert dict(grid.point) == dict(grid.config), "what it measured is in no space any more"
    assert record({"warps": 4, "planned": 1}, template="cuda.attend@2").point == (("planned", 1), ("warps", 4))
    assert parse_line(listed.to_line()).id == listed.id != record({"warps": 4}).id
