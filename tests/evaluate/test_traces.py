"""Recorded steps: what is in the file, what is refused, and how rules are judged by it without a model.

``keyvalue.safetensors`` was made by ``vortex capture --task keyvalue --tokens 1024 --layers 5,20 --kv-heads 0``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vortex.cli import eval as eval_command
from vortex.cli.main import main
from vortex.errors import VortexError
from vortex.evaluate.cost import Workload, cost_of_baseline
from vortex.evaluate.outcomes import BASELINES, Outcome
from vortex.evaluate.run import judge_trace
from vortex.evaluate.traces import Trace, read_trace, write_trace
from vortex.runtime.safetensors import read_safetensors, write_safetensors

FILE = Path(__file__).with_name("keyvalue.safetensors")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return read_trace(FILE)


@pytest.fixture(scope="module")
def judged(trace: Trace) -> dict[str, Outcome]:
    flows = {"quest": "quest", "mass": "mass", "block_topk": "block_topk"}
    made, failures = judge_trace(trace, flows, (4,), "eager")
    assert not failures
    return {o.lane.rule: o for o in made}


def test_the_file_says_what_it_is(trace: Trace) -> None:
    assert trace.layers == (5, 20) and trace.steps == 8
    assert trace.k[5].shape == (1, trace.prompt + trace.steps, 64) and trace.q[5].shape == (8, 3, 64)
    assert trace.about["task"] == "keyvalue" and trace.about["heads"] == [0]


def test_what_is_written_is_read(trace: Trace, tmp_path: Path) -> None:
    write_trace(trace, tmp_path / "t.safetensors")
    again = read_trace(tmp_path / "t.safetensors")
    assert (again.scale, again.evidence, again.about) == (trace.scale, trace.evidence, trace.about)
    for side in "kvq":
        for n in trace.layers:
            assert torch.equal(getattr(again, side)[n], getattr(trace, side)[n])


def test_rules_are_told_apart(judged: dict[str, Outcome]) -> None:
    assert judged["dense"].mass.min() == pytest.approx(1) and judged["dense"].error.max() < 1e-6
    for rule in judged.keys() - {"dense"}:
        assert judged[rule].pages == 4 + 3
        assert (judged[rule].mass <= judged["oracle"].mass + 1e-6).all(), rule
    read = {rule: o.mass.mean() for rule, o in judged.items()}
    assert read["mass"] > read["random"] and read["quest"] > read["random"]
    assert read["oracle"] - read["mass"] < 0.02


def test_mass_is_that_of_a_softmax_by_hand(trace: Trace, judged: dict[str, Outcome]) -> None:
    """``recent`` reads the first page and the last six."""
    layer, shares = trace.layers.index(20), []
    for step in range(trace.steps):
        length = trace.prompt + step + 1
        logits = trace.q[20][step].double() @ trace.k[20][0, :length].double().T * trace.scale
        first = max(0, (length + 15) // 16 - 6) * 16
        weights = logits.softmax(-1)
        shares.append((weights[:, :16].sum() + weights[:, first:].sum()) / 3)
    assert judged["recent"].mass[layer, 0] == pytest.approx(float(torch.stack(shares).mean()), rel=1e-4)


def test_a_flow_that_fails_leaves_the_others(trace: Trace, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import vortex\n\n@vortex.register('bad')\nclass Bad(vortex.vFlow):\n    pass\n")
    made, failures = judge_trace(trace, {"bad": f"{bad}:bad", "quest": "quest"}, (4,), "eager")
    assert set(failures) == {"bad"}
    assert {o.lane.rule for o in made} == {*BASELINES, "quest"}


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda x: x.pop(name)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no scale": (without("scale"), "scale"),
    "no keys": (without("k.5"), "k.5"),
    "other values": (lambda x: x.update({"v.5": x["v.5"][:, 1:]}), "K and V of layer 5"),
    "other queries": (lambda x: x.update({"q.20": x["q.20"][..., :32]}), "q of layer 20"),
    "evidence outside": (lambda x: x.update(evidence=torch.tensor([[5, 10**6]])), "evidence"),
    "no JSON": (lambda x: x.update(about=torch.zeros(3, dtype=torch.uint8)), ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(name: str, tmp_path: Path) -> None:
    damage, said = BROKEN[name]
    tensors = dict(read_safetensors(FILE))
    damage(tensors)
    write_safetensors(tmp_path / "t.safetensors", tensors)
    with pytest.raises(VortexError, match="VX9124") as found:
        read_trace(tmp_path / "t.safetensors")
    assert said in str(found.value)


def test_the_command_judges_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "quest", "mass", "--trace", str(FILE), "--budgets", "4", "--backend", "eager", "--json"]
    assert main([*words, "--cost-batch", "3", "--cost-tokens", "4096", "--target", "sm_100a"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {x["rule"] for x in found["lanes"]} == {"quest", "mass", *BASELINES}
    at = Workload(batch=3, tokens=4096, target="sm_100a")
    told = found["settings"]["workload"]
    assert (told["batch"], told["tokens"], told["target"]) == (at.batch, at.tokens, at.target)
    [dense] = [x for x in found["lanes"] if x["rule"] == "dense"]
    assert dense["microseconds"] == pytest.approx(cost_of_baseline("dense", 0, at).microseconds, rel=1e-5)
    assert found["settings"]["layers"] == [5, 20] and not any(x["invalid"] for x in found["lanes"])


@pytest.mark.parametrize("option", ["--cost-batch", "--cost-tokens"])
def test_costs_of_nothing_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "quest", "--trace", str(FILE), option, "0"]) == 2
    assert option in capsys.readouterr().err


def test_costs_are_for_what_the_library_takes() -> None:
    assert Workload() == Workload(batch=eval_command.COST_BATCH, tokens=eval_command.COST_TOKENS)


def test_a_trace_that_asks_for_nothing(trace: Trace, tmp_path: Path) -> None:
    write_trace(replace(trace, q={}), tmp_path / "t.safetensors")
    with pytest.raises(VortexError, match="VX9124"):
        read_trace(tmp_path / "t.safetensors")
