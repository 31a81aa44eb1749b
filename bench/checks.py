"""Checks that a script makes one after another on a GPU, each reported and written down as soon as it is over."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vortex.errors import VortexError

Wrong = list[str]
"""What a check found wrong, in words; empty where all is right."""


@dataclass(frozen=True)
class Checks:
    """What a script has found, ``wrong`` among it by the names of its checks, and the file that it goes to."""

    found: dict[str, Any]
    out: Path

    def run(self, name: str, made: Callable[[], Wrong]) -> None:
        """Make one check; an error of it counts as wrong."""
        start = time.time()
        try:
            wrong = made()
        except Exception as error:  # so that the other checks still run; it is reported as wrong
            wrong = [f"{type(error).__name__}: {str(error)[:1500]}"]
        self.found["wrong"][name] = wrong
        print(f"{name}: {'right' if not wrong else wrong[:4]} ({time.time() - start:.1f} s)", flush=True)
        self.write()

    def write(self) -> None:
        """Write all that was found so far."""
        self.out.write_text(json.dumps(self.found, indent=1) + "\n")


def refuses(what: str, code: str, call: Callable[[], object]) -> Wrong:
    """What is wrong with how ``call``, which is to be refused with ``code``, ends."""
    try:
        call()
    except VortexError as error:
        return [] if error.code == code else [f"{what}: {error.code} instead of {code}: {error.message}"]
    return [f"{what} is not refused"]
