"""Where a choice is looked up: the user's database, then the project's files, then what is shipped.

The nearest bucket wins before the layer does: a shipped measurement of this very shape says more than the user's of
another. Among records of one bucket the first layer that has a usable one decides, so that a user's own measurement
replaces what others found.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vortex.errors import VortexError
from vortex.install.databases import project_files, shipped_files, switched_off, user_path
from vortex.kinds.buckets import Bucket, fallbacks
from vortex.tune.parse import BadRecordError, parse_line
from vortex.tune.record import Key, MachineKey, Measure, Record, lookup_of, merge
from vortex.tune.store import Store

if TYPE_CHECKING:
    from vortex.schedules.space import Space

log = logging.getLogger("vortex.tune")


class Layer(Protocol):
    """Something that has records."""

    def best(self, lookup: str, bucket: Bucket) -> Iterator[Record]:
        """Usable records of a bucket, the best first."""

    def buckets(self, lookup: str, near: Bucket | None = None) -> list[Bucket]:
        """Those with usable records, in any order; with ``near``, at least those that may stand in for it."""

    def records(self, kind: str | None = None, arch: str | None = None) -> Iterator[Record]:
        """All, or those of one kernel kind and architecture."""


class Lines:
    """Records of JSON Lines files, in memory; a line that is not a record is skipped and logged."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._found: dict[str, dict[Bucket, list[Record]]] | None = None
        self._all: list[Record] = []

    def __str__(self) -> str:
        return ", ".join(map(str, self._paths))

    def _read(self) -> dict[str, dict[Bucket, list[Record]]]:
        if self._found is None:
            self._found = {}
            self._all = merge(*map(_lines_of, self._paths))
            for r in self._all:
                if r.us is not None:
                    self._found.setdefault(r.lookup, {}).setdefault(r.key.bucket, []).append(r)
        return self._found

    def best(self, lookup: str, bucket: Bucket) -> Iterator[Record]:
        found = self._read().get(lookup, {}).get(bucket, [])
        yield from sorted(found, key=lambda r: (r.noisy, r.us, -len(r.samples), r.id))

    def buckets(self, lookup: str, near: Bucket | None = None) -> list[Bucket]:
        return list(self._read().get(lookup, {}))

    def records(self, kind: str | None = None, arch: str | None = None) -> Iterator[Record]:
        self._read()
        yield from (r for r in self._all if kind in (None, r.key.kind) and arch in (None, r.target.arch))


def _lines_of(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    if line.strip():
                        yield parse_line(line)
                except BadRecordError as e:
                    log.warning("%s:%d: a record is skipped: it %s", path, number, e)
    except OSError as e:
        log.warning("%s is skipped: %s", path, e)


@dataclass(frozen=True, slots=True)
class Query:
    """What one kernel of a compilation asks for."""

    key: Key
    target: MachineKey
    template: str
    measure: Measure

    @property
    def lookup(self) -> str:
        return lookup_of(self.key, self.target, self.template, self.measure)


@dataclass(frozen=True, slots=True)
class Hit:
    """A record that answers, where it was, and how many doublings its bucket is off."""

    record: Record
    layer: str
    steps: int


class Layers:
    """Layers by name, the one that decides first."""

    def __init__(self, layers: dict[str, Layer]) -> None:
        self.layers = layers

    def __str__(self) -> str:
        return "; ".join(f"{name}: {layer}" for name, layer in self.layers.items())

    @classmethod
    def default(cls, db: Path | None = None) -> Layers:
        """The user's (``db`` where it is given), the project's, the shipped."""
        if db is None and switched_off():
            return cls({})
        found: dict[str, Layer] = {}
        path = db or user_path()
        if db is not None or path.exists():
            try:
                found["user"] = Store(path, write=False)
            except VortexError as e:
                if db is not None:
                    raise
                log.warning("%s", e.message)
        if project := project_files():
            found["project"] = Lines(project)
        if shipped := shipped_files():
            found["shipped"] = Lines(shipped)
        return cls(found)

    def find(self, query: Query, space: Space | None = None) -> Hit | None:
        """The best configuration for the query's bucket, or for the nearest bucket that has one."""
        wanted, lookup = query.key.bucket, query.lookup
        if (found := self._in(wanted, lookup, space, 0)) is not None:
            return found
        for steps, bucket in fallbacks(wanted, self.buckets(lookup, wanted)):
            if (found := self._in(bucket, lookup, space, steps)) is not None:
                return found
        return None

    def _in(self, bucket: Bucket, lookup: str, space: Space | None, steps: int) -> Hit | None:
        for name, layer in self.layers.items():
            for r in self.best(layer, lookup, bucket):
                if space is None or dict(r.point) in space:
                    return Hit(r, name, steps)
                log.warning("record %s is skipped: its configuration is not in the space of %s", r.id, r.template)
        return None

    def best(self, layer: Layer, lookup: str, bucket: Bucket) -> Iterator[Record]:
        """As the layer's; a damaged one ends early and is logged."""
        try:
            yield from layer.best(lookup, bucket)
        except sqlite3.Error as e:
            log.warning("a tuning database cannot be read: %s", e)

    def buckets(self, lookup: str, near: Bucket | None = None) -> list[Bucket]:
        """Of all layers, each once, ascending; ``near`` as in :class:`Layer`."""
        found: list[Bucket] = []
        for layer in self.layers.values():
            try:
                found += layer.buckets(lookup, near)
            except sqlite3.Error as e:
                log.warning("a tuning database cannot be read: %s", e)
        return sorted(set(found))

    def records(self, kind: str | None = None, arch: str | None = None) -> Iterator[tuple[str, Record]]:
        """All with the name of their layer."""
        for name, layer in self.layers.items():
            yield from ((name, r) for r in layer.records(kind, arch))
