"""``vortex advise``: answers that are known beside dense attention, and what the command says."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluate.prompts import answered
from vortex.cli.exit_codes import USER_ERROR
from vortex.cli.main import main
from vortex.errors import VortexError
from vortex.evaluate import advise
from vortex.evaluate.advise import SCHEMA, Advice, Advisor, Settings
from vortex.evaluate.agreement import Configuration
from vortex.evaluate.models import Model
from vortex.evaluate.own_prompts import own_prompts, read_texts
from vortex.evaluate.prompts import Prompt
from vortex.runtime.sglang.config import EngineConfig

ROOT = Path(__file__).parents[2]
OK, NOTHING_REACHES, MISTAKE = 0, 1, 2


def prompts(tokens: int, count: int = 2, new: int = 12) -> list[Prompt]:
    """Random tokens."""
    made = []
    for index in range(count):
        r = random.Random(index)
        given = (1, *(r.randrange(3, 128) for _ in range(tokens - 1)))
        made.append(Prompt(f"prompt {index + 1}", tokens, index, given, (), "all", (), (), new))
    return made


def advised(model: Model, folder: Path, given: list[Prompt], flows: dict[str, str], **rest: Any) -> Advice:
    """What comes of all waves; nothing may fail."""
    asked = {"budgets": (4,), "agreement": 0.9, "tokens": given[0].new_tokens, "backend": "eager"} | rest
    advisor = Advisor(model, given, Settings(flows=flows, **asked), folder=folder)
    while wave := advisor.next():
        advisor.measure(wave)
    made = advisor.advice()
    assert not made.failures, {k: e.render() for k, e in made.failures.items()}
    return made


@pytest.mark.parametrize(("backend", "page"), [("compiled", 16), ("eager", 16), ("eager", 8)])
def test_all_pages_agree_fully(backend: str, page: int, tiny: Model, tmp_path: Path) -> None:
    """Whatever the page's size is; the dense answer is what transformers generates."""
    given = prompts(203)
    found = advised(tiny, tmp_path, given, {"quest": "quest"}, budgets=(2, 64), backend=backend, page_size=page)
    whole, part = (found.search.measured[Configuration("quest", k)] for k in (64, 2))
    assert whole.share == 1.0 and abs(whole.change) < 1e-4 and whole.worst > -1e-4
    assert whole.mass.min() == pytest.approx(1.0, abs=1e-6)
    assert part.share < 0.5 and part.change < -0.1 and part.worst < part.change
    assert (part.mass <= part.most + 1e-6).all() and part.most.max() < 0.9
    assert part.tokens == whole.tokens == sum(len(answered(tiny, list(p.tokens), new=12).answer) for p in given)
    want = [answered(tiny, list(p.tokens), new=12).answer for p in given]
    assert list(found.answers) == [tiny.tokenizer.decode(a, skip_special_tokens=True) for a in want]


def test_a_flow_that_chooses_wrong_agrees_less(tiny: Model, tmp_path: Path) -> None:
    """Scores that say nothing, and true scores turned round, beside the flow itself."""
    text = (ROOT / "vortex/flow/library/mass.py").read_text()
    chosen = re.search(r"vortex\.topk\((.*)\)", text)
    assert chosen
    flows = {"mass": "mass"}
    for name, wrong in (("random", f"torch.frac({chosen[1]} * 7919)"), ("worst", f"-{chosen[1]}")):
        file = tmp_path / f"{name}.py"
        file.write_text(text.replace(chosen[0], f"vortex.topk({wrong})").replace('"mass"', f'"{name}_mass"'))
        flows[name] = str(file)
    found = advised(peaked(tiny, diffuse=()), tmp_path, prompts(400, new=16), flows, agreement=0.05)
    right, guessed, worst = (found.search.measured[Configuration(f, 4)] for f in ("mass", "random", "worst"))
    assert right.share > 2 * max(guessed.share, worst.share)
    assert right.change > max(guessed.change, worst.change)
    assert right.mass.mean() > 0.85 > 0.5 > guessed.mass.mean() > worst.mass.mean()
    assert right.most.mean() > 0.9


def peaked(model: Model, diffuse: tuple[int, ...]) -> Model:
    """The same, with attention that has sharp peaks, and none in the layers that are ``diffuse``, which say more."""
    hf = copy.deepcopy(model.hf)
    with torch.no_grad():
        for n, layer in enumerate(hf.model.layers):
            layer.self_attn.q_proj.weight.mul_(0.0 if n in diffuse else 6.0)
            layer.self_attn.o_proj.weight.mul_(3.0 if n in diffuse else 1.0)
    return replace(model, hf=hf, identity=f"peaked{diffuse}")


