"""Lanes over shared pages: against transformers' own attention, against each other, and with flows planted wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluate.prompts import prompts
from vortex.errors import VortexError
from vortex.evaluate.decode import decode
from vortex.evaluate.flow_rules import Eager
from vortex.evaluate.lanes import Lanes
from vortex.evaluate.models import Model
from vortex.evaluate.outcomes import Lane, Outcome
from vortex.evaluate.prefill import PromptCache, prefill, stored_bytes
from vortex.evaluate.readers import spec_of
from vortex.evaluate.rules import Baseline, Read, Rule, baseline
from vortex.evaluate.run import Evaluation
from vortex.evaluate.shared_pages import SharedPages


def evaluated(model: Model, folder: Path, flows: list[str], given: list, budgets=(2, 8), **rest) -> list[Outcome]:
    """All outcomes; nothing may fail."""
    made = Evaluation(model, {f: f for f in flows}, budgets, folder=folder, **rest).run(given)
    assert not made.failures, {k: e.render() for k, e in made.failures.items()}
    return made.outcomes


def compiled_as_eager(model: Model, folder: Path, flows: list[str], given: list, within: float) -> list[Outcome]:
    """Outcomes of compiled lanes; eager ones chose the same pages and gave the same answers, up to rounding."""
    compiled, eager = (evaluated(model, folder, flows, given, backend=b) for b in ("compiled", "eager"))
    for a, b in zip(compiled, eager, strict=True):
        assert (a.lane, a.text, a.recall, a.pages) == (b.lane, b.text, b.recall, b.pages)
        assert a.logprob == pytest.approx(b.logprob, abs=within)
        assert a.mass == pytest.approx(b.mass, abs=0.1 * within)
        assert a.error == pytest.approx(b.error, abs=within)
    return compiled


def by_lane(outcomes: list[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for o in outcomes:
        found.setdefault(str(o.lane), []).append(o)
    return found


def decoded(model: Model, given: list, lanes: dict[str, object]) -> dict[str, list[Outcome]]:
    """Outcomes of rules made by hand, ``{name: () -> Rule}``."""
    made: dict[str, list[Outcome]] = {name: [] for name in lanes}
    for prompt in given:
        pages = SharedPages(prefill(model, prompt), len(lanes), 40, device=torch.device("cpu"), dtype=model.dtype)
        rules: list[Rule] = []
        for make in lanes.values():
            rule = make(pages)  # type: ignore[operator]
            rules.append(rule)
        names = [Lane(name, 1) for name in lanes]
        reading = Lanes(pages, rules, model.sparse_layers)
        for lane, outcome in decode(model, prompt, names, reading).items():
            made[lane.rule].append(outcome)
        assert not reading.failed
    return made


def test_all_pages_kept_give_what_transformers_generates(tiny: Model, tmp_path: Path) -> None:
    """Dense lanes, and every rule whose budget has room for all pages, decode the model's own tokens."""
    given = [*prompts(tiny, 200, 3), *prompts(tiny, 208, 1), *prompts(tiny, 15, 1)]
    for backend in ("compiled", "eager"):
        found = evaluated(tiny, tmp_path, ["quest"], given, budgets=(64,), backend=backend)
        for o in found:
            want = " ".join(given[[p.length for p in given].index(o.length) + o.index].wanted)
            assert o.text == want, str(o.lane)
            assert o.score == 1.0
            assert o.error.max() < 1e-5
            assert o.mass.min() == pytest.approx(1.0, abs=1e-6)


def test_log_probabilities_of_the_dense_lane_are_the_models_own(tiny: Model, tmp_path: Path) -> None:
    (given,) = prompts(tiny, 150, 1)
    found = evaluated(tiny, tmp_path, [], [given])
    ids = torch.tensor([[*given.tokens, *given.answer]])
    with torch.inference_mode():
        logits = tiny.hf(ids).logits[0, len(given.tokens) - 1 : -1].log_softmax(-1)
    want = logits.gather(1, torch.tensor(given.answer)[:, None]).mean()
    assert by_lane(found)["dense"][0].logprob == pytest.approx(float(want), abs=1e-3)


