"""Outcomes on disk, one JSON line each: what was decoded once is not decoded again."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from vortex.errors import writing
from vortex.evaluate.outcomes import Lane, Outcome

VERSION = 1
"""Of how outcomes are made and written; those of another one are not read."""
DIGITS = 6


def key(*parts: object) -> str:
    """What decides an outcome, as 20 hexadecimal digits."""
    return hashlib.sha256(repr((VERSION, *parts)).encode()).hexdigest()[:20]


class Outcomes:
    """The file ``path``; lines that are damaged, as of a run that was killed, are passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Outcome] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            return
        for line in text.splitlines():
            try:
                found = json.loads(line)
                self._known[found["key"]] = read(found)
            except (ValueError, KeyError, TypeError):
                continue

    def get(self, at: str) -> Outcome | None:
        return self._known.get(at)

    def add(self, made: Iterable[tuple[str, Outcome]]) -> None:
        """Append; VX7004 when the disk refuses."""
        lines = []
        for at, outcome in made:
            self._known[at] = outcome
            lines.append(json.dumps({"key": at, **written(outcome)}) + "\n")
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                size = file.seek(0, 2)
                if size:
                    file.seek(size - 1)
                    if file.read(1) != b"\n":  # a run that was killed left half a line
                        lines.insert(0, "\n")
                file.write("".join(lines).encode())


def written(outcome: Outcome) -> dict[str, object]:
    """As JSON; those of layers and heads in 6 digits, NaN as null."""
    made = asdict(outcome)
    for name, x in made.items():
        if isinstance(x, np.ndarray):
            made[name] = [[_number(n) for n in row] for row in x.tolist()]
        elif isinstance(x, float) and x != x:
            made[name] = None
    return made


def _number(x: float) -> float | None:
    return None if x != x else float(f"{x:.{DIGITS}g}")


def read(found: dict[str, object]) -> Outcome:
    """What :func:`written` made; KeyError, TypeError or ValueError for anything else."""
    given = {k: v for k, v in found.items() if k != "key"}
    lane = given["lane"]
    if not isinstance(lane, dict):
        raise TypeError("lane")
    given["lane"] = Lane(**lane)
    for name in ("mass", "error"):
        given[name] = np.array(given[name], dtype=np.float64)
    for name in ("score", "logprob", "recall", "pages"):
        x = given[name]
        given[name] = float("nan") if x is None else float(x)  # type: ignore[arg-type]
    return Outcome(**given)  # type: ignore[arg-type]
