"""HiCache: pages that were evicted come back from host memory, and what is said then is what was said before.

SGLang's scheduler, tree and controller are its own; ``hostcopies`` lends them the kernels that copy rows, on a CPU.
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


def check(lab: Lab, flow: str, ranks: int = 1, **settings: Any) -> None:
    """The second pass, of other prompts, gets the pages of the first, which the third finds on the host alone; the
    first and the third are as simulated.
    """
    lab.plugins.append(HERE / "hostcopies")
    if ranks == 2:
        lab.environment["SGLANG_CPU_OMP_THREADS_BIND"] = "0|1"
    first, other = prompts(3), prompts(7)
    references = [{"flow": flow, "pages": 3, "prompt": p, "tokens": TOKENS} for p in first]
    passes = [{"prompts": one, "tokens": TOKENS} for one in (first, other, first)]
    with lab.witness() as seen:
        done = lab.serve(
            {"flow": flow, "budget": {"pages": 3}}, passes, references, tp_size=ranks, **(SETTINGS | settings)
        )
    # what one rank loads is less than twice that
    assert sum(line["loaded"] for line in seen if "loaded" in line) >= ranks * 4 * 144
    assert all(request["cached"] >= 144 for request in done["passes"][2])
    said = [tokens for i in (0, 2) for tokens in ids(done["passes"][i])]
    found = [agree(got, want) for got, want in zip(said, done["references"] * 2, strict=True)]
    assert not any(found), found


@pytest.mark.parametrize(
    ("model", "flow", "ranks"),
    [("newest", "quest", 1), ("latent", "latent_topk", 1), ("newest", "quest", 2)],
    ids=["K and V", "latent rows", "two ranks"],
)
def test_saved_evicted_and_loaded_back_it_says_the_same(
    request: pytest.FixtureRequest, model: str, flow: str, ranks: int
) -> None:
    check(request.getfixturevalue(model), flow, ranks)


RARE = pytest.mark.release
LAYOUTS = [
    ("newest", "kernel", "page_first"),
    pytest.param("newest", "kernel", "layer_first", marks=RARE),
    pytest.param("newest", "kernel", "page_head", marks=RARE),
    pytest.param("newest", "direct", "page_first_direct", marks=RARE),
    pytest.param("latent", "kernel", "page_first", marks=RARE),
    pytest.param("latent", "kernel", "layer_first", marks=RARE),
    pytest.param("latent", "direct", "page_first_direct", marks=RARE),
]
"""All that SGLang has for GPUs, beside that of the test above; ``page_first`` copied by ``kernel`` is its default."""


@pytest.mark.parametrize(("model", "backend", "layout"), LAYOUTS)
def test_whichever_way_the_host_lays_out_pages(
    request: pytest.FixtureRequest, model: str, backend: str, layout: str
) -> None:
    flow = "quest" if model == "newest" else "latent_topk"
    check(request.getfixturevalue(model), flow, hicache_io_backend=backend, hicache_mem_layout=layout)


@pytest.mark.release
def test_a_rank_that_summarises_nothing_that_comes_back_is_seen(newest: Lab) -> None:
    """What the test above is worth."""
    newest.environment["VORTEX_PLANTED_BUG"] = "stale-in-load"
    newest.plugins.append(HERE / "sabotage")
    with pytest.raises(AssertionError, match=r"\['', '', '', '', .*by a margin of"):
        check(newest, "quest", 2)
