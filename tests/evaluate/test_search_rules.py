"""The example that searches for rules: on a program that stands for ``vortex eval``."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vortex.evaluate.cost import Workload, cost_of_flow
from vortex.flow.flow import find_flow
from vortex.spec import Spec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STUB = """
import json, pathlib, sys, time
files = [w for w in sys.argv[1:] if w.endswith(".py")]
with open({calls!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if {slow}:
    time.sleep(60)
names = [pathlib.Path(f).stem for f in files]
for f in files:
    compile(open(f).read(), f, "exec")
print(json.dumps({{
    "verdicts": [
        dict(flow=n, budget=b, answers=0.1 if n == "r00" else 0.9, bytes=1.0, microseconds=1.0, worst_head=0.5)
        for n in names if n != {broken!r} for b in (4, 16)
    ],
    "failures": [dict(rule=n, message="VX1005") for n in names if n == {broken!r}],
}}))
"""


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return import_module("search_rules")


def command(folder: Path, slow: bool = False, broken: str = "") -> str:
    stub = folder / "stub.py"
    stub.write_text(STUB.format(calls=str(folder / "calls"), slow=slow, broken=broken))
    return f"{sys.executable} {stub}"


def board(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "leaderboard.jsonl").read_text().splitlines()]


def run(search: ModuleType, folder: Path, *words: str, **stub: Any) -> None:
    search.main(["--folder", str(folder), "--command", command(folder, **stub), *words])


def test_it_keeps_a_leaderboard(search: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(search, tmp_path, "--count", "2", "--", "--tokens", "8192")
    first, second = board(tmp_path)
    assert (first["name"], [v["answers"] for v in first["verdicts"]]) == ("r00", [0.1, 0.1])
    out = capsys.readouterr().out.splitlines()
    assert out[-3].split()[:2] == ["1", second["name"]]
    assert out[-2].split()[:2] == ["2", "r00"]
    [call] = (tmp_path / "calls").read_text().splitlines()
    assert json.loads(call)[2:] == ["--tokens", "8192", "--json"]


def test_it_goes_on_where_it_stopped(search: ModuleType, tmp_path: Path) -> None:
    run(search, tmp_path, "--count", "2", "--at-once", "1")
    with (tmp_path / "leaderboard.jsonl").open("a") as lines:
        lines.write('{"name": "r0')  # killed while it wrote
    run(search, tmp_path, "--count", "3", "--at-once", "1")
    assert len((tmp_path / "calls").read_text().splitlines()) == 3
    names = [e["name"] for e in search.entries(tmp_path / "leaderboard.jsonl")]
    assert names == [v.name for v in search.variations(3, 0)]


def test_a_rule_that_fails_does_not_stop_it(search: ModuleType, tmp_path: Path) -> None:
    run(search, tmp_path, "--count", "2", broken="r00")
    first, second = board(tmp_path)
    assert (first["error"], first["verdicts"], "error" in second) == ("VX1005", [], False)


def test_no_json_is_told(search: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search.main(["--folder", str(tmp_path), "--count", "1", "--command", f"{sys.executable} -c 'raise SystemExit(70)'"])
    assert board(tmp_path)[0]["error"] == "exit code 70"
    assert "1 tried, 1 of them with errors" in capsys.readouterr().out


def test_time_ends_and_what_was_amid_is_tried_again(search: ModuleType, tmp_path: Path) -> None:
    run(search, tmp_path, "--count", "2", "--hours", str(1 / 3600), slow=True)
    assert not (tmp_path / "leaderboard.jsonl").exists()
    run(search, tmp_path, "--count", "2")
    assert len(board(tmp_path)) == 2


def test_variations_are_flows(search: ModuleType, tmp_path: Path) -> None:
    every = search.variations(50, 0)
    assert len({v.name for v in every}) == len({v.chosen for v in every}) == 50
    assert every == search.variations(50, 0) != search.variations(50, 1)
    at = Workload(batch=1, tokens=512, kv_heads=1, spec=Spec(head_dim=64, group=3))
    for v in every[:2]:
        file = tmp_path / f"{v.name}.py"
        file.write_text(v.text)
        assert find_flow(str(file)).flow_name == v.name
        assert cost_of_flow(find_flow(str(file)), [4], at)[4].bytes > 0
