"""A compilation on disk is read the same from its dump and from its artifact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vortex.compilation.flow_files import LIMIT, flow_files
from vortex.compilation.stored import read_stored
from vortex.driver import compile_flow
from vortex.errors import Loc, VortexError
from vortex.ir.core import Function, Module
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("stored")
    made = compile_flow("gqa_block", out=folder / "made.vxa", dump=folder / "dump", argv=["vortex", "compile"])
    assert made.artifact and made.dumps
    return made.dumps, made.artifact


def test_a_dump_and_an_artifact_say_the_same(both: tuple[Path, Path]) -> None:
    dump, artifact = map(read_stored, both)
    assert (dump.form, artifact.form) == ("dump", "artifact")
    assert dump.name == artifact.name == "gqa_block"
    assert dump.flow == artifact.flow == (both[0] / "00-trace.flow").read_text()
    assert dump.argv == artifact.argv == ("vortex", "compile")
    assert print_module(dump.programs["cpu"]) == print_module(artifact.programs["cpu"])
    assert (
        [k.name for k in dump.kernels] == [k.name for k in artifact.kernels] == ["plan", "append", "select", "attend"]
    )
    for a, b in zip(dump.kernels, artifact.kernels, strict=True):
        assert (a.args, dict(a.schedule), a.digest, dict(a.texts)) == (
            b.args,
            dict(b.schedule),
            b.digest,
            dict(b.texts),
        )
    changed = [s.name for s in dump.steps if s.changed]
    assert changed[0] == "trace" and "outline" in changed and not artifact.steps
    assert all(bool(s.text) is s.changed for s in dump.steps)


def test_both_keep_the_flow_s_own_code(both: tuple[Path, Path]) -> None:
    dump, artifact = map(read_stored, both)
    [loc] = {f.loc.file for f in parse_module(dump.flow).functions.values() if f.loc}
    assert dict(dump.sources) == dict(artifact.sources) == {loc: Path(loc).read_text()}
    assert (both[0] / "gqa_block.py").read_text() == (both[1] / "ir/source/gqa_block.py").read_text()


def test_the_flow_s_code_is_left_out_on_demand(tmp_path: Path) -> None:
    made = compile_flow("gqa_block", to="tir", dump=tmp_path / "dump", keep_source=False)
    assert made.dumps and not list(made.dumps.glob("*.py")) and not read_stored(made.dumps).sources
    resumed = compile_flow(parse_module(read_stored(made.dumps).flow), to="page", dump=tmp_path / "resumed")
    assert resumed.dumps and not read_stored(resumed.dumps).sources, "what was not traced here may have changed since"


def test_files_of_one_name_and_cells_of_notebooks_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    text = {"/a/mine.py": "one", "/b/mine.py": "two", "<ipython-input-3-ab>": "three", "/big.py": "x" * (LIMIT + 1)}
    monkeypatch.setattr("linecache.getlines", lambda path: [text[path]] if path in text else [])
    module = Module("flow", "mine")
    for i, path in enumerate([*text, "/gone.py"]):
        module.define(Function("func", f"f{i}", loc=Loc(path, 1)))
    assert [(f.name, f.text) for f in flow_files(module)] == [
        ("mine.py", "one"),
        ("mine-2.py", "two"),
        ("ipython-input-3-ab.py", "three"),
    ]


def test_what_is_neither_is_refused(both: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(VortexError, match="does not exist: an artifact or a dump folder is needed"):
        read_stored(tmp_path / "nothing")
    with pytest.raises(VortexError, match="has no manifest"):
        read_stored(tmp_path)
    for damage, why in (
        ({"steps": [{"name": 3}]}, "is damaged: steps"),
        ({"programs": {"cpu": "../../etc/passwd"}}, "the name of a file in the folder"),
        ({"programs": {"cpu": "missing.page"}}, "cannot be read"),
        ({"sources": {"/a/mine.py": "../mine.py"}}, "the name of a file in the folder"),
        ({"dump": 99}, "is not a manifest of a dump of version"),
    ):
        broken = tmp_path / "broken"
        shutil.copytree(both[0], broken)
        found = json.loads((broken / "manifest.json").read_text())
        (broken / "manifest.json").write_text(json.dumps(found | damage))
        with pytest.raises(VortexError, match=why):
            read_stored(broken)
        shutil.rmtree(broken)
