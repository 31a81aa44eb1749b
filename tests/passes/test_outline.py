"""Names of the kernels that pass outline makes."""

from __future__ import annotations

import re
from typing import Any

import pytest

import vortex
from vortex.errors import VortexError
from vortex.flow.trace import trace
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.passes.manager import PassContext, run_pipeline
from vortex.spec import Spec


class Named(vortex.vFlow):
    """Its variables have the names of kernels that come after theirs."""

    def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim), "steps": vortex.Field(dtype="f32", state="request")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        topk = (cache.mean * q.mean(0)).sum(-1)
        to_steps = topk.abs()
        return vortex.topk(to_steps - topk), {"steps": cache.steps + 1}


def test_variables_called_like_the_kernels_at_the_end() -> None:
    made = run_pipeline(trace(Named, Spec(head_dim=16)), "outline", PassContext(None))
    names = [f.name for f in made.functions.values() if f.attrs["kind"] == "select"]
    assert {"select_topk", "select_topk_", "select_to_steps", "select_to_steps_"} <= set(names)
    assert made.functions["select_topk"].ops[-1].attrs["buffer"] == "pages"
    assert made.functions["select_to_steps"].ops[-1].attrs["buffer"] == "steps"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("%mean: ", "%middle: ", "func @index takes %middle; it may take %q, %k, %v, %mean, %steps"),
        ("%k: bf16[16, 16], %v", "%v: bf16[16, 16], %k", "func @cache takes %v, %k; it takes %k, %v"),
        (
            "%q: bf16[4, 16]",
            "%q: f32[4, 16]",
            "%q is f32[4, 16], and by the module's attributes and fields bf16[4, 16]",
        ),
        (
            "page_size = 16",
            "page_size = 32",
            "%k is bf16[16, 16], and by the module's attributes and fields bf16[32, 16]",
        ),
    ],
)
def test_arguments_are_what_the_module_says(old: str, new: str, why: str) -> None:
    text = print_module(trace(Named, Spec(head_dim=16)), locs=False)
    assert text.count(old) == 1
    head, func, index = text.replace(old, new).partition("func @index")
    text = head + func + (index.replace("(%mean", "(%middle") if "middle" in new else index)
    with pytest.raises(VortexError, match=re.escape(why)) as info:
        run_pipeline(parse_module(text), "outline", PassContext(None))
    assert info.value.code == "VX2008"
