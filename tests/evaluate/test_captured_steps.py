"""What ``capture`` records of a model, and flows planted wrong on recorded steps of a real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluate.prompts import prompts
from tests.evaluate.test_lanes import Reversed, WithoutRecent, by_lane, evaluated
from vortex.errors import VortexError
from vortex.evaluate.flow_rules import Eager
from vortex.evaluate.models import Model
from vortex.evaluate.outcomes import Lane
from vortex.evaluate.prefill import PromptCache
from vortex.evaluate.rules import Rule, baseline
from vortex.evaluate.run import judge_trace
from vortex.evaluate.shared_pages import SharedPages
from vortex.evaluate.traces import capture, judge, read_trace, trace_bytes, write_trace
from vortex.spec import Spec

REAL = Path(__file__).with_name("keyvalue.safetensors")


def test_a_trace_has_what_the_dense_lane_read(tiny: Model, tmp_path: Path) -> None:
    """The first layer's queries are those of any lane: rules read of it what they read in the model."""
    (prompt,) = prompts(tiny, 250, 1)
    trace = capture(tiny, prompt, PromptCache(tmp_path))
    file = tmp_path / "steps.safetensors"
    write_trace(trace, file)
    assert 0 < file.stat().st_size - trace_bytes(tiny, prompt, 3, 2) < 2000
    found = read_trace(file)
    assert (found.layers, found.steps, found.prompt) == ((0, 1, 2), len(prompt.answer), 249)
    assert (found.evidence, found.scale) == (prompt.evidence, trace.scale)
    in_model = by_lane(evaluated(tiny, tmp_path, ["quest"], [prompt], budgets=(4,), backend="eager"))
    outcomes, failures = judge_trace(found, {"quest": "quest"}, (4,), "eager")
    assert not failures
    for o in outcomes:
        if o.lane.rule != "random":  # which depends on the prompt as well
            assert o.mass[0] == pytest.approx(in_model[str(o.lane)][0].mass[0], abs=2e-3), o.lane


def test_layers_and_heads_may_be_chosen(tiny: Model, tmp_path: Path) -> None:
    (prompt,) = prompts(tiny, 100, 1)
    cache = PromptCache(tmp_path)
    whole, part = capture(tiny, prompt, cache), capture(tiny, prompt, cache, [2], [1])
    assert part.layers == (2,)
    assert torch.equal(part.k[2][0], whole.k[2][1]) and torch.equal(part.q[2], whole.q[2][:, 2:])
    for layers, heads in (([3], []), ([0], [2])):
        with pytest.raises(VortexError, match=r"pages are selected in no (layer|KV head)") as caught:
            capture(tiny, prompt, cache, layers, heads)
        assert caught.value.code == "VX9124"
    with pytest.raises(VortexError, match="have no answer to decode"):
        capture(tiny, replace(prompt, answer=()), cache)


@pytest.mark.full
def test_compiled_and_eager_read_the_same_pages_of_real_attention() -> None:
    trace = read_trace(REAL)
    flows = {"quest": "quest", "mass": "mass"}
    compiled, eager = (judge_trace(trace, flows, (4, 16), backend) for backend in ("compiled", "eager"))
    assert not compiled[1] and not eager[1]
    for a, b in zip(compiled[0], eager[0], strict=True):
        assert (a.lane, a.recall, a.pages) == (b.lane, b.recall, b.pages)
        assert a.mass == pytest.approx(b.mass, abs=1e-6)
        assert a.error == pytest.approx(b.error, abs=1e-4)


def test_planted_mistakes_are_seen_on_real_attention() -> None:
    trace = read_trace(REAL)
    names = ("right", "reversed", "no recent", "random")

    def rules(pages: SharedPages) -> list[Rule]:
        flow = Eager("mass", Spec(head_dim=64, group=3, dtype="f32"), 1, (0, 1), torch.device("cpu"), None)
        flow.begin(pages)
        right, other, last = (flow.lane(4) for _ in range(3))
        return [right, Reversed(other), WithoutRecent(last), baseline("random", 4, "0")]

    outcomes, failures = judge(trace, [Lane(n, 4) for n in names], rules, torch.float32)
    assert not failures
    found = {o.lane.rule: o for o in outcomes}
    mass = {name: float(np.mean(o.mass)) for name, o in found.items()}
    assert mass["reversed"] < mass["random"] + 0.05 < mass["right"]
    assert mass["no recent"] < mass["right"] - 0.02
    for name in ("reversed", "no recent"):
        assert found[name].error.mean() > 2 * found["right"].error.mean()
