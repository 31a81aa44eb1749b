"""JSON that nobody vouches for becomes the values that annotations describe, or an error that names the place.

    @dataclass(frozen=True)
    class Kernel:
        name: Annotated[str, Pattern("[a-z]+", "a name")]
        args: Annotated[tuple[str, ...], Length(0, 64)]

    read(Kernel, json.loads(text))

An annotation is a dataclass or a named tuple (an object with exactly its fields; with :class:`Partial`, those without a
default), ``int``, ``float``, ``str``, ``bool``, ``X | None``, a ``Literal``, ``tuple[X, ...]`` or ``tuple[X, Y]`` (a
list), ``Mapping[K, V]`` or ``frozenset[X]`` (a list); ``object`` is any JSON. ``Annotated`` adds constraints:
:class:`Range`, :class:`Length`, :class:`Pattern`, :class:`Choice`, :class:`Check`, :class:`Raw`. Nothing is converted:
a ``bool`` is no ``int``, an ``int`` is a ``float``, NaN and infinities are not numbers, and a string is printable
unless a :class:`Pattern` says more.

What reads an annotation is made once; a value that is right costs no text of where it is.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from math import isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from vortex.errors import VortexError, nearest

T = TypeVar("T")
Reader = Callable[[Any], Any]

TEXT = 4096
"""Characters of a string without a constraint of its own."""
ITEMS = 4096
"""Entries of a list without a constraint of its own."""
MOST = 2**63 - 1
"""No integer is larger, whatever its constraint."""


@dataclass(frozen=True, slots=True)
class Range:
    """A number from ``least`` to ``most``."""

    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Length:
    """A list, an object or a string of ``least`` to ``most`` entries or characters."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Pattern:
    """A string, or a key, that the regular expression matches whole; ``needed`` says it in words."""

    regex: str
    needed: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these names; where they are a table's, the table may grow."""

    table: Collection[str] = dataclasses.field(hash=False)
    needed: str = "one of {names}"

    def __str__(self) -> str:
        return self.needed.format(names=", ".join(self.table))


@dataclass(frozen=True, slots=True)
class Check:
    """A value of which ``holds`` is true; ``needed`` says it in words."""

    holds: Callable[[Any], bool]
    needed: str


@dataclass(frozen=True, slots=True)
class Partial:
    """An object in which fields that have a default may be left out; with ``more``, others may stand there too."""

    more: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """Any JSON: the class that has such a field checks it."""


class JsonError(ValueError):
    """Why a value is not what was asked for; :attr:`where` is the way to it, as in ``targets.cpu.kernels[0].args``."""

    def __init__(self, needed: str, got: object) -> None:
        super().__init__(needed)
        self.needed, self.got = needed, got
        self._path: list[str] = []

    def within(self, step: str | int) -> JsonError:
        """The same, seen from the object or list around it."""
        self._path.append(f"[{step}]" if isinstance(step, int) else f".{shown(step).strip(chr(39))}")
        return self

    @property
    def where(self) -> str:
        return "".join(reversed(self._path)).lstrip(".")

    def __str__(self) -> str:
        where = f"{self.where} is " if self._path else "it is "
        return f"{where}{shown(self.got)}; {self.needed} is needed"


class KeysError(JsonError):
    """An object whose keys are not those that were asked for."""

    def __init__(self, unknown: list[str], missing: list[str], known: tuple[str, ...]) -> None:
        super().__init__("", None)
        self.unknown, self.missing, self.known = unknown, missing, known

    def __str__(self) -> str:
        where = self.where or "it"
        if self.unknown:
            return f"{where} has no '{shown(self.unknown[0]).strip(chr(39))}'{nearest(self.unknown[0], self.known)}"
        return f"{where} lacks {', '.join(map(repr, self.missing))}"


def parse(text: str | bytes) -> object:
    """The JSON in ``text``, UTF-8 where it is bytes; no key twice, neither NaN nor infinities.

    Raises:
        JsonError: it is not JSON, or nested too deeply.
    """
    try:
        return _DECODER.decode(text.decode() if isinstance(text, bytes) else text)
    except JsonError:
        raise
    except (ValueError, RecursionError) as e:
        raise NoJsonError(str(e)) from None


