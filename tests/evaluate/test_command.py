"""``vortex eval`` as a command: what goes wrong is said, the rest goes on, and the exit code tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from vortex.cli.exit_codes import USER_ERROR
from vortex.cli.main import main
from vortex.evaluate import packages, prefill, readers

OK, INCOMPLETE, MISTAKE = 0, 1, 2
SHORT, LONG = 600, 900


Said = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Exit code, JSON and messages of a run over perplexity, the shortest of tasks."""

    def call(*words: str, flows: tuple[str, ...] = ("quest",), tokens: str = str(SHORT)) -> tuple[int, Any, str]:
        usual = ["--model", str(folder), "--tasks", "perplexity", "--tokens", tokens, "--prompts", "1"]
        usual += ["--budgets", "4", "--backend", "eager", "--cache", str(tmp_path / "cache")]
        capsys.readouterr()
        code = main(["eval", *flows, *usual, "--json", *words])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    return call


def lanes(found: dict[str, Any]) -> set[str]:
    return {f"{x['rule']}@{x['budget']}" for x in found["lanes"]}


BASELINES = {"dense@0", "oracle@4", "random@4", "recent@4"}


def test_what_goes_well(said: Said, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    code, found, err = said("--trace-pages", str(file))
    assert code == OK and not found["failures"]
    assert lanes(found) == BASELINES | {"quest@4"}
    assert f"wrote {file}" in err
    head, *rest = map(json.loads, file.read_text().splitlines())
    assert (head["source"], head["flow"], head["target"], head["budget_pages"]) == ("vortex eval", "quest", "eager", 7)
    assert rest[0]["requests"] == [f"perplexity {SHORT} #0"] and "needles" not in rest[0]


def flow(folder: Path, name: str, line: str) -> str:
    """A file with block_topk, a line of it replaced."""
    text = (Path(__file__).parents[2] / "vortex/flow/library/block_topk.py").read_text()
    before = "return vortex.topk("
    assert before in text
    file = folder / f"{name}.py"
    file.write_text(text.replace('"block_topk"', f'"{name}"').replace(before, f"{line}\n        {before}"))
    return str(file)


FAILING = {
    "at this shape": ("assert q.shape[-1] == 64, 'heads of 64 alone'", "heads of 64 alone"),
    "at one length": (
        "if type(q) is __import__('torch').Tensor and len(cache.mean) > 40: raise RuntimeError('too many pages')",
        "too many pages",
    ),
}


@pytest.mark.parametrize("when", FAILING)
def test_a_flow_that_fails(when: str, said: Said, tmp_path: Path) -> None:
    (line, why), name = FAILING[when], f"fails_{when.replace(' ', '_')}"
    code, found, err = said(flows=("quest", flow(tmp_path, name, line)), tokens=f"{SHORT},{LONG}")
    assert code == INCOMPLETE, err
    (failure,) = found["failures"]
    assert failure["rule"] == name and why in failure["message"] and why in err
    assert lanes(found) >= BASELINES | {"quest@4"}
    (quest,) = (x for x in found["lanes"] if x["rule"] == "quest")
    assert quest["prompts"] == 2


def test_prompts_longer_than_the_context(said: Said) -> None:
    code, found, err = said(tokens=f"{SHORT},4096")
    assert code == INCOMPLETE
    (failure,) = found["failures"]
    assert failure["rule"] == "perplexity 4096" and "VX9121" in failure["message"]
    assert "1024 tokens of model" in err and "fewer tokens (--tokens)" in err
    assert lanes(found) == BASELINES | {"quest@4"}
    code, found, err = said(tokens="4096")
    assert code == INCOMPLETE and found["lanes"] == [] and len(found["failures"]) == 1
    assert "writing prompts" not in err and "will be kept" not in err, "before anything is written"


@pytest.mark.parametrize("words", [(), ("--trace-pages", "t.jsonl")], ids=["", "pages"])
def test_flows_that_cannot_run_are_said_before_anything_is_decoded(
    words: tuple[str, ...], said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Baselines alone would tell nothing."""
    monkeypatch.chdir(tmp_path)
    name = f"unnamed_{len(words)}"  # one a process
    bad = flow(tmp_path, name, "nonesuch")
    code, found, err = said(*words, flows=(bad,))
    assert code == INCOMPLETE and found["lanes"] == []
    (failure,) = found["failures"]
    assert failure["rule"] == name and "nonesuch" in failure["message"] and failure["message"] in err
    assert "writing prompts" not in err and not (tmp_path / "cache").exists() and not Path("t.jsonl").exists()
    if not words:
        code, found, err = said(flows=(bad, "quest"))
        assert code == INCOMPLETE and lanes(found) == BASELINES | {"quest@4"} and len(found["failures"]) == 1
        assert err.index(f"{name} is left out") < err.index("writing prompts")


def test_the_report_is_written_before_a_pipe_may_end(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``| head`` does."""

    def ends(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("vortex.cli.eval.emit_json", ends)
    said("-o", str(tmp_path / "report.html"))
    assert "</html>" in (tmp_path / "report.html").read_text()


def test_a_report_that_cannot_be_written_loses_no_figures(said: Said, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, found, err = said("-o", str(tmp_path / "file" / "report.html"))
    assert code == USER_ERROR and lanes(found) and "VX7004" in err


@pytest.mark.parametrize("where", ["reading", "decoding"])
def test_out_of_memory(where: str, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would fit is said, and shorter prompts go on."""

    if where == "reading":
        dense = LlamaForCausalLM.forward

        def forward(self: Any, input_ids: torch.Tensor, **rest: Any) -> Any:
            if input_ids.shape[1] > SHORT:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory")
            return dense(self, input_ids, **rest)

        monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    else:
        laid_out = readers.SharedPages

        def pages(read: prefill.Prefilled, *rest: Any, **more: Any) -> readers.SharedPages:
            if read.tokens > SHORT:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return laid_out(read, *rest, **more)

        monkeypatch.setattr(readers, "SharedPages", pages)
    monkeypatch.setattr(prefill, "_free_bytes", lambda device: 64000)
    code, found, err = said(tokens=f"{SHORT},{LONG}")
    assert code == INCOMPLETE
    (failure,) = found["failures"]
    assert failure["rule"] == f"perplexity {LONG}" and "VX9122" in failure["message"]
    assert where in failure["message"] and "memory of cpu" in failure["message"]
    assert "K and V of a token take 256 bytes; about 125 tokens fit now" in err
    assert lanes(found) == BASELINES | {"quest@4"}


def test_a_time_limit(said: Said, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    code, found, err = said("--time-limit", "0s", "--trace-pages", str(file))
    assert code == INCOMPLETE and found["lanes"] == []
    assert "left out 5 outcomes; the same command goes on where it stopped" in err
    assert f"left out 1 of 1 prompts: {file}" in err


MISTAKES: dict[str, tuple[list[str], tuple[str, ...], str]] = {
    "tokens": (["--tokens", "many"], ("quest",), "VX7001"),
    "prompts": (["--prompts", "0"], ("quest",), "VX7001"),
    "json twice": (["--verdict"], ("quest",), "VX7001"),
    "a time": (["--time-limit", "soon"], ("quest",), "VX7001"),
    "a task": (["--tasks", "poems"], ("quest",), "VX7003"),
    "a flow": ([], ("quest", "nonesuch"), "VX1018"),
    "a file": ([], ("nonesuch.py",), "VX7002"),
    "pages of two budgets": (["--budgets", "4,8", "--trace-pages", "t.jsonl"], ("quest",), "VX7001"),
    "pages of two flows": (["--trace-pages", "t.jsonl"], ("quest", "mass"), "VX7001"),
    "pages without a model": (["--trace-pages", "t.jsonl", "--trace", "s.safetensors"], ("quest",), "VX7001"),
    "pages to nowhere": (["--trace-pages", "no/such/t.jsonl"], ("quest",), "VX7004"),
    "a model": (["--model", "nobody/nothing"], ("quest",), "VX9102"),
    "a device": (["--device", "cuda"], ("quest",), "VX9103"),
    "a trace": (["--trace", "nonesuch.safetensors"], ("quest",), "VX7002"),
    "parameters": (["--parameters", "nonesuch.safetensors"], ("quest",), "VX7002"),
}


@pytest.mark.parametrize(("words", "flows", "code"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(words: list[str], flows: tuple[str, ...], code: str, said: Said) -> None:
    if code == "VX9103" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    got, _, err = said(*words, flows=flows)
    assert got == MISTAKE and f"error[{code}]" in err and "internal" not in err


def test_a_missing_package(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    there = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "transformers" else there(name))
    code, _, err = said()
    assert code == MISTAKE and "error[VX9101]" in err and "pip install 'vortex[eval]'" in err
