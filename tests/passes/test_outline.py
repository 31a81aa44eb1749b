"""Names of the kernels that pass outline makes."""

from __future__ import annotations

from typing import Any

import vortex
from vortex.flow.trace import trace
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
