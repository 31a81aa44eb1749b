"""What notebooks show of flows, modules, compilations and decoders: HTML that is whole, small and harmless."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import MethodType
from typing import Any

import pytest

import vortex
from vortex.artifact.folder import read_manifest
from vortex.driver import Compilation, compile_flow
from vortex.flow.flow import find_flow
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.notebook import LINES, frame
from vortex.spec import Spec

BAD = "<script>alert('1')</script>&"
FLOW = f'''\
import vortex

@vortex.register("shown_flow")
class Shown(vortex.vFlow):
    """Mean key {BAD} of a page.

    More."""

    def create_cache(self, spec):
        return {{"mean": vortex.Field(spec.head_dim)}}  # {BAD}

    def forward_cache(self, page):
        return {{"mean": page.k.mean(0)}}

    def forward_indexer(self, q, cache):
        return vortex.topk((q.mean(0) * cache.mean).sum(-1))
'''


class Whole(HTMLParser):
    """Reads HTML, and holds it to tags that are closed in order; collects its text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags, self.text = set[str](), ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(thing: Any) -> str:
    """The text of what IPython would show: it calls nothing of a class but a method that is bound to it."""
    assert isinstance(thing._repr_html_, MethodType)
    made = thing._repr_html_()
    assert len(made) < 40_000
    read = Whole()
    read.feed(made)
    read.close()
    assert read.open == []
    assert read.tags <= {"div", "b", "br", "table", "tr", "td", "details", "summary", "pre"}
    assert "#" not in made.split("<details>")[0].replace("&#", "")  # no colour of its own
    return read.text


@pytest.fixture
def flow(tmp_path: Path) -> Any:
    file = tmp_path / "shown_flow.py"
    file.write_text(FLOW)
    yield find_flow(str(file))
    from vortex.flow.flow import _REGISTRY

    _REGISTRY.pop("shown_flow", None)


def test_a_flow_shows_its_description_and_its_code(flow: Any, tmp_path: Path) -> None:
    for thing in (flow, flow()):
        text = shown(thing)
        assert text.startswith("shown_flow flow")
        assert f"Mean key {BAD} of a page." in text
        assert f"# {BAD}" in text
        assert str(tmp_path / "shown_flow.py") in text
    assert "More." not in shown(flow).split("code")[0]


def test_a_flow_without_a_file_shows_its_description() -> None:
    space: dict[str, Any] = {"__name__": "nowhere"}
    exec(compile(FLOW.replace("shown_flow", "typed_flow"), "<typed>", "exec"), space)
    assert "Mean key" in shown(space["Shown"])
    from vortex.flow.flow import _REGISTRY

    _REGISTRY.pop("typed_flow", None)


def test_a_module_is_its_text(flow: Any) -> None:
    from vortex.flow.trace import trace

    module = trace(flow(), Spec(page_size=16, head_dim=64, group=4, dtype="bf16"))
    assert str(module) == print_module(module)
    assert print_module(parse_module(str(module), "m.flow")) == str(module)
    text = shown(module)
    assert text.startswith("shown_flow module of stage flow")
    assert "@index" in text
    assert print_module(module, locs=False).strip() in text


def test_a_compilation_and_a_decoder_show_what_they_are(compiled: Path) -> None:
    file = compiled / "quest.vxa"
    made = replace(compile_flow("quest", to="page"), artifact=file, manifest=read_manifest(file))
    text = shown(made)
    assert text.startswith("quest compilation")
    for word in ("hi: bf16[64]", "cpu: plan, append, select, attend", "page size 16", "text of stage page", str(file)):
        assert word in text
    text = shown(vortex.load(file, target="cpu", budget=vortex.Budget(5, ratio="1/8")))
    assert text.startswith("quest decoder")
    for word in ("5 pages by score, the first 1, the last 2, or 1/8 of all", "none bound yet", "hi: bf16[64]"):
        assert word in text
    assert "none yet" in shown(vortex.load(file, target="cpu"))


def test_at_a_prompt_they_are_a_line(compiled: Path) -> None:
    made = compile_flow("quest", to="page")
    made = replace(made, artifact=compiled / "quest.vxa", sources={"cpu": "; long\n" * 1000})
    assert repr(made) == f"<Compilation flow: quest, stage: lib, targets: cpu, artifact: {compiled / 'quest.vxa'}>"
    assert repr(compile_flow("quest", to="flow")) == "<Compilation flow: quest, stage: flow>"
    assert repr(Compilation()) == "<Compilation>"
    program = made.programs["cpu"]
    assert repr(program).startswith("<Module quest of stage page: kernel @plan, kernel @append, ")
    assert repr(program.functions["plan"]) == "<kernel @plan, ops: 1>"


def test_half_a_compilation_shows_how_far_it_went() -> None:
    made = compile_flow("quest", to="flow")
    assert "text of stage flow" in shown(made)
    assert shown(Compilation()).startswith(" compilation")


def test_long_texts_are_cut() -> None:
    made = frame("thing", "n", {"a": "", "b": "1\n2"}, "text", "\n".join(f"line {n}" for n in range(LINES + 5)))
    assert "... 5 more lines" in made
    assert f"line {LINES - 1}\n" in made
    assert f"line {LINES}\n" not in made
    assert "1<br>2" in made
    assert ">a<" not in made