def test_a_diffuse_layer_becomes_dense(tiny: Model, tmp_path: Path) -> None:
    """Layer 1 looks at all tokens alike, so that no choice of pages does; the others find theirs."""
    model = peaked(tiny, diffuse=(1,))
    found = advised(model, tmp_path, prompts(400, 3, 16), {"mass": "mass"}, budgets=(4, 12), agreement=0.95)
    sparse, dense = (found.search.measured[Configuration("mass", 12, layers)] for layers in ((), (1,)))
    assert sparse.most[1] == pytest.approx(15 / 25.5, abs=0.02)
    assert found.search.diffuse(Configuration("mass", 12)) == [1]
    assert found.chosen == Configuration("mass", 12, (1,))
    assert sparse.share < 0.9 < 0.95 <= dense.share and dense.mass[1].min() == pytest.approx(1.0, abs=1e-6)
    config = found.config(found.chosen)
    assert config == {"flow": "mass", "budget": {"pages": 12}, "dense_layers": [1], "page_size": 16}
    read = EngineConfig.read(json.dumps(config))
    assert (read.flow, read.budget.pages, read.dense_layers) == ("mass", 12, frozenset({1}))
    assert "mass with 12 pages and layer 1 dense agrees" in found.why() and "the fewest bytes" in found.why()
    size = found.search.bytes(found.chosen)
    assert found.search.bytes(Configuration("mass", 12)) < size < found.search.dense_bytes


def test_a_layer_that_is_made_dense_reads_as_dense_attention(tiny: Model, tmp_path: Path) -> None:
    """All layers dense is dense attention, through kernels and without."""
    given = prompts(203, 1)
    for backend in ("compiled", "eager"):
        settings = Settings({"quest": "quest"}, (1,), 0.9, 12, backend=backend)
        advisor = Advisor(tiny, given, settings, folder=tmp_path)
        advisor.measure(
            [Configuration("quest", 1), Configuration("quest", 1, (0, 2)), Configuration("quest", 1, (0, 1, 2))]
        )
        found = advisor.advice().search.measured
        none, some, every = found.values()
        assert every.share == 1.0 and every.worst > -1e-5
        assert none.mass.max() < 0.9
        assert some.mass[[0, 2]].min() == pytest.approx(1.0, abs=1e-6) and some.mass[1].max() < 0.9


def test_every_budget_reads_everything(tiny: Model, tmp_path: Path) -> None:
    given = prompts(100)
    with pytest.raises(VortexError, match=r"VX9126.*112 tokens.*7 pages of 16, and 4 pages beside") as caught:
        advised(tiny, tmp_path, given, {"quest": "quest"}, budgets=(4, 64))
    assert "--budgets" in caught.value.render()
    assert advised(tiny, tmp_path, given, {"quest": "quest"}, budgets=(2, 64)).search.measured


