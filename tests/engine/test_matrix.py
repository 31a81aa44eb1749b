"""The same tokens whichever way a request goes through the scheduler, with three scored pages kept.

A first pass, one that finds its prompt in the radix cache, no cache, chunked prefill, no overlap and two ranks must
say, token for token, what a simulation in plain torch says.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.harness import HERE, ROOT, TOKENS, Lab, agree, ids, prompts

pytestmark = [pytest.mark.engine, pytest.mark.full]

END = 2
"""The token that ends an answer, unless it is ignored."""

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "radix": ("quest", {}),
    "no radix": ("block_topk", {"disable_radix_cache": True}),
    "chunked": ("quest", {"chunked_prefill_size": 48}),
    "no overlap": ("block_topk", {"disable_overlap_schedule": True}),
    "two ranks": ("quest", {"tp_size": 2}),
}
"""Each with a flow: an engine takes 20 s, and what differs by way does not differ by flow."""


def check(
    lab: Lab, flow: str, seed: int, config: dict[str, Any] | None = None, then: int | None = None, **settings: Any
) -> dict[str, Any]:
    """Two passes, both as simulated: over the same prompts, or in the second over those of seed ``then``."""
    asked = [prompts(seed), prompts(seed if then is None else then)]
    references = [{"flow": flow, "pages": 3, "prompt": p, "tokens": TOKENS} for one in asked for p in one]
    passes = [{"prompts": one, "tokens": TOKENS} for one in asked]
    done = lab.serve({"flow": flow, "budget": {"pages": 3}} | (config or {}), passes, references, **settings)
    said = [tokens for one in done["passes"] for tokens in ids(one)]
    found = [agree(got, want) for got, want in zip(said, done["references"], strict=True)]
    assert not any(found), found
    return done


@pytest.mark.parametrize("way", WAYS)
def test_every_way_through_the_scheduler_says_the_same(newest: Lab, way: str) -> None:
    flow, settings = WAYS[way]
    if settings.get("tp_size") == 2:
        newest.environment["SGLANG_CPU_OMP_THREADS_BIND"] = "0|1"
    done = check(newest, flow, 3, **settings)
    cached = [request["cached"] for request in done["passes"][1]]
    assert all(n == 0 for n in cached) if way == "no radix" else all(n >= 144 for n in cached)


def test_the_other_version_says_the_same(oldest: Lab) -> None:
    check(oldest, "block_topk", 3)


def test_dense_layers_keep_every_page(newest: Lab) -> None:
    asked = prompts(5)
    one = {"flow": "block_topk", "pages": 3, "dense_layers": [0, 2], "tokens": TOKENS}
    config = {"flow": "block_topk", "budget": {"pages": 3}, "dense_layers": [0, 2]}
    references = [one | {"prompt": p} for p in asked]
    done = newest.serve(config, [{"prompts": asked, "tokens": TOKENS}], references)
    found = [agree(got, want) for got, want in zip(ids(done["passes"][0]), done["references"], strict=True)]
    assert not any(found), found


@pytest.mark.parametrize("table", [[1, 6, 0, 3], [[0, 5], [3, 1], 4, [2, 2]]], ids=["layers", "heads"])
def test_layers_and_heads_keep_what_a_table_says(newest: Lab, table: list[Any]) -> None:
    asked = prompts(5)
    references = [{"flow": "quest", "pages": table, "prompt": p, "tokens": TOKENS} for p in asked]
    done = newest.serve(
        {"flow": "quest", "budget": {"table": table}}, [{"prompts": asked, "tokens": TOKENS}], references
    )
    found = [agree(got, want) for got, want in zip(ids(done["passes"][0]), done["references"], strict=True)]
    assert not any(found), found


@pytest.mark.parametrize(("version", "flow"), [("newest", "block_topk"), ("oldest", "quest")])
def test_requests_that_decode_beside_a_chunk_say_the_same(
    request: pytest.FixtureRequest, version: str, flow: str
) -> None:
    """The prompts are read one chunk after the other; those that were read decode meanwhile."""
    lab = request.getfixturevalue(version)
    with lab.witness() as seen:
        check(lab, flow, 3, chunked_prefill_size=48, enable_mixed_chunk=True)
    beside = [line["mixed"] for line in seen if "mixed" in line]
    assert len(beside) >= 8
    assert max(beside) >= 3


TIGHT = {"disable_radix_cache": True, "max_total_tokens": 1024, "then": 7}
"""A pool that the first pass nearly fills, so that the second gets its pages, for other prompts."""


def test_pages_that_change_owners_are_summarised_anew(newest: Lab) -> None:
    check(newest, "quest", 3, **TIGHT)


@pytest.mark.parametrize("bug", ["whole-tail", "stale-in-decode", "stale-in-reuse"])
def test_planted_bugs_are_seen(newest: Lab, bug: str) -> None:
    """What the matrix is worth: each of these must make it fail."""
    newest.environment["VORTEX_PLANTED_BUG"] = bug
    newest.plugins.append(HERE / "sabotage")
    with pytest.raises(AssertionError, match="by a margin of"):
        check(newest, "quest", 3, **TIGHT)


def test_retracted_requests_say_what_transformers_says_with_all_pages(newest: Lab) -> None:
    newest.environment["SGLANG_TEST_RETRACT"] = "1"
    asked = prompts(6)
    references = [{"flow": "transformers", "prompt": p, "tokens": TOKENS} for p in asked]
    config = {"flow": "quest", "budget": {"pages": 1000}}
    job = {"engine": newest.settings(), "passes": [{"prompts": asked, "tokens": TOKENS}], "references": references}
    answer = newest.run(job, config)
    assert answer.result is not None, answer.log[-6000:]
    assert "retract" in answer.log.lower()
    want = [[token for token, _ in r] for r in answer.result["references"]]
    assert ids(answer.result["passes"][0]) == want


@pytest.mark.parametrize(("page", "flow"), [(32, "quest"), (64, "block_topk"), (128, "quest")])
def test_blocks_of_larger_pages_say_what_pages_of_their_size_say(newest: Lab, page: int, flow: str) -> None:
    """The simulation knows pages of 16 alone."""
    check(newest, flow, 3, {"block_size": 16}, page_size=page)


@pytest.mark.parametrize("pages", [1000, 3])
def test_fields_of_pages_beside_those_of_blocks(newest: Lab, pages: int) -> None:
    """``pyramid`` has bounds of whole pages of 64 and codes of blocks of 16. With all pages kept it says what
    transformers and a simulation with all pages say, the token that ends answers included; with three, pages that the
    radix cache keeps say what they said when they filled.
    """
    asked = prompts(3, (310, 333, 401))
    references = [
        {"flow": flow, "pages": None, "prompt": p, "tokens": TOKENS}
        for flow in ("quest", "transformers")
        for p in asked
    ]
    config = {"flow": str(ROOT / "examples" / "pyramid.py"), "block_size": 16, "budget": {"pages": pages}}
    passes = [{"prompts": asked, "tokens": TOKENS}] * 2
    done = newest.serve(config, passes, references, page_size=64)
    first, second = (ids(one) for one in done["passes"])
    assert all(request["cached"] >= 256 for request in done["passes"][1])
    assert first == second
    found = [agree(got, want) for got, want in zip(first * 2, done["references"], strict=True)]
    assert not any(found) if pages == 1000 else any(found), found
    assert any(END in tokens for tokens in first) or pages != 1000
