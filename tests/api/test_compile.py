"""``vortex.compile``: flows, targets and tuning results as a Python program names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vortex
from vortex.cli.main import main
from vortex.install import databases
from vortex.ir.printer import print_module
from vortex.targets.target import TARGETS
from vortex.tune import layers

SPEC = vortex.Spec(page_size=16, head_dim=64, group=2)
FLOW = """
import vortex

@vortex.register("first_key")
class FirstKey(vortex.vFlow):
    def create_cache(self, spec):
        return {"first": vortex.Field(spec.head_dim)}
    def forward_cache(self, page):
        return {"first": page.k[0]}
    def forward_indexer(self, q, cache):
        return vortex.topk((cache.first @ q.T).amax(-1))
"""


def test_public_names_are_there() -> None:
    for name in vortex._PUBLIC:
        assert getattr(vortex, name) is not None, name
    assert {"Decoder", "PagedCache", "compile", "decode", "load"} <= set(dir(vortex))


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("cpu", ["cpu"]),
        (["sm_90a"], ["sm_90a"]),
        ("sm_90, cpu", ["sm_90a", "cpu"]),
        (["sm_100", TARGETS["sm_100a"]], ["sm_100a"]),
        (TARGETS["cpu"], ["cpu"]),
    ],
)
def test_targets_are_names_or_objects(targets: Any, names: list[str]) -> None:
    assert list(vortex.compile("block_topk", spec=SPEC, targets=targets, to="page").programs) == names


def test_a_flow_is_a_name_a_file_a_class_or_an_object(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FLOW)
    cls = vortex.find_flow(str(file))
    made = [vortex.compile(x, spec=SPEC, to="flow").flow for x in (file, str(file), f"{file}:first_key", cls, cls())]
    texts = {print_module(m, locs=False) for m in made if m is not None}
    assert len(made) == 5
    assert len(texts) == 1
    assert "@first_key" in texts.pop()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"targets": ["cpuu"]}, "error[VX4001]: no target 'cpuu', did you mean 'cpu'?"),
        ({"targets": " , "}, "error[VX7001]: targets: names no target"),
        ({"targets": 90}, "error[VX6002]: targets: is int; names of targets are needed"),
        ({"spec": {"page_size": 16}}, "error[VX6002]: spec: is dict; a vortex.Spec is needed"),
        ({"to": "ptx"}, "error[VX7001]: to: is 'ptx'"),
        ({"variants": True}, "error[VX7001]: variants: is True"),
        ({"db": False, "shape": "batch=1"}, "error[VX7001]: shape: chooses among tuning results"),
        ({"db": "none.db"}, "error[VX7002]: 'none.db' does not exist"),
        ({"flow": object()}, "error[VX1019]: object does not derive from vortex.vFlow"),
        ({"flow": "quset"}, "error[VX1018]: no flow named 'quset', did you mean 'quest'?"),
    ],
)
def test_mistakes_name_the_argument(given: dict[str, Any], message: str) -> None:
    with pytest.raises(vortex.VortexError) as caught:
        vortex.compile(given.pop("flow", "quest"), **{"to": "page", **given})
    assert str(caught.value).startswith(message)


def test_schedules_come_from_the_databases_as_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(databases.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(databases, "SHIPPED", Path(layers.__file__).with_name("shipped"))
    shape = "batch=8,kv_heads=8,tokens=32763,kept=30"
    for words, given in (
        ([], {}),
        (["--no-db"], {"db": False}),
        (["--shape", shape], {"shape": shape}),
        (["--variants", "1"], {"variants": 1}),
    ):
        made = vortex.compile("block_topk", targets="sm_90a", to="page", **given).programs["sm_90a"]
        assert main(["compile", "block_topk", "--target", "sm_90a", "--to", "page", "--no-dump", *words]) == 0
        said, text = capsys.readouterr().out, print_module(made)
        assert text == said
        assert ("variants = " in text, "db:" in text) == {(): (True, True), ("db",): (False, False)}.get(
            tuple(given), (False, True)
        )
