"""Compilations to report on, made once: a flow whose texts try to break out of the page, as dump and as artifact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.report.browser import CHROMIUM, Browser
from vortex.compilation.stored import Stored, read_stored
from vortex.driver import compile_flow
from vortex.report.compilation import Request, describe
from vortex.report.model import Compilation, Report
from vortex.report.page import html
from vortex.targets.target import TARGETS
from vortex.tune.layers import Layers
from vortex.tune.shapes import Shape

EVIL = "</script><script>alert(1)</script>"
FLOW = f'''\
import torch, vortex

@vortex.register("mass8")
class Mass(vortex.vFlow):
    """{EVIL} <img src=x onerror=alert(2)> -->"""
    def create_cache(self, spec):
        return {{"kq": vortex.Field(spec.page_size, spec.head_dim, dtype="fp8_e4m3")}}
    def forward_cache(self, page):
        return {{"kq": page.k}}
    def forward_indexer(self, q, cache):
        logits = torch.einsum("spd,gd->spg", cache.kq, q * 0.088)  # {EVIL}
        return vortex.topk(torch.logsumexp(logits, 1).softmax(0).sum(-1))
'''
EINSUM = 11
"""The line of the contraction."""
SHAPE = Shape(batch=4, kv_heads=8, tokens=1024, kept=30)


@dataclass(frozen=True)
class Made:
    """What a compilation left, and the flow's file."""

    dump: Path
    artifact: Path
    file: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A dump for a CPU and a GPU, without nvcc, and an artifact for a CPU."""
    folder = tmp_path_factory.mktemp("report")
    file = folder / "<script>alert(3)<" / "script>.py"
    file.parent.mkdir()
    file.write_text(FLOW)
    argv = ["vortex", "compile", f"{file}"]
    targets = [TARGETS["cpu"], TARGETS["sm_90a"]]
    dumped = compile_flow(str(file), targets=targets, to="tir", dump=folder / "dump", argv=argv)
    built = compile_flow(str(file), out=folder / "made.vxa", argv=argv)
    assert dumped.dumps and built.artifact
    return Made(dumped.dumps, built.artifact, file)


@pytest.fixture(scope="session")
def stored(made: Made) -> Stored:
    return read_stored(made.dump)


@pytest.fixture(scope="session")
def compilation(stored: Stored) -> Compilation:
    return describe(stored, Request(SHAPE, Layers({})))


@pytest.fixture(scope="session")
def page(compilation: Compilation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report as a file."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(html(Report((compilation,))), "utf-8")
    return file


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("there is no Chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found
