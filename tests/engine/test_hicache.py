"""HiCache: pages that were evicted come back from host memory, and what is said then is what was said before.

SGLang's scheduler, tree and controller are its own; ``hostcopies`` lends them a kernel that copies rows on a CPU.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.harness import HERE, TOKENS, Lab, agree, ids, prompts

pytestmark = [pytest.mark.engine, pytest.mark.full]

SETTINGS: dict[str, Any] = {
    "enable_hierarchical_cache": True,
    "hicache_ratio": 4,
    "hicache_io_backend": "direct",
    "hicache_mem_layout": "layer_first",
    "max_total_tokens": 1024,
}
"""A pool that one pass nearly fills, and a host with room for all."""


@pytest.mark.parametrize(("model", "flow"), [("newest", "quest"), ("latent", "latent_topk")])
def test_saved_evicted_and_loaded_back_it_says_the_same(request: pytest.FixtureRequest, model: str, flow: str) -> None:
    """The second pass, of other prompts, gets the pages of the first, which the third finds on the host alone."""
    lab: Lab = request.getfixturevalue(model)
    lab.plugins.append(HERE / "hostcopies")
    first, other = prompts(3), prompts(7)
    references = [{"flow": flow, "pages": 3, "prompt": p, "tokens": TOKENS} for p in first]
    passes = [{"prompts": one, "tokens": TOKENS} for one in (first, other, first)]
    with lab.witness() as seen:
        done = lab.serve({"flow": flow, "budget": {"pages": 3}}, passes, references, **SETTINGS)
    said, _, again = (ids(one) for one in done["passes"])
    found = [agree(got, want) for got, want in zip(said, done["references"], strict=True)]
    assert not any(found), found
    assert again == said
    assert sum(line["loaded"] for line in seen if "loaded" in line) >= 4 * 144
    assert all(request["cached"] >= 144 for request in done["passes"][2])
