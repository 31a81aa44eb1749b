"""Runs command lines in this process, in a folder of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from vortex.cli.main import main

FLOW = '''\
import torch, vortex

@vortex.register("tiny_mean")
class TinyMean(vortex.vFlow):
    """Mean key of a page."""

    def create_cache(self, spec):
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page):
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q, cache):
        return vortex.topk((q.mean(0) * cache.mean).sum(-1))
'''


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


class Vortex(Protocol):
    def __call__(self, *args: str) -> Result: ...


@pytest.fixture
def vortex(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Vortex:
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> Result:
        capsys.readouterr()
        code = main(list(args))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def flow_file(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "tiny.py"
    file.write_text(FLOW)
    yield file
    from vortex.flow.flow import _REGISTRY

    _REGISTRY.pop("tiny_mean", None)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``quest.vxa`` (head dim 64) and its dumps; tests copy what they change."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        code = main(["compile", "quest", "--head-dim", "64", "-o", "quest.vxa", "--dump-dir", "dump"])
    assert code == 0
    return folder