def test_compiled_and_eager_choose_the_same_pages(tiny: Model, tmp_path: Path) -> None:
    compiled_as_eager(tiny, tmp_path, ["quest", "mass"], prompts(tiny, 250, 2), 1e-5)


def test_the_oracle_reads_the_most_mass(tiny: Model, tmp_path: Path) -> None:
    """Chosen by mean mass over the group, which is what is measured: no rule of the same budget reads more of it, up to
    the queries, which drift apart from the first layer on.
    """
    found = by_lane(evaluated(tiny, tmp_path, ["quest", "mass"], prompts(tiny, 500, 2), budgets=(2, 8)))
    for k in (2, 8):
        best = np.mean([o.mass[0] for o in found[f"oracle@{k}"]])
        for rule in ("quest", "mass", "random", "recent"):
            assert np.mean([o.mass[0] for o in found[f"{rule}@{k}"]]) <= best + 1e-6, rule
        assert all(o.pages == k + 3 for o in found[f"oracle@{k}"])


class Worst(Baseline):
    """The pages of the least mass."""

    def score(self, layer: int, mass: torch.Tensor) -> torch.Tensor:
        return -mass.mean(1)


class WithoutRecent:
    """Another rule, whose last two pages are dropped."""

    own_attention = False

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def begin(self, pages: SharedPages, lane: int) -> None:
        self.rule.begin(pages, lane)

    def plan(self, step) -> None:
        self.rule.plan(step)

    def read(self, layer: int, q: torch.Tensor, mass: torch.Tensor | None, scale: float) -> Read:
        pages = self.rule.read(layer, q, mass, scale).pages.clone()
        pages[:, -2:] = False
        return Read(pages)


class Reversed(WithoutRecent):
    """Another rule, whose candidates are mirrored."""

    def read(self, layer: int, q: torch.Tensor, mass: torch.Tensor | None, scale: float) -> Read:
        pages = self.rule.read(layer, q, mass, scale).pages.clone()
        pages[:, 1:-2] = pages[:, 1:-2].flip(-1)
        return Read(pages)


def test_flows_that_are_planted_wrong_are_seen(tiny: Model) -> None:
    def eager(pages: SharedPages) -> Rule:
        flow = Eager("mass", spec_of(tiny), tiny.kv_heads, tiny.sparse_layers, torch.device("cpu"), None)
        flow.begin(pages)
        return flow.lane(4)

    found = decoded(
        tiny,
        prompts(tiny, 500, 2),
        {
            "right": eager,
            "reversed": lambda pages: Reversed(eager(pages)),
            "no recent": lambda pages: WithoutRecent(eager(pages)),
            "random": lambda _: baseline("random", 4, "0"),
            "worst": lambda _: Worst(4),
        },
    )
    mass = {name: np.mean([o.mass for o in of]) for name, of in found.items()}
    error = {name: np.mean([o.error for o in of]) for name, of in found.items()}
    assert mass["reversed"] < (mass["right"] + mass["random"]) / 2
    assert mass["reversed"] == pytest.approx(mass["random"], rel=0.25)
    assert error["reversed"] > error["right"] and error["no recent"] > error["right"]
    assert mass["no recent"] < mass["right"]
    assert mass["worst"] < mass["random"]


def test_what_a_prompt_gives_does_not_depend_on_the_other_lanes(tiny: Model, tmp_path: Path) -> None:
    given = prompts(tiny, 300, 1)
    alone = by_lane(evaluated(tiny, tmp_path / "a", ["quest"], given, budgets=(2,)))
    among = by_lane(evaluated(tiny, tmp_path / "b", ["quest", "mass"], given, budgets=(2, 4)))
    for name, (o,) in alone.items():
        other = among[name][0]
        assert (o.text, o.recall, o.pages) == (other.text, other.recall, other.pages)
        assert o.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_outcomes_are_resumed(tiny: Model, tmp_path: Path) -> None:
    """A second run decodes nothing; another flow alone is decoded; half a line is passed over."""
    given = prompts(tiny, 200, 2)
    first = Evaluation(tiny, {"quest": "quest"}, (2,), folder=tmp_path).run(given)
    assert (first.decoded, first.prefilled) == (2 * 5, 2)
    again = Evaluation(tiny, {"quest": "quest"}, (2,), folder=tmp_path).run(given)
    assert (again.decoded, again.prefilled) == (0, 0)
    assert [(o.lane, o.index, o.text) for o in again.outcomes] == [(o.lane, o.index, o.text) for o in first.outcomes]
    for a, b in zip(again.outcomes, first.outcomes, strict=True):
        assert a.mass == pytest.approx(b.mass, rel=1e-5)
    other = Evaluation(tiny, {"quest": "quest", "mass": "mass"}, (2,), folder=tmp_path).run(given)
    assert (other.decoded, other.prefilled) == (2, 0)
    file = tmp_path / "outcomes.jsonl"
    file.write_text(file.read_text()[:-30])
    last = Evaluation(tiny, {"quest": "quest", "mass": "mass"}, (2,), folder=tmp_path).run(given)
    assert last.decoded == 1
    assert Evaluation(tiny, {"quest": "quest", "mass": "mass"}, (2,), folder=tmp_path).run(given).decoded == 0
    assert Evaluation(tiny, {}, (2,), folder=tmp_path, seed=1).run(given).decoded == 2  # the random lanes


