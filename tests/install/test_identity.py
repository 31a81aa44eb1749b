"""What decides a build: each part that changes gives another key and is named; what does not count changes nothing."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import vortex
from tests.tune.records import record
from vortex.cli.main import main
from vortex.flow.flow import _REGISTRY
from vortex.install import databases
from vortex.install.identity import UNUSED, Identity, code, of_build, records, tools, traced
from vortex.runtime import compiled
from vortex.runtime.compiled import ModelShape
from vortex.spec import Spec
from vortex.tune.store import Store

ROOT = Path(vortex.__file__).parent
SPEC = Spec(page_size=4, head_dim=16, group=2, dtype="bf16")

FLOW = """
import torch, vortex
from knobs_of_mine import STRENGTH
SIGN = torch.load("sign.pt")

@vortex.register("late_or_early")
class F(vortex.vFlow):
    def create_cache(self, spec): return {"m": vortex.Field()}
    def forward_cache(self, page): return {"m": page.k.mean()}
    def forward_indexer(self, q, cache): return vortex.topk(SIGN * (STRENGTH * vortex.page_index()) + 0 * cache.m)
"""


@pytest.fixture
def flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A flow that imports a helper and loads a weight, in the current folder, with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("VORTEX_DB", str(tmp_path / "tune.db"))
    monkeypatch.setenv(compiled.COMPILER, sys.executable)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("flow_of_mine.py").write_text(FLOW)
    Path("knobs_of_mine.py").write_text("STRENGTH = 1\n")
    torch.save(torch.tensor([1.0]), "sign.pt")
    yield "flow_of_mine.py"
    sys.modules.pop("knobs_of_mine", None)
    _REGISTRY.pop("late_or_early", None)


def identity(flow: str, spec: Spec = SPEC, target: str = "sm_90a") -> Identity:
    """As a new process would have it."""
    sys.modules.pop("knobs_of_mine", None)
    return compiled.identity_of(flow, spec, target)


def other_text(flow: str) -> None:
    Path(flow).write_text(FLOW.replace("0 * cache.m", "0 * cache.m + 1"))


CHANGES: dict[str, tuple[Callable[[str], object], set[str]]] = {
    "an imported helper": (lambda _: Path("knobs_of_mine.py").write_text("STRENGTH = 3\n"), {"ir"}),
    "a loaded weight": (lambda _: torch.save(torch.tensor([-1.0]), "sign.pt"), {"constants"}),
    "the flow's text": (other_text, {"ir", "source"}),
    "a comment in the flow": (lambda f: Path(f).write_text(FLOW.replace("+ 0 *", "+ 0 *  ")), {"source"}),
    "the user's records": (lambda _: put("tune.db"), {"records.user"}),
    "the project's records": (lambda _: project(), {"records.project"}),
}


def put(path: str) -> None:
    with Store(Path(path)) as store:
        store.put([record({"warps": 1}, 10.0)])


def project() -> None:
    Path(".vortex").mkdir()
    Path(".vortex/team.jsonl").write_text(record({"warps": 1}, 10.0).to_line() + "\n")


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_flow_depends_on_is_seen_and_named(flow: str, what: str) -> None:
    change, named = CHANGES[what]
    before = identity(flow)
    assert identity(flow) == before and identity(flow).key == before.key, "nothing changed"
    change(flow)
    after = identity(flow)
    assert after.key != before.key
    assert set(after.differences(before)) == named


def test_where_a_flow_lies_does_not_count(flow: str) -> None:
    before = identity(flow)
    Path("sub").mkdir()
    Path("sub/moved.py").write_text("\n\n" + FLOW)
    _REGISTRY.pop("late_or_early")
    assert identity("sub/moved.py").key == before.key


def test_what_is_asked_for(flow: str) -> None:
    before = identity(flow)
    assert set(identity(flow, Spec(page_size=8, head_dim=16, group=2, dtype="bf16")).differences(before)) == {
        "ir",
        "spec",
    }
    assert set(identity(flow, target="sm_100a").differences(before)) == {"target"}
    made = {"spec": "s", "target": "t", "passes": "p", "knobs": "k"}
    base = of_build({}, **made)  # type: ignore[arg-type]
    for name in made:
        assert set(of_build({}, **made | {name: "other"}).differences(base)) == {name}  # type: ignore[arg-type]


def test_shipped_records_and_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VORTEX_DB", str(tmp_path / "tune.db"))
    monkeypatch.setattr(databases, "SHIPPED", tmp_path)
    assert records() == {}
    (tmp_path / "h200.jsonl").write_text("a\n")
    first = records()
    (tmp_path / "h200.jsonl").write_text("b\n")
    assert first.keys() == records().keys() == {"records.shipped"} and first != records()
    (tmp_path / "tune.db").write_text("no database")
    assert records()["records.user"].startswith("unreadable")
    monkeypatch.setenv("VORTEX_DB", "none")
    assert records() == {}


def test_code_by_package(tmp_path: Path) -> None:
    for file in ("driver.py", "codegen/emit.py", "codegen/build/shim.c", "passes/fuse.py", "runtime/decoder.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("1\n")
    before = Identity(code(tmp_path))
    assert before.parts.keys() == {"code.driver", "code.codegen", "code.passes", "c_sources"}
    named = {"codegen/emit.py": {"code.codegen"}, "codegen/build/shim.c": {"c_sources"}, "runtime/decoder.py": set()}
    for file, parts in named.items():
        (tmp_path / file).write_text("2\n")
        after = Identity(code(tmp_path))
        assert set(after.differences(before)) == parts
        before = after
    (tmp_path / "passes" / "fuse.py").rename(tmp_path / "passes" / "fuse2.py")
    assert set(Identity(code(tmp_path)).differences(before)) == {"code.passes"}, "a name counts as well"


def test_all_that_a_compilation_imports_is_in_it() -> None:
    parts = code()
    assert {"code.codegen", "code.ir", "code.passes", "code.targets", "code.tune", "c_sources"} <= parts.keys()
    todo, seen = [ROOT / "cli" / "compile.py", *(ROOT / "codegen").rglob("*.py")], set[Path]()
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vortex":
                base = ROOT.joinpath(*node.module.split(".")[1:])
                found = [base.with_suffix(".py"), *(base / f"{a.name}.py" for a in node.names)]
                todo += [f for f in found if f.is_file()]
    assert len(seen) > 80
    assert [f for f in seen if f.relative_to(ROOT).parts[0] in UNUSED] == []


def test_the_tools_of_another_environment(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    (packages / "apache_tvm-0.27.0.dist-info").mkdir(parents=True)
    python = tmp_path / "bin" / "python"
    first = tools(python)
    assert "apache_tvm 0.27.0" in first and str(python) in first
    (packages / "apache_tvm-0.27.0.dist-info").rename(packages / "apache_tvm-0.28.0.dist-info")
    assert "apache_tvm 0.28.0" in tools(python)
    assert "apache_tvm 0.2" in tools() or "tvm" not in sys.modules


def test_constants_and_source_have_names_of_their_own() -> None:
    a, b = (traced(f"const @c {{{x}}} source {y}", {"c": x}, y) for x, y in (("AAAA", "s1"), ("BBBB", "s2")))
    assert a["ir"] == b["ir"] and a["constants"] != b["constants"] and a["source"] != b["source"]


def test_it_is_read_again_or_refused(tmp_path: Path) -> None:
    made, file = Identity({"ir": "1", "spec": "2"}), tmp_path / "x.json"
    made.write(file)
    assert Identity.read(file) == made
    for text in ("{", "[]", '{"ir": 1}', "[" * 100_000):
        file.write_text(text)
        assert Identity.read(file) is None
    near, far = Identity({"ir": "1", "spec": "3"}), Identity({"ir": "9", "spec": "3"})
    assert made.nearest([far, near]) is near and made.nearest([]) is None
    assert Identity({"ir": "1"}).differences(made) == {"spec": ("-", "2")}


def test_candidates_of_a_bundle() -> None:
    from vortex.tune.build import _identity

    base = of_build({}, spec="", target="cpu", consults=False)
    made = _identity(base, "program", "select", [(("threads", 1),)])
    assert {"code.codegen", "code.ir", "c_sources", "tools"} <= made.parts.keys()
    assert set(_identity(base, "other", "select", [(("threads", 1),)]).differences(made)) == {"ir"}
    assert set(_identity(base, "program", "attend", [(("threads", 1),)]).differences(made)) == {"kernel"}
    assert set(_identity(base, "program", "select", [(("threads", 2),)]).differences(made)) == {"knobs"}


def kept(path: Path) -> list[int]:
    """The pages of 20 that the artifact keeps."""
    d = vortex.load(path, budget=vortex.Budget(pages=3, sink=1, recent=1))
    k = torch.randn(20, 1, 4, 16).bfloat16()
    d.bind(0, k, k, {"m": torch.zeros(20, 1).bfloat16()})
    d.plan(torch.tensor([80], dtype=torch.int32), torch.arange(20, dtype=torch.int32)[None])
    d.decode(0, torch.randn(1, 2, 16).bfloat16(), out=torch.empty(1, 2, 16).bfloat16())
    return [int(n) for n in d.pages[0, 0, : int(d.counts[0, 0])]]


def test_an_engine_start_after_a_weight_changed(
    flow: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ModelShape(SPEC, 1)

    def command(*args: str) -> str:
        capsys.readouterr()
        assert main(list(args)) == 0
        return capsys.readouterr().out

    options = ("explain-cache", flow, "--heads", "2/1", "--head-dim", "16", "--page-size", "4")
    assert not json.loads(command(*options, "--json"))["hit"]
    late = compiled.artifact_for(flow, shape, "cpu")
    assert kept(late) == [0, 16, 17, 18, 19]
    assert compiled.artifact_for(flow, shape, "cpu") == late
    assert f"hit: {late}" in command(*options)
    torch.save(torch.tensor([-1.0]), "sign.pt")
    found = json.loads(command(*options, "--json"))
    assert (found["hit"], found["nearest"], list(found["differs"])) == (False, str(late), ["constants"])
    assert f"the nearest is {late}, which differs in constants" in command(*options)
    early = compiled.artifact_for(flow, shape, "cpu")
    assert early != late and kept(early) == [0, 1, 2, 3, 19]
    # as one leaves it who is killed when the artifact is there: the next start notes what decided it
    early.with_suffix(".json").unlink()
    assert compiled.artifact_for(flow, shape, "cpu") == early
    # without a compiler nobody can say which tools are meant
    monkeypatch.delenv(compiled.COMPILER)
    monkeypatch.setattr(compiled, "compiler", lambda: None)
    monkeypatch.setattr("vortex.install.identity.tools", lambda python=None: "others")
    assert compiled.artifact_for(flow, shape, "cpu") == early


def test_a_flow_that_only_the_compiler_can_load_is_compiled_each_time(
    flow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("knobs_of_mine.py").write_text("raise ImportError('in the other environment alone')\n")
    calls: list[Path] = []
    monkeypatch.setattr(compiled, "_compile", lambda flow, shape, target, path: calls.append(path))
    for _ in range(2):
        sys.modules.pop("knobs_of_mine", None)
        compiled.artifact_for(flow, ModelShape(SPEC, 1), "cpu")
    assert len(set(calls)) == 2
    with pytest.raises(vortex.VortexError, match="VX7002"):
        compiled.artifact_for("gone.py", ModelShape(SPEC, 1), "cpu")


def test_it_is_quick() -> None:
    import time

    began = time.perf_counter()
    of_build({}, spec="", target="cpu")
    assert time.perf_counter() - began < 2
