"""The stopwatch on a library that does nothing: whose time it takes, and on a GPU by which events."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from vortex.runtime import stopwatch
from vortex.runtime.library import Library
from vortex.runtime.stopwatch import Stopwatch


@dataclass(frozen=True)
class Named:
    """A manifest of two kernels."""

    targets: Any = field(
        default_factory=lambda: {
            "cpu": SimpleNamespace(kernels=[SimpleNamespace(symbol=f"k_{n}", name=n) for n in ("plan", "attend")])
        }
    )


def library(clock: list[float], kind: str) -> Library:
    """Kernels that take the time they are called with, and give it back; and a function that is no kernel."""

    def run(seconds: float) -> float:
        clock[0] += seconds
        return seconds

    functions = {"k_plan": run, "k_attend": run, "vortex_set_num_threads": run}
    manifest: Any = Named()
    device: Any = SimpleNamespace(kind=kind)
    return Library(manifest, "cpu", functions, runs_on=device)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_kernels_are_timed_while_it_is_on(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waited = [0.0], list[float]()

    class Event:
        def record(self) -> None:
            self.at = clock[0]

        def synchronize(self) -> None:
            waited.append(self.at)

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at - self.at)

    monkeypatch.setattr(stopwatch, "_event", Event)
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    given = library(clock, kind)
    watch = Stopwatch(given)
    run = watch.library.functions
    assert run["vortex_set_num_threads"] is given.functions["vortex_set_num_threads"]
    run["k_plan"](5.0)
    assert watch.read() == {}
    watch.on = True
    assert run["k_attend"](2.0) == 2.0
    run["k_plan"](1.0)
    clock[0] += 100.0
    run["k_attend"](0.5)
    assert list(watch.read().items()) == [("attend", 2.5), ("plan", 1.0)]
    assert len(waited) == (3 if kind == "cuda" else 0)
    assert watch.read() == {}
    watch.on = False
    run["k_plan"](5.0)
    assert watch.read() == {}