def test_an_edited_flow_is_another(tiny: Model, tmp_path: Path) -> None:
    given = prompts(tiny, 200, 1)
    file = tmp_path / "mine.py"
    text = (
        (Path(__file__).parents[2] / "vortex/flow/library/block_topk.py").read_text().replace('"block_topk"', '"mine"')
    )
    file.write_text(text)
    flows = {"mine": f"{file}:mine"}
    assert Evaluation(tiny, flows, (2,), "eager", folder=tmp_path).run(given).decoded == 5
    assert Evaluation(tiny, flows, (2,), "eager", folder=tmp_path).run(given).decoded == 0
    file.write_text(text.replace("return vortex.topk(", "return vortex.topk(-"))
    assert Evaluation(tiny, flows, (2,), "eager", folder=tmp_path).run(given).decoded == 1


def test_a_flow_that_fails_is_said_and_the_others_go_on(tiny: Model, tmp_path: Path) -> None:
    given = prompts(tiny, 200, 1)
    bad = tmp_path / "bad.py"
    bad.write_text(
        (Path(__file__).parents[2] / "vortex/flow/library/quest.py").read_text()
        .replace('"quest"', '"bad"').replace("forward_indexer(self, q: Any", "forward_indexer(self, more: Any, q: Any")
    )  # fmt: skip
    made = Evaluation(tiny, {"bad": str(bad), "quest": "quest"}, (2,), "eager", folder=tmp_path).run(given)
    assert set(made.failures) == {"bad"} and made.failures["bad"].code.startswith("VX1")
    assert "quest@2" in by_lane(made.outcomes) and "bad@2" not in by_lane(made.outcomes)


def test_outputs_that_are_no_numbers_are_said(tiny: Model, tmp_path: Path) -> None:
    given = prompts(tiny, 200, 1)
    cache = PromptCache(tmp_path)
    read = cache.read(tiny, given[0])
    with torch.inference_mode():
        read.v[1][0, 100:116] = float("nan")
    cache._write(cache.path(tiny, given[0]), read)
    made = Evaluation(tiny, {"quest": "quest"}, (2,), folder=tmp_path).run(given)
    assert made.failures["dense"].code == "VX9123"
    assert "layer 1" in made.failures["dense"].message


def test_a_prompt_that_is_too_long_is_refused(tiny: Model, tmp_path: Path) -> None:
    (short,) = prompts(tiny, 100, 1)
    long = replace(short, tokens=short.tokens * 21, length=2100)
    made = Evaluation(tiny, {}, (2,), folder=tmp_path).run([long, short])
    assert made.failures["random 2100"].code == "VX9121"
    assert {o.length for o in made.outcomes} == {100}
    with pytest.raises(VortexError, match="VX9121"):
        prefill(tiny, long)


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ({"head_dim": 8}, "layer 0 has K of 2 KV heads of 16, not of 2 heads of 8"),
        ({"kv_heads": 4}, "layer 0 has K of 2 KV heads of 16, not of 4 heads of 16"),
        ({"layers": 4}, "of 4 layers, 3 have attention"),
    ],
)
def test_layers_of_other_shapes_are_refused(shape: dict, why: str, tiny: Model, tmp_path: Path) -> None:
    """As of models whose config tells of some layers alone."""
    given = prompts(tiny, 100, 1)
    made = Evaluation(replace(tiny, **shape), {}, (2,), folder=tmp_path).run(given)
    assert made.failures["random 100"].code == "VX9103" and why in made.failures["random 100"].message


