"""The reader of JSON that nobody vouches for: it converts nothing, and its errors say where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vortex.errors import BAD_OPTION
from vortex.untrusted_json import (
    Check,
    Choice,
    JsonError,
    Length,
    Partial,
    Pattern,
    Range,
    Raw,
    parse,
    read,
    reader_of,
)

Name = Annotated[str, Pattern("[a-z]{1,8}", "a lower-case name")]
TABLE = {"cpu": 1}


class Pair(NamedTuple):
    left: int
    right: Annotated[int, Range(0, 9)] = 0


@dataclass(frozen=True)
class Kernel:
    name: Name
    args: Annotated[tuple[Name, ...], Length(1, 3)]
    kind: Literal["select", 1] = "select"


@dataclass(frozen=True)
class Picky:
    n: int

    def __post_init__(self) -> None:
        if self.n == 13:
            raise BAD_OPTION.at(option="n", why="is 13", hint="")


@dataclass(frozen=True)
class File:
    targets: Mapping[Name, tuple[Kernel, ...]]
    more: object = None


GOOD = {"targets": {"cpu": [{"name": "a", "args": ["q", "k"], "kind": "select"}]}, "more": {"x": [1, None, 0.5, "y"]}}


def test_what_is_right_becomes_values() -> None:
    assert read(File, GOOD) == File({"cpu": (Kernel("a", ("q", "k")),)}, GOOD["more"])
    assert read(Annotated[Kernel, Partial()], {"name": "a", "args": ["q"]}) == Kernel("a", ("q",))
    assert read(Annotated[Kernel, Partial(more=True)], {"name": "a", "args": ["q"], "z": 1}) == Kernel("a", ("q",))
    assert read(Pair, {"left": 1, "right": 2}) == Pair(1, 2)
    assert read(tuple[int, str], [1, "a"]) == (1, "a")
    assert read(frozenset[int], [1, 2, 1]) == {1, 2}
    assert read(int | None, None) is None and read(int | None, 3) == 3
    assert isinstance(read(float, 1), float)
    assert read(Annotated[Kernel | int, Raw()], [1]) == [1]


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (int, True, "it is True; an integer from"),
        (int, 1.0, "an integer"),
        (int, "1", "an integer"),
        (int, 2**63, "an integer from"),
        (Annotated[int, Range(1, 8)], 9, "it is 9; an integer from 1 to 8 is needed"),
        (float, True, "a finite number"),
        (float, float("inf"), "a finite number"),
        (float, float("nan"), "a finite number"),
        (float, 10**30, "a finite number"),
        (Annotated[float, Range(0, 1)], 1.5, "a number from 0 to 1"),
        (bool, 1, "true or false"),
        (str, "\x1b[31m", "printable"),
        (str, "\ud800", "printable"),
        (str, "x" * 5000, "at most 4096 characters"),
        (Annotated[str, Length(1, 9)], "", "printable string"),
        (Name, "A", "a lower-case name"),
        (Name, "a\n", "a lower-case name"),
        (Annotated[str, Choice(TABLE)], "gpu", "it is 'gpu'; one of cpu is needed"),
        (Annotated[str, Choice(TABLE)], ["cpu"], "one of cpu"),
        (Literal[1], True, "it is True; 1 is needed"),
        (tuple[int, ...], {"0": 1}, "it is an object of 1; a list of at most 4096"),
        (Annotated[tuple[int, ...], Length(1, 2)], [1, 2, 3], "a list of 1 to 2 entries"),
        (tuple[int, int], [1], "a list of 2"),
        (tuple[int, ...], [1, "x"], "[1] is 'x'; an integer"),
        (Annotated[Mapping[str, int], Length(0, 1)], {"a": 1, "b": 2}, "an object of at most 1 entries"),
        (Annotated[int, Check(lambda n: n % 2 == 0, "an even number")], 3, "it is 3; an even number is needed"),
        (object, [float("nan")], "[0] is nan; a finite number"),
        (object, {"a": {"\x00": 1}}, "a printable string"),
        (object, {"a": [2**70]}, "a[0] is"),
        (Picky, {"n": 13}, "is 13"),
        (Kernel, [], "it is a list of 0; an object is needed"),
        (Kernel, {"name": "a", "args": ["q"]}, "it lacks 'kind'"),
        (Kernel, {"name": "a", "args": ["q"], "kind": 1, "agrs": 1}, "it has no 'agrs', did you mean 'args'?"),
        (Annotated[Kernel, Partial()], {"name": "a"}, "it lacks 'args'"),
        (File, {"targets": {"cpu": [GOOD["targets"]]}, "more": 1}, "targets.cpu[0] has no 'cpu'"),
    ],
)
def test_what_is_wrong_is_named(annotation: Any, value: object, says: str) -> None:
    with pytest.raises(JsonError) as found:
        read(annotation, value)
    assert says in str(found.value)
    assert str(found.value).isprintable() and len(str(found.value)) < 300


def test_numbers_that_have_no_text() -> None:
    for annotation in (int, float, object):
        with pytest.raises(JsonError, match=r"^it is some int; "):
            read(annotation, 10**5000)


def test_errors_say_where() -> None:
    bad = json.loads(json.dumps(GOOD))
    bad["targets"]["cpu"][0]["args"][1] = 7
    with pytest.raises(JsonError, match=r"^targets\.cpu\[0\]\.args\[1\] is 7; a lower-case name is needed$"):
        read(File, bad)


def deep(levels: int) -> object:
    found: object = 1
    for _ in range(levels):
        found = [found]
    return found


def test_depth_is_no_crash() -> None:
    with pytest.raises(JsonError, match="nesting"):
        read(object, deep(100_000))


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "1" * 5000, "NaN", "[Infinity]", '{"a":1,"a":2}', b"\xff", b"\0"]
)
def test_what_is_no_json(text: str | bytes) -> None:
    with pytest.raises(JsonError, match="not JSON"):
        parse(text)


@pytest.mark.parametrize("annotation", [set[int], int | str, complex, list])
def test_an_annotation_that_cannot_be_read_is_a_mistake_of_ours(annotation: Any) -> None:
    with pytest.raises(TypeError):
        reader_of(annotation)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_anything_is_read_or_refused(value: object) -> None:
    for annotation in (File, Kernel, Pair, object, tuple[int, ...], Mapping[str, object], float | None):
        with suppress(JsonError):
            read(annotation, value)
