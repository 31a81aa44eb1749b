"""A model with latent attention (MLA): one selection for all heads, pages of latent rows.

The simulation knows no latent rows: its keys and values are those of each head.
"""

from __future__ import annotations

import pytest

from tests.engine.harness import TOKENS, Lab, ids, prompts
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