def test_prompts_on_disk(tiny: Model, tmp_path: Path) -> None:
    given = prompts(tiny, 200, 3)
    cache = PromptCache(tmp_path)
    first = cache.read(tiny, given[0])
    path = cache.path(tiny, given[0])
    size = path.stat().st_size
    assert 0 <= size - stored_bytes(tiny, 200) < 2000
    again = cache.read(tiny, given[0])
    assert all(torch.equal(a, b) for a, b in zip((*first.k, *first.v), (*again.k, *again.v), strict=True))
    path.write_bytes(path.read_bytes()[:1000])  # damaged: read anew
    assert torch.equal(cache.read(tiny, given[0]).k[2], first.k[2])
    assert path.stat().st_size == size
    tight = PromptCache(tmp_path, most=2 * size + 100)
    for prompt in given[1:]:
        tight.read(tiny, prompt)
    assert not path.exists() and tight.has(tiny, given[1]) and tight.has(tiny, given[2])


def test_a_time_limit(tiny: Model, tmp_path: Path) -> None:
    given = prompts(tiny, 200, 2)
    made = Evaluation(tiny, {}, (2,), folder=tmp_path, seconds=0.0).run(given)
    assert (made.decoded, made.missing, made.outcomes) == (0, 8, [])


def test_without_evidence_or_answer_strings(tiny: Model, tmp_path: Path) -> None:
    (given,) = prompts(tiny, 200, 1)
    text = replace(given, evidence=(), wanted=())
    found = evaluated(tiny, tmp_path, [], [text])
    assert all(math.isnan(o.recall) and math.isnan(o.score) and o.text == "" for o in found)
    assert all(o.logprob < 0 for o in found)


def test_a_sliding_window_is_the_models_own(tmp_path: Path) -> None:
    """Layers with a window are dense in it, in every lane."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, sliding_window=37, initializer_range=0.15,
    )  # fmt: skip
    torch.manual_seed(3)
    hf = MistralForCausalLM(config).eval()
    ids = torch.randint(3, 128, (1, 120))
    want = hf.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=2
    )
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from vortex.evaluate.prompts import Prompt

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({str(i): i for i in range(128)}, "0"))
    )
    model = Model("m", hf, tokenizer, "mistral3", 2, 4, 2, 16, (), 512, (2,))
    answer = tuple(want[0, 120:].tolist())
    prompt = Prompt("w", 120, 0, tuple(ids[0].tolist()), ("x",), "all", answer, (), 5)
    (dense,) = (o for o in evaluated(model, tmp_path, [], [prompt], budgets=()) if str(o.lane) == "dense")
    assert dense.text.split() == [str(t) for t in answer if t != 2]


def test_windows_stay_dense_beside_layers_where_pages_are_selected(tiny: Model, tmp_path: Path) -> None:
    """A Gemma 3: every second layer has a window, and the softmax scale is not that of the head dim."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, sliding_window=40, initializer_range=0.15,
        query_pre_attn_scalar=3, layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    torch.manual_seed(3)
    hf = Gemma3ForCausalLM(config).eval()
    model = replace(tiny, hf=hf, identity="gemma3", layers=4, sparse_layers=(1, 3), context=512)
    assert model.windowed_layers == (0, 2)
    given = prompts(model, 250, 1)
    compiled, eager = (
        by_lane(evaluated(model, tmp_path, ["quest"], given, budgets=(2, 64), backend=backend))
        for backend in ("compiled", "eager")
    )
    for name in compiled:
        (a,), (b,) = compiled[name], eager[name]
        assert (a.text, a.recall, a.pages) == (b.text, b.recall, b.pages)
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        assert a.mass.shape == (2, 2)
        if name == "dense" or name.endswith("@64"):
            assert a.text == " ".join(given[0].wanted) and a.error.max() < 1e-5
    assert compiled["quest@2"][0].pages == 5.0 and compiled["quest@2"][0].error.max() > 1e-2
