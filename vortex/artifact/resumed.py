"""What an artifact's provenance says of being resumed: from which stage, and whether its texts were edited before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from vortex.untrusted_json import JsonError, Length, read

KEY = "resumed"
"""In the provenance of an artifact and the manifest of a dump."""
Texts = Annotated[tuple[Annotated[str, Length(1, 1024)], ...], Length(0, 4096)]


@dataclass(frozen=True, slots=True)
class Resumed:
    """A compilation that began with files of an earlier one.

    ``edited`` are those that are not what was dumped, ``unknown`` those that no dump vouches for.
    """

    stage: Annotated[str, Length(1, 16)]
    edited: Texts = ()
    unknown: Texts = ()

    def __str__(self) -> str:
        said = [f"edited since they were dumped: {', '.join(self.edited)}"] if self.edited else []
        said += (
            [f"whether these were edited is unknown, for no dump names them: {', '.join(self.unknown)}"]
            if self.unknown
            else []
        )
        return f"from {self.stage}; {'; '.join(said) or 'nothing was edited'}"


def resumptions(about: Mapping[str, object]) -> tuple[Resumed, ...]:
    """What a provenance or a dump's manifest says, the earliest first; nothing where it is damaged."""
    try:
        return read(Annotated[tuple[Resumed, ...], Length(0, 256)], about.get(KEY, []))
    except JsonError:
        return ()


def as_json(resumed: tuple[Resumed, ...]) -> dict[str, object]:
    """What :func:`resumptions` reads; nothing for a compilation that began with a flow."""
    found = [{"stage": r.stage, "edited": list(r.edited), "unknown": list(r.unknown)} for r in resumed]
    return {KEY: found} if found else {}
