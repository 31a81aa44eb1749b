"""What a flow is compiled for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from vortex.errors import BAD_OPTION, TARGET_STAGE, UNKNOWN_TARGET, nearest_or_all

STAGES = ("flow", "page", "tir", "src", "lib")
"""Every stage in order; ``vortex.driver`` runs them."""


@dataclass(frozen=True, slots=True)
class Target:
    """A machine to compile for; ``stages`` are the ones its compilation can reach so far."""

    name: str
    kind: Literal["cpu", "cuda"]
    arch: str
    about: str
    stages: tuple[str, ...] = STAGES

    @property
    def last(self) -> str:
        return self.stages[-1]

    def require(self, stage: str) -> None:
        """VX4002 when the target does not get as far as ``stage``."""
        if stage not in self.stages:
            raise TARGET_STAGE.at(target=self.name, stage=stage, last=self.last)


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("cpu", "cpu", "native", "this processor, through LLVM, all cores"),
        Target("sm_90a", "cuda", "sm_90a", "NVIDIA H100, H200"),
        Target("sm_100a", "cuda", "sm_100a", "NVIDIA B200"),
    )
}

ALIASES = {"sm_90": "sm_90a", "sm_100": "sm_100a"}
"""Names people write for a target whose instructions need the architecture-specific one."""


def _stderr(text: str) -> None:
    print(text, file=sys.stderr)


def parse_targets(text: str, say: Callable[[str], None] = _stderr) -> tuple[Target, ...]:
    """The targets of ``"cpu,sm_90"``, each once; ``say`` hears of names that were normalised.

    Raises:
        VortexError: VX4001 for an unknown name, VX7001 when there is none at all.
    """
    found = find_targets(text.split(","), say)
    if not found:
        raise BAD_OPTION.at(option="--target", why="names no target", hint=f"e.g. --target {','.join(TARGETS)}")
    return found


def find_targets(given: Iterable[str | Target], say: Callable[[str], None]) -> tuple[Target, ...]:
    """The targets of these names, each once; blank names stand for none. ``say`` hears of names that were normalised.

    Raises:
        VortexError: VX4001 for an unknown name.
    """
    found: dict[str, Target] = {}
    for x in given:
        if isinstance(x, Target):
            found[x.name] = x
            continue
        if not (name := str(x).strip()):
            continue
        full = ALIASES.get(name, name)
        if full not in TARGETS:
            raise UNKNOWN_TARGET.at(name=name, nearest=nearest_or_all(name, TARGETS))
        if full != name:
            say(f"target {name}: compiling for {full} (its kernels use instructions of that architecture alone)")
        found[full] = TARGETS[full]
    return tuple(found.values())
