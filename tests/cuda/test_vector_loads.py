"""Loads of several words stay whole: TVM takes those apart of which it cannot prove the address to be aligned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cuda.harness import H200, cuda_source, lower
from vortex.codegen.cuda import pool_rows
from vortex.codegen.cuda.pool_rows import row_words
from vortex.codegen.emit import emit_kernel
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.spec import Spec

EXACT = str(Path(__file__).resolve().parents[2] / "examples" / "quest_then_exact.py")
APART = re.compile(r"make_\w+\d\(\(+\w+\s*\*\)")
"""A vector that is put together of numbers read one by one."""
WHOLE = re.compile(r"= \*\(uint[24]\*\)\(\(+uint\*\)k_ptr\)")
"""Several words of K read at once."""
SPECS = {
    "bf16": Spec(),
    "f16, few dims": Spec(dtype="f16", head_dim=64, group=8),
    "two words": Spec(head_dim=80),
    "blocks": Spec(page_size=64, block_size=16),
    "half a vector": Spec(head_dim=20, page_size=8),
    "fp8": Spec(kv_dtype="fp8_e4m3"),
    "f32": Spec(dtype="f32", head_dim=32),
}


def texts(spec: Spec) -> dict[str, str]:
    """CUDA C++ of the kernels that read rows of K by themselves."""
    program = lower(trace(find_flow(EXACT), spec))
    return {k: cuda_source(emit_kernel(program, program.functions[k], H200)) for k in ("append", "select")}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_rows_of_pools(spec: Spec) -> None:
    made = texts(spec)
    assert {kernel: APART.findall(text) for kernel, text in made.items()} == {"append": [], "select": []}
    whole = {kernel: len(WHOLE.findall(text)) for kernel, text in made.items()}
    assert whole["append"] > 0
    # select takes in tokens as append does, and reads rows of K beside
    assert whole["select"] > whole["append"] or spec in (SPECS["half a vector"], SPECS["f32"])


def test_a_load_that_falls_apart_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_rows, "row_words", lambda where, steps, packed, words: row_words(where, steps, packed, 1))
    made = texts(SPECS["bf16"])
    assert all(APART.search(text) and not WHOLE.search(text) for text in made.values())
