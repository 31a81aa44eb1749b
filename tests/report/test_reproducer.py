"""The folder that an internal error leaves opens in a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import FLOW
from tests.report.conftest import SHAPE
from vortex.cli.main import main
from vortex.compilation.reproducer import REPORT, TRACEBACK
from vortex.compilation.stored import read_stored
from vortex.errors import VortexError
from vortex.passes.manager import PASSES
from vortex.report.compilation import Request, describe
from vortex.tune.layers import Layers


def broken(*_: object) -> None:
    raise RuntimeError("the injected <b>bug</b>")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """Of a compilation whose pass ``fuse`` fails."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(FLOW)
    with monkeypatch.context() as m:
        m.setattr(PASSES["fuse"], "run", broken)
        assert main(["compile", "tiny.py", "--head-dim", "16", "--heads", "2/1"]) == 70
    assert "vortex report vortex-crash-" in capsys.readouterr().err
    [made] = Path().glob("vortex-crash-*")
    return made


def test_it_shows_the_passes_that_ran_and_the_traceback(folder: Path) -> None:
    c = describe(read_stored(folder), Request(SHAPE, Layers({})))
    assert (c.form, c.status, c.name) == ("reproducer", "failed", "tiny_mean")
    assert c.verdict == ("The compilation failed: internal error: RuntimeError: the injected <b>bug</b>",)
    assert c.command == "vortex compile tiny.py --head-dim 16 --heads 2/1"
    assert [s.name for s in c.steps][-1] == "expand-softmax"
    assert any("in run_pipeline" in line for t in c.texts if t.title == "traceback" for line in t.lines)
    assert [s.name for s in c.sources] == ["tiny.py"]
    assert c.sources[0].lines == tuple(FLOW.splitlines())
    hidden = describe(read_stored(folder), Request(SHAPE, Layers({}), redact=True))
    assert not [t for t in hidden.texts if t.title == "traceback"]


def test_the_page_is_whole(folder: Path) -> None:
    assert main(["report", str(folder), "-o", "r.html"]) == 0
    page = Path("r.html").read_text()
    assert "the injected" in page
    assert "<b>bug</b>" not in page


def test_ir_that_a_command_was_given_is_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing was dumped."""
    flow = next((folder / "dump").glob("00-*.flow"))
    with monkeypatch.context() as m:
        m.setattr(PASSES["cse"], "run", broken)
        assert main(["opt", str(flow), "--passes=cse"]) == 70
    [other] = {*Path().glob("vortex-crash-*")} - {folder}
    (other / "inputs" / "weights").write_bytes(b"\xff\xfe")
    c = describe(read_stored(other), Request(SHAPE, Layers({})))
    assert [s.name for s in c.steps] == [f"input {flow.name}"]
    assert c.texts[0].lines


@pytest.mark.parametrize("text", ["", "[1]", '{"argv": 3}', '{"versions": {}}'])
def test_one_that_is_damaged_says_so(folder: Path, text: str) -> None:
    (folder / REPORT).write_text(text)
    with pytest.raises(VortexError, match="is damaged"):
        read_stored(folder)


def test_one_without_a_word_of_why_is_enough(folder: Path) -> None:
    (folder / TRACEBACK).write_text("")
    assert read_stored(folder).error == "internal error"
    assert json.loads((folder / REPORT).read_text())["argv"]
