"""One engine that keeps every page and one that keeps few: the part of the matrix that every change runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engine.harness import TOKENS, Lab, agree, ids, prompts

pytestmark = [pytest.mark.engine]


def test_with_all_pages_it_says_what_transformers_says(newest: Lab) -> None:
    asked = prompts(1)
    references = [{"flow": "transformers", "prompt": p, "tokens": TOKENS} for p in asked]
    config = {"flow": "quest", "budget": {"pages": 1000}}
    done = newest.serve(config, [{"prompts": asked, "tokens": TOKENS}] * 2, references)
    want = [[token for token, _ in r] for r in done["references"]]
    assert ids(done["passes"][0]) == want
    assert ids(done["passes"][1]) == want
    assert all(request["cached"] >= 144 for request in done["passes"][1])


def test_with_three_pages_it_says_what_a_simulation_says(newest: Lab, tmp_path: Path) -> None:
    newest.environment["VORTEX_STATS"] = str(tmp_path / "stats.json")
    asked = prompts(2)
    references = [{"flow": "quest", "pages": 3, "prompt": p, "tokens": TOKENS} for p in asked]
    dense = [{"flow": "quest", "pages": None, "prompt": asked[0], "tokens": TOKENS}]
    passes = [{"prompts": asked, "tokens": TOKENS}] * 2
    done = newest.serve({"flow": "quest", "budget": {"pages": 3}}, passes, references + dense)
    first, again = (ids(p) for p in done["passes"])
    for got, want in zip(first, done["references"], strict=False):
        assert not agree(got, want)
    assert again == first
    assert first[0] != [token for token, _ in done["references"][-1]], "leaving pages out changed nothing"
    seen = json.loads((tmp_path / "stats.json").read_text())
    # the first token of a request comes from its prompt
    lengths = [len(p) + i for p in asked for i in range(1, TOKENS)] * 2
    pages = [-(-n // 16) for n in lengths]
    assert seen["requests_decoded"] >= len(lengths)  # overlap runs one more step of a request that has ended
    assert seen["pages_kept"] - sum(min(6, n) for n in pages) <= 6 * (seen["requests_decoded"] - len(lengths))
    assert 0.3 < seen["selected_share"] < 0.6
    assert seen["launches_per_step"] == 1 + 3 * 4
    serves = done["serves"]
    assert (serves["flow"], serves["target"], serves["page_size"], serves["layers"]) == ("quest", "cpu", 16, 4)
    assert (serves["budget_pages"], serves["budget_tokens"], serves["dense_layers"]) == (6, 96, [])