class NoJsonError(JsonError):
    """A text that is not JSON."""

    def __init__(self, why: str) -> None:
        super().__init__(why, None)

    def __str__(self) -> str:
        return f"it is not JSON: {shown(self.needed)[1:-1][:120]}"


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NoJsonError("an object names a key twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise NoJsonError(f"{name} is not a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


@overload
def read(annotation: type[T], value: object) -> T: ...


@overload
def read(annotation: Any, value: object) -> Any: ...


def read(annotation: Any, value: object) -> Any:
    """``value``, which came out of a JSON parser, as what ``annotation`` describes.

    Raises:
        JsonError: it is something else, or nested too deeply.
    """
    try:
        return reader_of(annotation)(value)
    except RecursionError:
        raise JsonError("less nesting", value) from None


def shown(value: object) -> str:
    """A short text of anything, in ASCII."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    try:
        text = ascii(value)
    except ValueError:  # an integer of thousands of digits has no text
        return f"some {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


@cache
def reader_of(annotation: Any) -> Reader:
    """What reads values of ``annotation``."""
    constraints: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        constraints = tuple(rest)
    if _one(constraints, Raw):
        annotation = object
    origin, args = get_origin(annotation), get_args(annotation)
    named = isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields")
    if named or (isinstance(annotation, type) and dataclasses.is_dataclass(annotation)):
        found = _record(annotation, _one(constraints, Partial))
    elif annotation in _PLAIN:
        return _PLAIN[annotation](constraints)
    elif origin is Literal:
        found = _literal(args)
    elif origin in (Union, UnionType):
        found = _optional(args)
    elif origin in (tuple, frozenset):
        found = _list(origin, args, constraints)
    elif origin in (dict, Mapping):
        found = _mapping(args, constraints)
    else:
        raise TypeError(f"{annotation!r} is not an annotation that JSON can be read by")
    return _checked(found, constraints)


def _checked(found: Reader, constraints: tuple[Any, ...]) -> Reader:
    for check in (c for c in constraints if isinstance(c, Check)):
        found = _with(found, check)
    return found


def _with(found: Reader, check: Check) -> Reader:
    def read(value: Any) -> Any:
        made = found(value)
        if not check.holds(made):
            raise JsonError(check.needed, value)
        return made

    return read


def _one(constraints: tuple[Any, ...], kind: type[T]) -> T | None:
    return next((c for c in constraints if isinstance(c, kind)), None)


def _integer(constraints: tuple[Any, ...]) -> Reader:
    bounds = _one(constraints, Range) or Range(-MOST - 1, MOST)
    least, most = int(bounds.least), int(bounds.most)
    needed = f"an integer from {least} to {most}"

    def read(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise JsonError(needed, value)
        return value

    return _checked(read, constraints)


def _number(constraints: tuple[Any, ...]) -> Reader:
    bounds = _one(constraints, Range)

    def read(value: Any) -> float:
        if (type(value) is not float and (type(value) is not int or not -MOST <= value <= MOST)) or not isfinite(value):
            raise JsonError("a finite number", value)
        if bounds and not bounds.least <= value <= bounds.most:
            raise JsonError(f"a number from {bounds.least:g} to {bounds.most:g}", value)
        return float(value)

    return _checked(read, constraints)


def _text(constraints: tuple[Any, ...]) -> Reader:
    pattern, choice = _one(constraints, Pattern), _one(constraints, Choice)
    if choice is not None:
        table = choice.table

        def read_choice(value: Any) -> str:
            if type(value) is not str or value not in table:
                raise JsonError(str(choice), value)
            return value

        return _checked(read_choice, constraints)
    if pattern is not None:
        match, needed = re.compile(pattern.regex).fullmatch, pattern.needed

        def read_pattern(value: Any) -> str:
            if type(value) is not str or not match(value):
                raise JsonError(needed, value)
            return value

        return _checked(read_pattern, constraints)
    length = _one(constraints, Length) or Length(0, TEXT)

    def read(value: Any) -> str:
        if type(value) is not str or not length.least <= len(value) <= length.most or not value.isprintable():
            raise JsonError(f"a printable string of at most {length.most} characters", value)
        return value

    return _checked(read, constraints)


def _boolean(constraints: tuple[Any, ...]) -> Reader:
    def read(value: Any) -> bool:
        if type(value) is not bool:
            raise JsonError("true or false", value)
        return value

    return _checked(read, constraints)


def _nothing(constraints: tuple[Any, ...]) -> Reader:
    def read(value: Any) -> None:
        if value is not None:
            raise JsonError("null", value)

    return read


def _any(constraints: tuple[Any, ...]) -> Reader:
    """Any JSON: numbers are finite and have 64 bits, strings are printable."""
    text, key = _text((Length(0, 1 << 16),)), _text(())
    integer, number = _integer(()), _number(())

    def read(value: Any) -> Any:
        if value is None or type(value) is bool:
            return value
        if type(value) is int:
            return integer(value)
        if type(value) is str:
            return text(value)
        if isinstance(value, list):
            return list(items(value))
        if isinstance(value, dict):
            return entries(value)
        return number(value)

    items, entries = _repeated(read, Length(0, ITEMS), tuple), _entries(key, read, Length(0, ITEMS))
    return _checked(read, constraints)


_PLAIN: dict[Any, Callable[[tuple[Any, ...]], Reader]] = {
    int: _integer,
    float: _number,
    str: _text,
    bool: _boolean,
    NoneType: _nothing,
    object: _any,
}


def _literal(values: tuple[Any, ...]) -> Reader:
    needed = f"one of {', '.join(map(str, values))}" if len(values) > 1 else str(values[0])

    def read(value: Any) -> Any:
        # not `in`: 1 equals true
        if not any(type(value) is type(x) and value == x for x in values):
            raise JsonError(needed, value)
        return value

    return read


def _optional(args: tuple[Any, ...]) -> Reader:
    kinds = [a for a in args if a is not NoneType]
    if len(kinds) != 1 or len(args) != 2:
        raise TypeError("of unions, only X | None can be read")
    found = reader_of(kinds[0])
    return lambda value: None if value is None else found(value)


def _list(origin: Any, args: tuple[Any, ...], constraints: tuple[Any, ...]) -> Reader:
    if origin is frozenset or args[-1] is Ellipsis:
        return _repeated(reader_of(args[0]), _one(constraints, Length) or Length(0, ITEMS), origin)
    readers = [reader_of(a) for a in args]

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(readers):
            raise JsonError(f"a list of {len(readers)}", value)
        return tuple(_at(r, x, i) for i, (r, x) in enumerate(zip(readers, value, strict=True)))

    return read


def _at(read: Reader, value: object, step: str | int) -> Any:
    try:
        return read(value)
    except JsonError as e:
        raise e.within(step) from None


def _repeated(item: Reader, length: Length, made: Callable[[list[Any]], Any]) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, list) or not length.least <= len(value) <= length.most:
            few = f"{length.least} to" if length.least else "at most"
            raise JsonError(f"a list of {few} {length.most} entries", value)
        found: list[Any] = []
        try:
            for x in value:
                found.append(item(x))
        except JsonError as e:
            raise e.within(len(found)) from None
        return made(found)

    return read


def _mapping(args: tuple[Any, ...], constraints: tuple[Any, ...]) -> Reader:
    return _entries(reader_of(args[0]), reader_of(args[1]), _one(constraints, Length) or Length(0, ITEMS))


def _entries(key: Reader, item: Reader, length: Length) -> Reader:
    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not length.least <= len(value) <= length.most:
            few = f"{length.least} to" if length.least else "at most"
            raise JsonError(f"an object of {few} {length.most} entries", value)
        found: dict[str, Any] = {}
        name = ""
        try:
            for name, x in value.items():
                key(name)
                found[name] = item(x)
        except JsonError as e:
            raise e.within(name) from None
        return found

    return read


def _record(cls: Any, partial: Partial | None) -> Reader:
    hints = get_type_hints(cls, include_extras=True)
    names = tuple(getattr(cls, "_fields", None) or (f.name for f in dataclasses.fields(cls)))
    readers = tuple((name, reader_of(hints[name])) for name in names)
    if hasattr(cls, "_fields"):
        free = set(cls._field_defaults)
    else:
        missing = dataclasses.MISSING
        free = {f.name for f in dataclasses.fields(cls) if f.default is not missing or f.default_factory is not missing}
    known, needed = frozenset(names), frozenset(names) - free if partial else frozenset(names)
    more = partial is not None and partial.more

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise JsonError("an object", value)
        if value.keys() != known:
            unknown = [] if more else sorted(value.keys() - known)
            missing = [name for name in names if name in needed and name not in value]
            if unknown or missing:
                raise KeysError(unknown, missing, names)
        made: dict[str, Any] = {}
        name = ""
        try:
            for name, item in readers:
                if name in value:
                    made[name] = item(value[name])
        except JsonError as e:
            raise e.within(name) from None
        try:
            return cls(**made)
        except VortexError as e:
            raise Refused(e) from None

    return read


class Refused(JsonError):
    """A value whose parts are right, but which its class refuses."""

    def __init__(self, error: VortexError) -> None:
        super().__init__(error.message, None)

    def __str__(self) -> str:
        return f"{self.where or 'it'}: {self.needed}"
