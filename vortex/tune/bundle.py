"""Candidates on their way to the machine that measures them: what a ``.vxb`` folder holds, and reading it.

    out.vxb/bundle.json            what is to be measured, and at which shapes
            base/<flow>.vxa        each flow with default knobs: what surrounds a candidate, and the oracle's IR
            candidates/<hash>.vxa  a few candidates each; a library like any other

Every file but ``bundle.json`` lies in an artifact and is checked against its manifest when it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from vortex.errors import BAD_BUNDLE, writing
from vortex.kinds.kind import KINDS
from vortex.targets.target import TARGETS
from vortex.tune.shapes import Shape
from vortex.untrusted_json import Check, Choice, Length, Pattern, parse, read

FORMAT, VERSION = "vortex-bundle", 1

_LIMIT = 1 << 26


def _inside(path: str) -> bool:
    return ".." not in path and not path.startswith("/") and "\\" not in path


Inside = Annotated[str, Check(_inside, "a path inside the bundle")]
Message = Annotated[str, Pattern("(?s).{0,4096}", "a message")]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration of one kernel of a flow; one that did not build has an ``error`` and no ``symbol``."""

    flow: Inside
    kernel: str
    kind: Annotated[str, Choice(KINDS)]
    ir: str
    dtypes: tuple[str, ...]
    template: str
    config: Mapping[str, int]
    artifact: Inside = ""
    symbol: str = ""
    error: Message = ""

    def to_json(self) -> dict[str, object]:
        return {name: _plain(getattr(self, name)) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is to be measured; ``env`` names the toolchain that built it."""

    path: Path
    target: str
    env: Mapping[str, str]
    shapes: tuple[Shape, ...]
    candidates: tuple[Candidate, ...]

    def base(self, flow: str) -> Path:
        return self.path / "base" / f"{flow}.vxa"

    def write(self) -> None:
        """Write ``bundle.json``."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "target": self.target,
            "env": dict(self.env),
            "shapes": [s.to_json() for s in self.shapes],
            "candidates": [c.to_json() for c in self.candidates],
        }
        with writing(self.path):
            (self.path / "bundle.json").write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _File:
    """``bundle.json``."""

    format: Literal["vortex-bundle"]
    version: Literal[1]
    target: Annotated[str, Choice(TARGETS)]
    env: Mapping[str, str]
    shapes: tuple[Shape, ...]
    candidates: Annotated[tuple[Candidate, ...], Length(0, 1 << 20)]


def read_bundle(path: str | Path) -> Bundle:
    """The bundle at ``path``; VX8008 when there is none, or it is damaged."""
    path = Path(path)
    file = path / "bundle.json"
    try:
        if file.stat().st_size > _LIMIT:
            raise ValueError("bundle.json is too large")
        data = read(_File, parse(file.read_bytes()))
    except OSError as e:
        raise BAD_BUNDLE.at(path=path, why=f"bundle.json cannot be read: {e.strerror or e}") from None
    except ValueError as e:
        raise BAD_BUNDLE.at(path=path, why=f"bundle.json is damaged: {e}") from None
    return Bundle(path, data.target, data.env, data.shapes, data.candidates)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value
