"""The GPU benchmarks' own judgement, on kernels written in torch: what is right passes, and what is wrong is said."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tests.runtime.fake import fake_library
from tests.runtime.test_variants import doubled
from vortex.budget import Budget, Cap
from vortex.check.reference import Judged
from vortex.driver import compile_flow
from vortex.ir.ranking import Ranked
from vortex.runtime.library import Library, open_library
from vortex.spec import Spec

BENCH = Path(__file__).resolve().parents[2] / "bench"
SPEC = Spec(page_size=4, head_dim=16, group=2, dtype="bf16")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    return __import__


def changed(library: Library, symbol: str, after: Callable[..., None]) -> Library:
    """``library`` with something done to a kernel's arguments after it ran."""
    args = next(k.args for k in library.target.kernels if k.symbol == symbol)

    def function(*values: object) -> None:
        library.functions[symbol](*values)
        after(**dict(zip(args, values, strict=True)))

    return replace(library, functions={**library.functions, symbol: function})


def second_best(**a: Any) -> None:
    counts = a["counts"]
    a["pages"][counts == counts.max()] += 1


@pytest.mark.parametrize(
    ("symbol", "after", "says"),
    [
        ("attend0", lambda **a: a["out"][0].mul_(1.1), "out of request 0, head 0"),
        ("append0", lambda **a: a["field.lo"].mul_(1.1), "lo after a prefill"),
        ("select0", second_best, "selection of request 0"),
    ],
)
def test_a_layer_is_judged(script: Callable[[str], ModuleType], symbol: str, after: Any, says: str) -> None:
    bench = script("gpu_layer")
    lengths = [4 * 34 + 3, 17]
    assert bench.check(bench.Layer(fake_library(SPEC), "cpu"), lengths, 0) == []
    wrong = bench.check(bench.Layer(changed(fake_library(SPEC), symbol, after), "cpu"), lengths, 0)
    assert any(w.startswith(says) for w in wrong), wrong


def test_a_layer_runs_the_variant_that_is_asked_for(script: Callable[[str], ModuleType]) -> None:
    bench, called = script("gpu_layer"), list[str]()
    library = doubled(fake_library(SPEC), called)
    for asked, name in (([], "attend_v1"), (["attend"], "attend"), (["attend_v1"], "attend_v1")):
        layer = bench.Layer(bench.only(library, asked), "cpu")
        row = bench.measured(layer, 1, 139, 1e12)
        assert row["kernels"][-1] == name, asked
        assert name in called
        assert row["layer_us"] > 0
        called.clear()
    with pytest.raises(SystemExit, match="attend_v1"):
        bench.only(library, ["attend_v7"])


@pytest.mark.parametrize("file", sorted(BENCH.rglob("*.py")), ids=lambda p: str(p.relative_to(BENCH)))
def test_what_a_benchmark_imports_is_there(file: Path) -> None:
    """Most of them run on machines with GPUs alone, where a name that was moved would be found late."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vortex":
            module = import_module(str(node.module))
            for name in (a.name for a in node.names):
                assert hasattr(module, name) or import_module(f"{node.module}.{name}"), name


class OneRow:
    """A row whose pages 1 and 2 score alike."""

    def request(self, row: int) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(1),) * 3


def judged(*_: object) -> Judged:
    return Judged([[0, 1, 4, 5]], [Ranked(np.array([1.0, 1.0, 0.0], np.float32))], torch.zeros(1), 6, Cap())


def test_what_graphs_promise(script: Callable[[str], ModuleType]) -> None:
    bench = script("gpu_decoder")
    outs = torch.randn(1, 2, 8), torch.randn(1, 2, 8)
    pages = (((0, 1, 4, 5),),)
    mine = bench.Result(("plan", "attend"), outs, pages)

    def says(**other: Any) -> list[str]:
        found: list[str] = mine.differs(replace(mine, **other), OneRow(), Budget(1), judged)
        return found

    near, far = (outs[0] * 1.001, outs[1]), (outs[0], outs[1] * 1.1)
    alike, worse = (((0, 2, 4, 5),),), (((0, 3, 4, 5),),)
    assert says() == []
    assert says(outs=near) == ["sparse has other bits, from the same kernels"]
    assert says(pages=alike) == ["pages are others, from the same kernels"]
    variant = ("plan", "attend_v1")
    assert says(kernels=variant, outs=near) == []
    assert says(kernels=variant, outs=far)[0].startswith("row 0: dense of another variant by")
    assert says(kernels=variant, pages=alike, outs=(outs[0] * 2, outs[1])) == [], "of other pages, as good"
    assert says(kernels=variant, pages=worse) == ["row 0: another variant selects 1 other pages"]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a flow of two steps, whose pages have four blocks."""
    path, spec = (
        tmp_path_factory.mktemp("steps") / "pyramid.vxa",
        replace(SPEC, page_size=16, block_size=4, head_dim=32),
    )
    compile_flow(str(BENCH / "language_flows.py") + ":pyramid_fp8", spec=spec, out=path)
    return path


