"""A model with latent attention (MLA): one selection for all heads, pages of latent rows.

The simulation knows no latent rows: its keys and values are those of each head, made of what a cache in fp8 gives back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import lab
from tests.engine.harness import HERE, TOKENS, VERSIONS, Lab, ids, prompts, shares
from tests.engine.test_matrix import check

pytestmark = [pytest.mark.engine, pytest.mark.full]


def test_with_all_pages_it_says_what_transformers_says(latent: Lab) -> None:
    asked = prompts(1)
    references = [{"flow": "transformers", "prompt": p, "tokens": TOKENS} for p in asked]
    config = {"budget": {"pages": 1000}}  # the flow is chosen by the model
    done = latent.serve(config, [{"prompts": asked, "tokens": TOKENS}] * 2, references)
    want = [[token for token, _ in r] for r in done["references"]]
    assert ids(done["passes"][0]) == want
    assert ids(done["passes"][1]) == want


def test_with_three_pages_it_says_what_a_simulation_says(latent: Lab) -> None:
    done = check(latent, "latent_topk", 3)
    assert all(request["cached"] >= 144 for request in done["passes"][1])


def test_requests_that_decode_beside_a_chunk_say_the_same(oldest_latent: Lab) -> None:
    with oldest_latent.witness() as seen:
        check(oldest_latent, "latent_topk", 3, chunked_prefill_size=48, enable_mixed_chunk=True)
    assert sum("mixed" in line for line in seen) >= 8


FP8: dict[str, Any] = {"dtype": "float16", "kv_cache_dtype": "fp8_e4m3"}


def narrow(version: str, shared: Path) -> Lab:
    """Where engines keep latent rows in fp8, of a model for half precision."""
    here = lab(version, shared, "calm_latent")
    here.plugins.append(HERE / "gpupools")
    return here


@pytest.mark.parametrize("version", VERSIONS)
def test_in_fp8_with_all_pages_it_says_what_the_dense_backend_says(version: str, shared: Path) -> None:
    here = narrow(version, shared)
    passes = [{"prompts": prompts(2), "tokens": TOKENS}] * 2
    done = here.serve({"budget": {"pages": 1000}}, passes, **FP8)
    assert all(request["cached"] >= 144 for request in done["passes"][1])
    here.plugins.append(HERE / "absorbed")
    dense = here.serve({}, passes, attention_backend="torch_native", page_size=16, **FP8)
    assert [ids(one) for one in done["passes"]] == [ids(one) for one in dense["passes"]]


def test_in_fp8_with_three_pages_it_says_what_a_simulation_says(shared: Path) -> None:
    """Most of it: see ``test_half``."""
    asked = prompts(2)
    references = [
        {"flow": "latent_topk", "pages": pages, "narrow_rope": rope, "prompt": p, "tokens": TOKENS, "said": [0, i]}
        for pages, rope in ((3, 16), (None, 16), (3, 0))
        for i, p in enumerate(asked)
    ]
    passes = [{"prompts": asked, "tokens": TOKENS}] * 2
    done = narrow(VERSIONS[0], shared).serve({"budget": {"pages": 3}}, passes, references, **FP8)
    said, again = (ids(one) for one in done["passes"])
    assert again == said
    assert all(request["cached"] >= 144 for request in done["passes"][1])
    few, all_pages, wide = shares(said, done["references"])
    assert few >= 0.85, (few, all_pages)
    assert all_pages <= 0.5, (few, all_pages)
    assert wide < few - 0.05, (few, wide)


def test_in_fp8_a_prompt_that_triton_reads_is_not_rounded_for_itself(shared: Path) -> None:
    """As on a GPU: rows of a pass go to the kernel as they were made, and those of earlier ones come from the pool.

    The last simulation is wrong in that alone: it has all rows from the pool, as torch_native does.
    """
    asked = prompts(2)
    kept = [(len(p) - 1) // 16 * 16 for p in asked]
    references = [
        {"flow": "latent_topk", "narrow_rope": 16, "prompt": p, "tokens": TOKENS, "said": [when, i], **told}
        for when in (0, 1)
        for own, pages in ((True, 3), (True, None), (False, 3))
        for i, p in enumerate(asked)
        for told in [{"triton": own, "pages": pages, "cuts": [kept[i]] * when}]
    ]
    config = {"budget": {"pages": 3}, "prefill_backend": "triton"}
    passes = [{"prompts": asked, "tokens": TOKENS}] * 2
    done = narrow(VERSIONS[0], shared).serve(config, passes, references, **FP8)
    assert [request["cached"] for request in done["passes"][1]] == kept
    half = len(references) // 2
    for answers, told in zip(done["passes"], (done["references"][:half], done["references"][half:]), strict=True):
        few, all_pages, from_pool = shares(ids(answers), told)
        print(few, all_pages, from_pool)
        assert few >= 0.92, (few, all_pages, from_pool)
        assert all_pages <= 0.5, (few, all_pages, from_pool)
        assert from_pool < few - (0.03 if answers is done["passes"][0] else 0), (few, all_pages, from_pool)