def test_a_prompt_longer_than_the_context(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(VortexError, match=r"VX9121.*prompt 1, 2040 tokens"):
        advised(tiny, tmp_path, prompts(2040), {"quest": "quest"})


def test_a_flow_that_fails_amid_a_prompt(tiny: Model, tmp_path: Path) -> None:
    text = (ROOT / "vortex/flow/library/block_topk.py").read_text()
    line = "if type(q) is __import__('torch').Tensor and len(cache.mean) > 15: raise RuntimeError('too many pages')"
    file = tmp_path / "fails.py"
    text = text.replace('"block_topk"', '"fails"')
    file.write_text(text.replace("return vortex.topk(", f"{line}\n        return vortex.topk("))
    given = [*prompts(203, 1), *prompts(400, 1)]
    settings = Settings({"fails": str(file), "quest": "quest"}, (4,), 0.05, 12, backend="eager")
    advisor = Advisor(tiny, given, settings, folder=tmp_path)
    while wave := advisor.next():
        advisor.measure(wave)
    found = advisor.advice()
    assert set(found.failures) == {"fails"} and "too many pages" in found.failures["fails"].render()
    assert {c.flow for c in found.search.measured} == {"quest"} and found.chosen == Configuration("quest", 4)


ROW = {"flow": str, "pages": int, "dense_layers": list, "agreement": float, "agreed": int, "tokens": int,
       "logprob_change": float, "worst_logprob_change": float, "mass": float, "most_mass": float, "worst_head": dict,
       "bytes": float, "of_dense": float, "reaches": bool}  # fmt: skip
LISTS: dict[str, dict[str, type]] = {
    "prompts": {"tokens": int, "answer": str},
    "configurations": ROW,
    "layers": {"flow": str, "pages": int, "layer": int, "mass": float, "most_mass": float, "diffuse": bool},
    "failures": {"flow": str, "message": str},
}
SET = {"model", "flows", "budgets", "agreement", "tokens", "page_size", "backend", "cost_tokens", "layers"}


def test_the_schema(tiny: Model, tmp_path: Path) -> None:
    """A key that goes, or changes its type, asks for a new version and other words in docs/advise.md."""
    assert SCHEMA == 1
    made = advised(tiny, tmp_path, prompts(203, 1), {"quest": "quest"}, budgets=(2, 4), agreement=0.01)
    found = json.loads(json.dumps(made.as_json(), allow_nan=False))
    assert list(found) == [
        "schema", "settings", "prompts", "dense_bytes", "configurations", "layers", "chosen", "best", "why", "failures",
    ]  # fmt: skip
    assert set(found["settings"]) == SET
    for name, keys in LISTS.items():
        assert found[name] or name == "failures"
        for row in found[name]:
            assert set(row) == set(keys), name
            for key, kind in keys.items():
                assert isinstance(row[key], (float, int) if kind is float else kind), (name, key, row[key])
    for name in ("chosen", "best"):
        assert set(found[name]) == {*ROW, "config"}
        EngineConfig.read(json.dumps(found[name]["config"]))
    assert found["chosen"]["bytes"] == min(c["bytes"] for c in found["configurations"] if c["reaches"])
    assert len(found["layers"]) == 2 * tiny.layers


def test_the_schema_is_documented() -> None:
    text = (ROOT / "docs" / "advise.md").read_text()
    named = set(re.findall(r"`(\w+)`", text[text.index("## The JSON") :]))
    assert SET | set(LISTS) | {k for keys in LISTS.values() for k in keys} <= named


def test_prompts_of_a_file(tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("\nOne prompt\nof two lines.\n\n \n\nAnother.\n")
    assert read_texts(text) == ["One prompt\nof two lines.", "Another."]
    lines.write_text('{"prompt": "One.\\n\\nStill one."}\n\n{"prompt": " Two. ", "more": 1}\n')
    assert read_texts(lines) == ["One.\n\nStill one.", " Two. "]


BAD_FILES = {
    "none": (None, "x.txt", "VX7002", "does not exist"),
    "empty": (b" \n\n", "x.txt", "VX9125", "holds no prompt"),
    "empty lines": (b"\n", "x.jsonl", "VX9125", "holds no prompt"),
    "no text": (b"\xff\xfe\x00", "x.txt", "VX9125", "no UTF-8"),
    "no JSON": (b'{"prompt": "a"}\nb\n', "x.jsonl", "VX9125", "line 2"),
    "no object": (b"[1]\n", "x.jsonl", "VX9125", "line 1"),
    "no prompt": (b'{"text": "a"}\n', "x.jsonl", "VX9125", 'no text under "prompt"'),
    "a number": (b'{"prompt": 3}\n', "x.jsonl", "VX9125", 'no text under "prompt"'),
}


@pytest.mark.parametrize(("held", "name", "code", "why"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_files_that_hold_no_prompts(held: bytes | None, name: str, code: str, why: str, tmp_path: Path) -> None:
    if held is not None:
        (tmp_path / name).write_bytes(held)
    with pytest.raises(VortexError) as caught:
        read_texts(tmp_path / name)
    assert caught.value.code == code and why in str(caught.value)


def test_templates_of_chats(tokenizer: Any) -> None:
    chat, plain = (own_prompts(tokenizer, ["Who are you?"], 4, plain=p)[0] for p in (False, True))
    assert tokenizer.decode(plain.tokens) == "Who are you?"
    said = tokenizer.decode(chat.tokens)
    assert "<|im_start|>user\nWho are you?<|im_end|>" in said and said.rstrip().endswith("<|im_start|>assistant")
    with pytest.raises(VortexError, match=r"VX9125.*prompt 1: has 1 tokens"):
        own_prompts(tokenizer, ["Who"], 4, plain=True)


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Exit code, output and messages over one prompt of 400 words."""
    (tmp_path / "prompts.txt").write_text(" ".join(f"word {n}" for n in range(130)) + "\n")

    def call(*words: str, flows: str = "quest", budgets: str = "2,64") -> tuple[int, str, str]:
        usual = ["--model", str(folder), "--backend", "eager", "--cache", str(tmp_path / "cache"), "--tokens", "6"]
        capsys.readouterr()
        code = main(["advise", str(tmp_path / "prompts.txt"), "--flows", flows, "--budgets", budgets, *usual, *words])
        return code, *capsys.readouterr()

    return call


def test_what_is_printed(said: Said, tmp_path: Path) -> None:
    code, out, err = said("--agreement", "0.01", "-o", str(tmp_path / "vortex.json"))
    assert code == OK, err
    *_, config, why = out.splitlines()
    assert json.loads(config)["budget"] == {"pages": 2} and json.loads(config)["flow"] == "quest"
    assert (tmp_path / "vortex.json").read_text().strip() == config
    assert EngineConfig.read(str(tmp_path / "vortex.json")).budget.pages == 2
    assert why.startswith("quest with 2 pages") and why.endswith("1 % or more.")
    assert "1 prompt beside dense attention" in out and "of dense" in out
    assert re.search(
        r"Only (6 tokens|5 tokens|[2-4] tokens|1 token) (were|was) compared: shares differ by [.\d]+ with a", out
    )
    assert "1 prompt, 2 configurations ..." in err and "--vortex-config" in err
    code, out, err = said("--agreement", "0.01", "--json")
    assert code == OK and json.loads(out)["chosen"]["config"] == json.loads(config)


def test_the_configuration_is_written_before_a_pipe_may_end(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``| head`` does amid the tables."""

    def ends(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("vortex.cli.advise._print", ends)
    said("--agreement", "0.01", "-o", str(tmp_path / "vortex.json"))
    assert EngineConfig.read(str(tmp_path / "vortex.json")).budget.pages == 2


def test_a_configuration_that_cannot_be_written_loses_no_advice(said: Said, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, out, err = said("--agreement", "0.01", "-o", str(tmp_path / "file" / "vortex.json"))
    assert code == USER_ERROR and '"pages": 2' in out and "VX7004" in err


def test_nothing_reaches_what_is_wanted(said: Said, tmp_path: Path) -> None:
    code, out, err = said("--agreement", "1", "-o", str(tmp_path / "vortex.json"), budgets="1,2")
    assert code == NOTHING_REACHES
    why = out.splitlines()[-1]
    assert why.startswith("Nothing that was tried agrees on 100 % for fewer bytes than dense attention; quest with ")
    assert "(--agreement)" in why and "serve densely, for 0." in why and "{" not in out
    assert "was not written" in err and not (tmp_path / "vortex.json").exists()


def test_a_configuration_is_good_in_any_folder(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "vortex/flow/library/block_topk.py").read_text().replace('"block_topk"', '"in_any_folder"')
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    for flow in ("mine.py", "mine.py:in_any_folder"):
        code, out, err = said("--agreement", "0.01", "--json", "-o", "c.json", flows=flow)
        assert code == OK, err
        assert EngineConfig.read("c.json").flow == f"{tmp_path}/{flow}"
        assert list(json.loads(out)["settings"]["flows"].values()) == [flow]


def test_a_flow_that_fails_is_said(said: Said, tmp_path: Path) -> None:
    text = (ROOT / "vortex/flow/library/block_topk.py").read_text().replace('"block_topk"', '"bad"')
    file = tmp_path / "bad.py"
    file.write_text(
        text.replace("return vortex.topk(", "assert q.shape[-1] == 64, 'of 64'\n        return vortex.topk(")
    )
    code, out, err = said("--agreement", "0.01", "--json", flows=f"quest,{file}")
    assert code == NOTHING_REACHES and "of 64" in err
    found = json.loads(out)
    assert found["chosen"]["flow"] == "quest" and [f["flow"] for f in found["failures"]] == ["bad"]
    code, out, _ = said("--json", flows=str(file))
    assert code == NOTHING_REACHES and json.loads(out)["chosen"] is json.loads(out)["best"] is None


MISTAKES: dict[str, tuple[list[str], dict[str, str], str, str]] = {
    "budgets": ([], {"budgets": "many"}, "VX7001", "--budgets"),
    "tokens": (["--tokens", "0"], {}, "VX7001", "--tokens"),
    "a page": (["--page-size", "0"], {}, "VX7001", "--page-size"),
    "agreement": (["--agreement", "95"], {}, "VX7001", "--agreement: is 95.0; a share of tokens from 0 to 1"),
    "no number": (["--agreement", "nan"], {}, "VX7001", "--agreement"),
    "a flow": ([], {"flows": "quset"}, "VX1018", "quest"),
    "a file": ([], {"flows": "nonesuch.py"}, "VX7002", "nonesuch.py"),
    "a model": (["--model", "nobody/nothing"], {}, "VX9102", "nobody/nothing"),
    "parameters": (["--parameters", "nonesuch.safetensors"], {}, "VX7002", "nonesuch"),
    "short prompts": ([], {"budgets": "64,128"}, "VX9126", "nothing to choose"),
    "long answers": (["--tokens", "900"], {}, "VX9121", "shorter prompt"),
}


@pytest.mark.parametrize(("words", "rest", "code", "why"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(words: list[str], rest: dict[str, str], code: str, why: str, said: Said) -> None:
    got, out, err = said(*words, **rest)
    assert got == MISTAKE and f"error[{code}]" in err and why in err and not out


def test_runs_of_layers() -> None:
    assert [advise.ranges(x) for x in ((), (3,), (0, 1, 2, 5, 7, 8))] == ["", "3", "0-2,5,7-8"]
    assert advise.percent(0.95) == "95 %" and advise.percent(0.9786) == "97.9 %"
    assert np.isclose(advise.rounded(1 / 3), 0.333333)
