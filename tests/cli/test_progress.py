"""How far a compilation is, and how long the rest takes."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from vortex.cli import compile as command
from vortex.cli.show import so_far


def test_kernels_are_told_at_most_every_two_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    told = command._telling()
    for done in range(7):
        told("sm_90a", done, 6)
        clock[0] += 1.5
    assert capsys.readouterr().err.splitlines() == [
        "kernels compiled for sm_90a: 2 of 6, about 6 s left",
        "kernels compiled for sm_90a: 4 of 6, about 3 s left",
    ]
    for done in range(4):
        told("sm_100a", done, 3)
    assert capsys.readouterr().err == "", "what the cache has is not worth a line"


def test_nothing_done_says_nothing_of_what_is_left() -> None:
    assert so_far(time.monotonic(), 0, 9) == "0 of 9"
    assert so_far(time.monotonic(), 9, 9) == "9 of 9"


def test_nvcc_tells_each_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    from vortex.codegen.build import nvcc

    def done(name: str) -> Future[Path]:
        found: Future[Path] = Future()
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel.ptx").write_text("")
        found.set_result(tmp_path / name)
        return found

    monkeypatch.setattr(nvcc, "find_toolkit", lambda: None)
    monkeypatch.setattr(nvcc, "_started", lambda *a: {name: done(name) for name in ("select", "attend")})
    monkeypatch.setattr(nvcc, "_link", lambda *a: None)
    monkeypatch.setattr(nvcc, "_resources", lambda folder: None)
    told: list[tuple[int, int]] = []
    nvcc.build_sources({}, "sm_90a", tmp_path / "lib.so", lambda *x: told.append(x))
    assert told == [(0, 2), (1, 2), (2, 2)]
