"""What goes wrong in a flow written for vortex_torch: one error with a code, at the line of that file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import vortex
from vortex.errors import VortexError
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace

HEAD = """
from vortex_torch.flow import register, vFlow, vFlowMLA
from vortex_torch.indexer import *
from vortex_torch.cache import Mean as CMean, Max as CMax, Fill as CFill, MeanInterleave as CMeanInterleave
"""
FLOW = """
@register("mine")
class Mine(vFlow):
    def __init__(self):
        super().__init__()
        self.mean, self.gemm, self.out = Mean(dim=1), GeMM(), topK()
        self.k_mean = CMean(dim=1)

    def create_cache(self, block_size, head_dim):
        return {"c": (1, head_dim)}

    def forward_cache(self, cache, loc, ctx):
        self.k_mean(cache["k"], cache["c"], loc=loc, ctx=ctx)

    def forward_indexer(self, q, o, cache, ctx):
        score = self.gemm(self.mean(q, ctx=ctx), cache["c"], ctx=ctx)
        self.out(score, o, ctx=ctx)
"""
REQUEST = "    def create_request_cache(self, block_size, head_dim):\n"
SPEC = vortex.Spec(page_size=16, head_dim=16, group=2)


def traced(tmp_path: Path, text: str, spec: vortex.Spec = SPEC) -> None:
    file = tmp_path / "theirs.py"
    file.write_text(HEAD + text)
    trace(find_flow(f"{file}:mine"), spec)


def changed(old: str, new: str) -> str:
    assert FLOW.count(old) == 1, old
    return FLOW.replace(old, new)


CASES: dict[str, tuple[str, str, str, str]] = {
    "nothing_written": (changed("self.out(score, o, ctx=ctx)", "pass"), "VX1083", "def forward_indexer", "topK"),
    "written_twice": (
        changed("self.out(score, o, ctx=ctx)", "self.out(score, o, ctx=ctx); self.out(score, o, ctx=ctx)"),
        "VX1081",
        "self.out",
        "o is written already",
    ),
    "no_score": (
        changed("self.out(score,", "self.out(self.mean(q, ctx=ctx),"),
        "VX1081",
        "self.out(",
        "score [S, 1, 1]",
    ),
    "one_score_for_all": (
        changed("self.out(score,", "self.out(Sum(dim=2)(self.mean(q, ctx=ctx), ctx=ctx),"),
        "VX1081",
        "self.out(",
        "made from the cache",
    ),
    "another_output": (changed("self.out(score, o,", "self.out(score, cache,"), "VX1081", "self.out(", "score, o"),
    "inner_sizes": (
        changed('self.mean(q, ctx=ctx), cache["c"]', 'Transpose()(q, ctx=ctx), cache["c"]'),
        "VX1081",
        "self.gemm",
        "y x^T",
    ),
    "gemv_rows": (changed("self.gemm(self.mean(q, ctx=ctx)", "GeMV()(q"), "VX1081", "GeMV()", "GeMM takes matrices"),
    "broadcast": (
        changed(
            "score = self.gemm",
            "score = Multiply()(q, Reshape(-1, 16, 1)(cache['c'], ctx=ctx), ctx=ctx)\n        self.gemm",
        ),
        "VX1081",
        "Multiply()",
        "equal sizes",
    ),
    "softmax_of_the_query": (
        changed("score = self.gemm", "Softmax()(q, ctx=ctx)\n        score = self.gemm"),
        "VX1081",
        "Softmax()",
        "same for all pages",
    ),
    "softmax_dim": (
        changed("GeMM(), topK()", "GeMM(), topK(); Softmax(dim=1)"),
        "VX1080",
        "Softmax(dim=1)",
        "dim is 0",
    ),
    "cache_dim": (changed("CMean(dim=1)", "CMean(dim=0)"), "VX1080", "CMean(dim=0)", "dim is 1 or 2"),
    "mean_of_the_query": (
        changed("self.mean(q, ctx=ctx),", "Mean(dim=0)(q, ctx=ctx),"),
        "VX1081",
        "Mean(dim=0)",
        "over the pages",
    ),
    "field_shape": (changed('"c": (1, head_dim)', '"c": (2, head_dim)'), "VX1081", "self.k_mean(", "declared (2, 16)"),
    "field_size": (changed("(1, head_dim)", "(0, head_dim)"), "VX1016", '"c"', "positive integers"),
    "field_of_three": (changed("(1, head_dim)", "(1, 1, head_dim)"), "VX1016", '"c"', "(r, c)"),
    "field_k": (
        changed('{"c": (1, head_dim)}', '{"c": (1, head_dim), "k": (1, 1)}'),
        "VX1016",
        '"k"',
        "must not declare",
    ),
    "field_unwritten": (
        changed('{"c": (1, head_dim)}', '{"c": (1, head_dim), "d": (1, 1)}'),
        "VX1081",
        "def forward_cache",
        "field 'd' of create_cache",
    ),
    "field_unknown": (changed('cache["c"], ctx', 'cache["d"], ctx'), "VX1081", "cache[", "no field 'd'"),
    "read_before_written": (
        changed(
            "        self.k_mean(cache",
            '        CMax(dim=1)(cache["c"], None, loc=loc, ctx=ctx)\n        self.k_mean(cache',
        ),
        "VX1081",
        "CMax",
        "before an operator has written it",
    ),
    "other_side": (changed("self.k_mean(cache", "Mean(dim=1)(cache"), "VX1081", "Mean(dim=1)(", "forward_cache"),
    "other_side_too": (changed("self.mean(q, ctx=ctx)", "self.k_mean(q, None)"), "VX1081", "self.k_mean(", "indexer"),
    "divisor": (
        changed("self.k_mean = CMean(dim=1)", "self.k_mean = CMeanInterleave(dim=1, k=5)"),
        "VX1081",
        "self.k_mean(",
        "does not divide",
    ),
    "reshape": (
        changed('cache["c"], ctx=ctx)', 'Reshape(-1, 3, 5)(cache["c"], ctx=ctx), ctx=ctx)'),
        "VX1081",
        "Reshape",
        "3 * 5",
    ),
    "reshape_leading": (changed("GeMM(), topK()", "GeMM(), topK(); Reshape(1, 2, 3)"), "VX1080", "Reshape(1", "-1"),
    "save_of_the_query": (
        changed("score = self.gemm", 'Save()(q, cache["c"], ctx=ctx)\n        score = self.gemm'),
        "VX1081",
        "Save()",
        "declared (1, 16)",
    ),
    "save_into_a_value": (
        changed("score = self.gemm", "Save()(q, q, ctx=ctx)\n        score = self.gemm"),
        "VX1081",
        "Save()",
        "no field of the cache",
    ),
    "union_of_scores": (
        changed("self.out(score,", "Union()(score, score,"),
        "VX1081",
        "Union()",
        "not what TopK gives",
    ),
    "k": (changed("topK()", "TopK(0)"), "VX1080", "TopK(0)", "positive integer"),
    "tolerance": (changed("topK()", "approxTopK(2.0)"), "VX1080", "approxTopK(2.0)", "0 to 1"),
    "outside": (changed("super().__init__()", "super().__init__(); Abs()(1)"), "VX1081", "Abs()(1)", "outside"),
    "no_tensor": (
        changed("self.mean(q, ctx=ctx), cache", "self.mean(3, ctx=ctx), cache"),
        "VX1081",
        "self.mean(3",
        "int",
    ),
    "rank": (changed("self.mean(q, ctx=ctx), cache", "q[0], cache"), "VX1081", "self.gemm", "three axes"),
    "context": (
        changed("score = self.gemm", "ctx.topk_val\n        score = self.gemm"),
        "VX1013",
        "ctx.topk_val",
        "run time",
    ),
    "signature": (
        changed("self, q, o, cache, ctx", "self, q, cache"),
        "VX1025",
        "def forward_indexer",
        "q, o, cache, ctx",
    ),
    "latent": (FLOW.replace("vFlow)", "vFlowMLA)"), "VX1082", "def __init__", "--latent"),
    "request_field": (
        changed("    def forward_cache(", REQUEST + '        return {"seen": (1, 1)}\n\n    def forward_cache('),
        "VX1016",
        '"seen"',
        "create_request_cache declares 'seen', which live as long as a request",
    ),
    "request_field_of_other_numbers": (
        changed(
            "    def forward_cache(",
            REQUEST.replace("head_dim", "head_dim, slots")
            + '        return {"seen": (slots, 1)}\n\n    def forward_cache(',
        ),
        "VX1016",
        "return {",
        "write them by Save",
    ),
    "own_operator": (
        FLOW + "\nfrom vortex_torch.abs import vOp\nclass Own(vOp): pass\nMine.__init__.__globals__['GeMM'] = Own",
        "VX1080",
        "self.gemm(",
        "plain torch",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_mistakes_are_found_at_their_line(name: str, tmp_path: Path) -> None:
    text, code, at, says = CASES[name]
    with pytest.raises(VortexError) as e:
        traced(tmp_path, text)
    assert e.value.code == code, e.value.render()
    assert says in e.value.render()
    assert e.value.loc is not None and e.value.loc.file.endswith("theirs.py"), e.value.render()
    line = (HEAD + text).splitlines()[e.value.loc.line - 1]
    assert at in line, e.value.render()
    assert not re.search(r"<\w+>", e.value.render()), "a field of the message is missing"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("from vortex_torch.indexer import GeMMM", "GeMMM"),
        ("import vortex_torch.engine.sgl.api", "vortex_torch.engine"),
        ("from vortex_torch.engine.sgl.config import VortexConfig", "vortex_torch.engine"),
    ],
)
def test_names_that_are_not_there(line: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(VortexError) as e:
        traced(tmp_path, line + FLOW)
    assert e.value.code == "VX1084"
    assert says in e.value.render()
    assert e.value.loc is not None and e.value.loc.line == 1 + len(HEAD.splitlines())
    # a file for several generations may ask whether a name is there
    traced(tmp_path, f"try:\n    {line}\nexcept ImportError:\n    pass\n" + FLOW)


def test_a_latent_shape_wants_the_other_base(tmp_path: Path) -> None:
    with pytest.raises(VortexError) as e:
        traced(tmp_path, FLOW, vortex.Spec.of_latent("8+8", heads=2))
    assert (e.value.code, "vFlowMLA" in e.value.render()) == ("VX1082", True)


@pytest.mark.parametrize("nothing", ["{}", "None"])
def test_a_flow_without_fields_of_a_request(nothing: str, tmp_path: Path) -> None:
    traced(tmp_path, changed("    def forward_cache(", f"{REQUEST}        return {nothing}\n\n    def forward_cache("))


def test_a_tensor_kept_on_the_flow_is_refused(tmp_path: Path) -> None:
    kept = changed("score = self.gemm", "q = getattr(self, 'before', q); self.before = q\n        score = self.gemm")
    with pytest.raises(VortexError) as e:
        traced(tmp_path, kept)
    assert e.value.code == "VX1023"


def test_the_eager_flow_refuses_the_same(tmp_path: Path) -> None:
    file = tmp_path / "theirs.py"
    file.write_text(HEAD + CASES["inner_sizes"][0])
    cls: Any = find_flow(f"{file}:mine")
    with pytest.raises(VortexError) as e:
        oracle.step(cls, SPEC, torch.randn(2, 16), torch.randn(200, 1, 16), torch.randn(200, 1, 16), vortex.Budget(2))
    assert e.value.code == "VX1081"
