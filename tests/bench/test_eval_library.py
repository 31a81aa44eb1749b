"""The results of docs/accuracy.md are those of bench/results/eval, and a run keeps what it is asked to."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from tests.evaluate.made_up import DENSE, SETTINGS, costs, evaluation, scores
from vortex.evaluate.outcomes import Lane
from vortex.evaluate.statistics import Failure, summarise

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return import_module("eval_library")


def test_the_page_has_the_results(bench: ModuleType) -> None:
    page = (ROOT / "docs" / "accuracy.md").read_text()
    files = sorted((ROOT / "bench" / "results" / "eval").glob("*.json"))
    assert bench.written(page, files) == page, "run bench/eval_library.py --write docs/accuracy.md"


def test_tables(bench: ModuleType, tmp_path: Path) -> None:
    every = scores(DENSE, [1] * 4) + scores(Lane("quest", 4), [1, 0, 0, 0], logprob=-1.25, mass=0.5)
    every += scores(Lane("quest", 16), [1, 1, 1, 0], mass=0.75) + scores(DENSE, [0] * 4, task="hard")
    summary = summarise(every, SETTINGS, costs(), [Failure("broken", "VX1005: no\nmore")])
    run = {"device": "H", "date": "2026-11-29 00:00:00", "commit": "abc", "command": "", "seconds": 1.0,
           "left_out": {"x": "reads latent rows"}, "result": summary.as_json()}  # fmt: skip
    file = tmp_path / "a.json"
    file.write_text(json.dumps(run))
    page = f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter\n"
    made = bench.written(page, [file])
    assert made.startswith(f"before\n{bench.BEGIN}\n### tiny on H\n") and made.endswith(f"\n{bench.END}\nafter\n")
    assert "old" not in made
    assert bench.written(made, [file]) == made
    assert "| dense | 1.00 | 0/0 | 0.00 | 1.00 | 1.00 | 1.00 | 4300 | 1009 |" in made
    assert "| `quest` | .25 / .75 | 3/0 / 1/0 | -0.25 / 0.00 | 1.00 / 1.00 | .50 / .75 | .50 / .75 | 58 / 84 |" in made
    assert "| 4096 tokens | needle | hard |" in made
    assert "| `quest` | .25 / .75 | - |" in made
    assert "hard at 4096 (.00)" in made
    assert "Left out: `x` reads latent rows." in made
    assert "Failed: `broken` VX1005: no." in made


def test_flows_that_cannot_be_asked_about_are_left_out(bench: ModuleType) -> None:
    kept, left = bench.flows()
    assert {"quest", "mass"} <= set(kept)
    assert left["latent_topk"] == "reads latent rows"
    assert left["learned_query"] == "has weights that need training"


def test_a_run(bench: ModuleType, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps(summarise(evaluation(), SETTINGS, costs()).as_json()))
    command = [sys.executable, "-c", f"print(open({str(data)!r}).read())"]
    made = bench.measure(["quest"], "abc", command, ["--tokens", "4096"])
    assert (made["commit"], made["result"]["schema"], made["left_out"]) == ("abc", 1, {})
    assert "CPU" in made["device"]
    with pytest.raises(SystemExit, match="exit code 3"):
        bench.measure(["quest"], "abc", [sys.executable, "-c", "raise SystemExit(3)"], [])