@pytest.mark.parametrize(
    ("symbol", "after", "says"),
    [
        ("attend", lambda **a: a["out"][0].mul_(1.1), "out of request 0, head 0"),
        ("append", lambda **a: a["field.keys_scale"].mul_(1.1), "summaries of request 0, head 0"),
        ("append", lambda **a: a["field.lo"].view(torch.uint8).fill_(0), "summaries of request 0, head 0"),
        ("select", second_best, "selection of request 0"),
        ("", second_best, ""),
    ],
)
def test_a_layer_is_judged_by_its_ir(
    script: Callable[[str], ModuleType], two_steps: Path, symbol: str, after: Any, says: str
) -> None:
    bench = script("gpu_layer")
    library = open_library(two_steps, "cpu")
    ir = bench.ByIR.of(two_steps, library)
    symbols = {k.name: k.symbol for k in library.target.kernels}
    given = changed(library, symbols[symbol], after) if symbol else library
    layer = bench.Layer(given, "cpu", Budget(8), ir)
    wrong = bench.check(layer, [16 * 40 + 3, 17], 0)
    assert any(w.startswith(says) for w in wrong) if symbol else wrong == [], wrong
    if not symbol:
        row = bench.measured(layer, 2, 643, 1e12, between=1)
        assert row["wrong"] == []
        assert row["between_MB"] == 1 and row["between_us"] > 0
        # 38 pages of bounds, and the keys of 128 blocks in 4 bits with their scales
        least = 2 * bench.HKV * (38 * 2 * 32 + 32 * 16 * (32 / 2 + 2))
        assert least < 1e6 * row["MB"][0] < 1.1 * least


def test_what_is_read_between_steps_is_not_counted(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, called, read = script("gpu_layer"), list[str](), list[int]()
    us, multiply = {"read": 7.0, "step": 5.0}, torch.mv

    def mv(weights: torch.Tensor, x: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        read.append(weights.nbytes)
        return multiply(weights, x, out=out)

    def timed(calls: list[Callable[[], object]], device: torch.device) -> float:
        names = []
        for call in calls:
            call()
            names.append(call.__name__)
        called.extend(names)
        return sum(us[n] for n in names) / len(names)

    def step() -> None:
        assert len(read) == 1 and 1.9e6 < read[0] <= 2e6, "nothing, or too little, was read before"
        read.clear()

    monkeypatch.setattr(bench, "timed", timed)
    monkeypatch.setattr(torch, "mv", mv)
    assert bench.timed_between([step, step], 2, torch.device("cpu")) == 5.0
    assert called == ["read", "step", "read", "step", "read", "read"]


NCU = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum","lts__t_sectors_op_write.sum"
"","","","byte","byte","sector"
"0","7","quest_append_kernel","6,400","640","32"
"1","7","void at::native::fill<int>(int)","1","1","1"
"2","7","quest_select_v1_kernel","1,000,000","0","10"
"3","7","quest_attend_kernel","2,000,000","0","1"
"4","7","quest_attend_kernel_1","500,000","0","1"
"5","7","quest_append_kernel","1,600","0","16"
"6","7","quest_select_v1_kernel","9","9","9"
"7","7","quest_attend_kernel","9","9","9"
==PROF== Disconnected from process 7
"""


def test_bytes_of_ncu_stand_beside_the_counted_ones(script: Callable[[str], ModuleType]) -> None:
    bench = script("gpu_bytes")
    kinds = {"quest_append": "append", "quest_select_v1": "select", "quest_attend": "attend"}
    calls = bench.calls_of([(2, 64)])
    moved = bench.sums(bench.launches(NCU), kinds, calls)
    each = {"read": 100.0, "written": 25.0, "kept_between_sweeps": 5.0}
    append, select, attend = bench.rows_of("quest", moved, calls, {64: dict.fromkeys(bench.KINDS, each)}, 16)
    assert select["counted"] == {"read": 1600, "written": 400, "kept_between_sweeps": 80}
    assert select["measured"] == {"dram_read": 1_000_000, "dram_written": 0, "l2_written": 320}
    assert select["read_ratio"] == 625.0 and select["ratio"] == 500.0
    assert attend["measured"]["dram_read"] == 2_500_000, "of both its kernels"
    assert append["measured"] == {"dram_read": 1900, "dram_written": 40, "l2_written": 32 * 17}, "one step in 16 fills"


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("==ERROR== LibraryNotLoaded", "LibraryNotLoaded"),
        (NCU.replace("quest_select_v1", "other"), "ncu saw"),
    ],
)
def test_what_ncu_does_not_measure_is_said(script: Callable[[str], ModuleType], log: str, says: str) -> None:
    bench = script("gpu_bytes")
    kinds = {"quest_append": "append", "quest_select_v1": "select", "quest_attend": "attend"}
    with pytest.raises(ValueError, match=says):
        bench.sums(bench.launches(log), kinds, bench.calls_of([(2, 64)]))


def test_bytes_are_counted_by_kind(script: Callable[[str], ModuleType], two_steps: Path) -> None:
    found = script("gpu_bytes").counted(two_steps, open_library(two_steps, "cpu"), 640)
    assert {"append", "select", "attend"} <= set(found)
    assert found["attend"]["read"] > 30 * 4 * 32 * 2 * 2
