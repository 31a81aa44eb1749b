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

from vortex.errors import BAD_BUNDLE
from vortex.kinds.kind import KINDS
from vortex.targets.target import TARGETS
from vortex.tune.shapes import Shape

FORMAT, VERSION = "vortex-bundle", 1

_LIMIT = 1 << 26


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration of one kernel of a flow; one that did not build has an ``error`` and no ``symbol``."""

    flow: str
    kernel: str
    kind: str
    ir: str
    dtypes: tuple[str, ...]
    template: str
    config: Mapping[str, int]
    artifact: str = ""
    symbol: str = ""
    error: str = ""

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
        (self.path / "bundle.json").write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


def read_bundle(path: str | Path) -> Bundle:
    """The bundle at ``path``; VX8008 when there is none, or it is damaged."""
    path = Path(path)
    file = path / "bundle.json"
    try:
        if file.stat().st_size > _LIMIT:
            raise ValueError("bundle.json is too large")
        data = json.loads(file.read_bytes())
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise ValueError(f"it is no {FORMAT} of version {VERSION}")
        if data["target"] not in TARGETS:
            raise ValueError(f"its target {data['target']!r} is unknown")
        shapes = tuple(Shape(**s) for s in data["shapes"])
        candidates = tuple(_candidate(c) for c in data["candidates"])
        return Bundle(path, data["target"], {str(k): str(v) for k, v in data["env"].items()}, shapes, candidates)
    except OSError as e:
        raise BAD_BUNDLE.at(path=path, why=f"bundle.json cannot be read: {e.strerror or e}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise BAD_BUNDLE.at(path=path, why=f"bundle.json is damaged: {type(e).__name__} {str(e)[:120]}") from None


def _candidate(data: Mapping[str, object]) -> Candidate:
    made = Candidate(**{**data, "dtypes": tuple(data["dtypes"])})  # type: ignore[arg-type]
    for name in (made.artifact, made.flow):
        if ".." in name or name.startswith("/") or "\\" in name:
            raise ValueError(f"{name!r} leads out of the bundle")
    if made.kind not in KINDS or not all(isinstance(x, int) for x in made.config.values()):
        raise ValueError(f"a candidate of kind {made.kind!r}")
    return made


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value
