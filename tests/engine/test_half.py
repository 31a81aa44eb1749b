"""Models in half precision, K and V as they are and in fp8 with the scales of a checkpoint.

Tokens of two good answers differ there, and one other token makes all the next ones others. So a simulation follows
what the engine said, and most of its tokens are the engine's; those of one that reads more pages are not, nor, in fp8,
so many of one that knows no scales: a number that differs in its last bit may be rounded to the next one in fp8, which
is 6 to 12 % away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import lab
from tests.engine.harness import HERE, TOKENS, VERSIONS, ids, prompts

pytestmark = [pytest.mark.engine, pytest.mark.full]

SCALES = ((0.1, 0.04), (0.13, 0.05), (0.16, 0.06), (0.19, 0.07))
"""As ``weights.py`` has them."""


@pytest.mark.parametrize(
    ("version", "kind", "settings", "most", "fewest"),
    [
        (VERSIONS[0], "scaled", {"dtype": "float16", "kv_cache_dtype": "fp8_e4m3"}, 0.85, 0.5),
        (VERSIONS[-1], "calm", {"dtype": "bfloat16"}, 0.85, 0.5),
    ],
    ids=["fp8 under f16", "bf16"],
)
def test_it_says_what_a_simulation_says(
    version: str, kind: str, settings: dict[str, Any], most: float, fewest: float, shared: Path
) -> None:
    here = lab(version, shared, kind)
    here.plugins.append(HERE / "gpupools")
    asked = prompts(2)
    references = [
        {
            "pages": pages,
            "prompt": prompt,
            "tokens": TOKENS,
            "said": [0, i],
            "scales": scales if kind == "scaled" else (),
        }
        for pages, scales in ((3, SCALES), (None, SCALES), (3, [(1.0, 1.0)] * len(SCALES)))
        for i, prompt in enumerate(asked)
    ]
    passes = [{"prompts": asked, "tokens": TOKENS}] * 2
    done = here.serve({"flow": "quest", "budget": {"pages": 3}}, passes, references, **settings)
    said, again = (ids(one) for one in done["passes"])
    assert again == said
    assert all(request["cached"] >= 144 for request in done["passes"][1])

    def share(simulated: list[Any]) -> float:
        pairs = [(a, b) for got, want in zip(said, simulated, strict=True) for a, (b, _) in zip(got, want, strict=True)]
        return sum(a == b for a, b in pairs) / len(pairs)

    simulated = done["references"]
    few, all_pages, unscaled = (share(simulated[i : i + len(asked)]) for i in range(0, len(simulated), len(asked)))
    print(few, all_pages, unscaled)
    assert few >= most, (few, all_pages)
    assert all_pages <= fewest, (few, all_pages)
    if kind == "scaled":
        assert unscaled < few - 0.05, (few, unscaled)
