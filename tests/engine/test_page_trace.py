"""Page traces of an engine: the pages beside those that probes saw, when they are taken, and what becomes of the file.

Stand-ins take SGLang's place.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.standins import stood_in
from tests.engine.test_probe import hooks, ready
from vortex.errors import VortexError
from vortex.page_traces.figures import figures_of
from vortex.runtime.page_trace import Wanted
from vortex.runtime.sglang.page_trace import PageTrace
from vortex.runtime.sglang.watch import WatchedStep


@pytest.fixture(autouse=True)
def _standing_in() -> Iterator[None]:
    with stood_in():
        yield


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def traced(monkeypatch: pytest.MonkeyPatch, folder: Path, more: str = "") -> Path:
    """The file of a trace of every second step."""
    monkeypatch.setenv("VORTEX_TRACE", f"{folder}/t.jsonl:every 2 steps{more}")
    return folder / "t.jsonl"


def test_a_trace_and_a_probe_of_the_same_steps_say_the_same(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = traced(monkeypatch, tmp_path, ":mass")
    monkeypatch.setenv("VORTEX_PROBE", f"{tmp_path}/p.jsonl:every 4 steps:pages")
    world, draw = ready(artifact, [1, 2])
    for watch in world.backend.watches:
        watch.requests = ("a", "b")
    for _ in range(9):
        world.say([1, 2], draw)
    head, *rest = lines(file)
    assert (head["vortex_trace"], head["source"], head["flow"], head["every"]) == (1, "SGLang", "quest", 2)
    assert (head["kv_heads"], head["dense_layers"], head["mass"]) == (2, [1], True)
    reads = {x["step"]: x for x in rest if "layer" in x}
    assert list(reads) == [2, 4, 6, 8]  # layer 0 alone: 1 is dense
    probed = lines(tmp_path / "p.jsonl")[1:]
    assert [x["step"] for x in probed] == [4, 8]
    for x in probed:
        mine = reads[x["step"]]
        for name in ("requests", "tokens", "pages", "which", "mass", "best"):
            assert mine[name] == x[name], name
        for r, h in ((0, 0), (1, 1)):
            assert sum(mine["held"][r][h]) == pytest.approx(mine["mass"][r][h], abs=1e-5)


def test_steps_and_kernels_are_timed(artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = traced(monkeypatch, tmp_path)
    world, draw = ready(artifact, [1])
    for _ in range(7):
        world.say([1], draw)
    times = [x for x in lines(file) if "recorded" in x]
    assert [x["step"] for x in times] == [2, 4, 6]
    assert all(x["unrecorded"] > 0 for x in times)
    for x in times:
        # of the two layers one selects, both append and attend
        assert set(x["kernels"]) == {k.name for k in world.backend._library.target.kernels}
        assert 0 < sum(x["kernels"].values()) < x["recorded"]
    assert "mass" not in lines(file)[1]
    figures = figures_of(file)
    assert (figures.steps, figures.requests[0].name, figures.requests[0].steps) == (3, "row 1", 3)
    assert "one step in 2" in figures.cost()


@pytest.mark.parametrize("every", [1, 3])
def test_each_step_has_the_launches_of_its_own(
    every: int, artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A clock that moves with launches alone says how many there were; prompts in between are not among them."""
    monkeypatch.setenv("VORTEX_TRACE", f"{tmp_path}/t.jsonl:{every}")
    world, draw = ready(artifact, [1])
    ticks = itertools.count()
    monkeypatch.setattr("vortex.runtime.stopwatch.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    for n in range(8):
        world.say([1], draw)
        if n % 2:
            world.give(2, [3])
            world.read([2], 10, draw)
            world.lengths.pop(2)
    times = [x for x in lines(tmp_path / "t.jsonl") if "recorded" in x]
    assert [x["step"] for x in times] == list(range(every, 8, every))
    launches = {"plan": 1, "append": 1, "select": 1, "attend": 2}  # the second layer is dense and only attends
    assert all(x["kernels"] == launches for x in times)
    assert all((x["unrecorded"] is None) == (every == 1) for x in times)


def test_a_trace_changes_no_token(artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = []
    for on in (True, False):
        with monkeypatch.context() as patch:
            if on:
                traced(patch, tmp_path)
            world, draw = ready(artifact, [1, 2])
            assert (type(world.backend._eager) is WatchedStep) == on
            said.append([world.say([1, 2], draw) for _ in range(4)])
    assert all(torch.equal(a, b) for one, other in zip(*said, strict=True) for a, b in zip(one, other, strict=True))


def test_kernels_that_graphs_record_are_not_timed(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    traced(monkeypatch, tmp_path)
    world, _ = ready(artifact, [1])
    backend = world.backend
    backend.init_cuda_graph_state(2, 2)
    assert backend._captured._decode.library is backend._library
    assert backend._eager._decode.library is backend.trace.library is not backend._library


def test_the_variable_hooks_what_a_probe_hooks(artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without = hooks(monkeypatch)
    traced(monkeypatch, tmp_path)
    more = [target.split()[-1] for target in hooks(monkeypatch) if target not in without]
    assert more == ["_not_where_a_look_is_due", "_name_requests"]


def test_what_the_variable_may_say(tmp_path: Path) -> None:
    name = str(tmp_path / "t.jsonl")
    assert Wanted.read("") is None
    for text, want in {
        name: (100, False, 32),
        f"{name}:every 20 steps:mass": (20, True, 32),
        f"{name}:8 MB:7": (7, False, 8),
        f"{name}:mass:1MB": (100, True, 1),
    }.items():
        made = Wanted.read(text)
        assert made is not None
        assert (str(made.file), made.every, made.mass, made.limit) == (name, *want)
        assert made.of_rank(2) == Path(f"{name}.2")
    for text, says in {
        ":5": "it names no file",
        f"{name}:0": "every 0",
        f"{name}:pages": "'pages' after the file is neither 'every N steps' nor 'mass' nor 'N MB'",
        f"{name}:0 MB": "neither",
        f"{tmp_path}/no/such/folder": "No such file or directory",
    }.items():
        with pytest.raises(VortexError, match="VORTEX_TRACE") as raised:
            Wanted.read(text)
        assert raised.value.code == "VX9015"
        assert says in str(raised.value)


@pytest.mark.parametrize("trouble", ["disk", "memory", "limit"])
def test_what_goes_wrong_later_is_said_once_and_stops_nothing(
    artifact: Path, trouble: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = traced(monkeypatch, tmp_path)
    world, draw = ready(artifact, [1])
    trace: PageTrace = world.backend.trace
    if trouble == "disk":
        file.unlink()
        file.mkdir()
    elif trouble == "limit":
        trace._writer._left = 300
    else:

        def none_left(*args: Any) -> Any:
            raise torch.OutOfMemoryError("no memory")

        monkeypatch.setattr(WatchedStep, "which", none_left)
    with caplog.at_level(logging.WARNING):
        for _ in range(8):
            assert all(out.isfinite().all() for out in world.say([1], draw))
    (said,) = (record.getMessage() for record in caplog.records)
    assert "no more pages are taken (VORTEX_TRACE), serving goes on" in said
    assert {"disk": "Is a directory", "memory": "no memory", "limit": "has 32 MB, its limit"}[trouble] in said
    assert trace.steps == 8
    if trouble == "limit":
        assert figures_of(file).ended == "the limit of 32 MB was reached"
        assert figures_of(file).steps == 1


def test_a_file_that_cannot_be_written_refuses_the_start(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_TRACE", "/no/such/folder/t.jsonl")
    with pytest.raises(VortexError) as raised:
        ready(artifact, [1])
    assert raised.value.code == "VX9015"
