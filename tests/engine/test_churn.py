"""Requests that join, leave, wait for memory and lose it: nothing is lost, and each says what it says alone.

A request that was retracted starts over, with what it had said as part of its prompt; the simulation is told where. One
whose prefix was another's answer reads keys that sparse attention made: what it says is not compared.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from tests.engine.harness import TOKENS, Lab, agree, prompts

pytestmark = [pytest.mark.engine, pytest.mark.full]

REQUESTS = 200
PAGES = 2
"""Scored pages: with the first and the last two, five are read."""

TIGHT = {"max_total_tokens": 768, "chunked_prefill_size": 64}
"""A pool for about five of these requests."""

HOPEFUL = {
    "SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS": "4",
    "SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR": "0.01",
    "SGLANG_RETRACT_DECODE_STEPS": "0",
}
"""The scheduler soon lets requests in as if the others would say almost nothing more, and forgets that it was wrong."""


def requests(seed: int) -> list[dict[str, Any]]:
    """Prompts of their own, with a common beginning, twice the same, or going on from an answer; some leave early."""
    draw = random.Random(seed)

    def words(least: int, most: int) -> list[int]:
        return [draw.randrange(5, 1000) for _ in range(draw.randint(least, most))]

    stems = [words(20, 110) for _ in range(6)]
    made: list[dict[str, Any]] = []
    for i in range(REQUESTS):
        one: dict[str, Any] = {
            "rid": f"r{i:03}",
            "tokens": draw.choice((draw.randint(2, 40), draw.randint(60, 120))),
            "leave": None,
            "after": None,
        }
        kind = draw.random()
        first = [r for r in made if r["after"] is None and r["leave"] is None]
        if kind < 0.45 or not first:
            one["prompt"] = draw.choice(stems) + words(5, 80)
        elif kind < 0.75:
            one["prompt"] = words(10, 180)
        elif kind < 0.85:
            one["prompt"] = draw.choice(first[-20:])["prompt"]
        else:
            one |= {"prompt": words(5, 30), "after": draw.choice(first[-20:])["rid"]}
        if draw.random() < 0.15:
            one["leave"] = draw.randint(0, one["tokens"] - 1)
        made.append(one)
    return made


def history(seen: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """By request, the first chunk of each of its lives."""
    lives: dict[str, list[dict[str, Any]]] = {}
    for line in seen:
        if "rid" in line:
            mine = lives.setdefault(line["rid"], [])
            if len(mine) <= line["times"]:
                mine.append(line)
    return lives


def read_densely(one: dict[str, Any], done: dict[str, Any], mine: list[dict[str, Any]]) -> list[int]:
    """For each life of a request, how long a prefix of it the cache has from prompts alone.

    It begins with the request's prompt, or what it goes on from had as one. What a request has said is read with its
    next life's prompt, and nobody else can have said it if nobody else had the prompt.
    """
    prompt = done[one["after"] or one["rid"]]["prompt"]
    alone = sum(other["prompt"][: len(prompt)] == prompt for other in done.values()) == 1
    said = [0, *(life["said"] for life in mine[:-1])] if alone else [0] * len(mine)
    return [len(prompt) + n for n in said[: len(mine)]]


def compare(
    lab: Lab, flow: str, asked: list[dict[str, Any]], done: dict[str, Any], seen: list[dict[str, Any]]
) -> tuple[dict[str, str], Counter[str]]:
    """Which requests parted from the simulation, and how; how many there were of each fate."""
    lives, compared = history(seen), []
    count: Counter[str] = Counter(evictions=sum(bool(line.get("evicted")) for line in seen))
    for one in asked:
        got, mine = done[one["rid"]], lives.get(one["rid"], [])
        count["aborted"] += got["end"] == "abort"
        assert got["end"] in ("abort", "stop") or len(got["ids"]) == one["tokens"]
        if not all(life["hit"] <= dense for life, dense in zip(mine, read_densely(one, done, mine), strict=True)):
            count["on another's answer"] += 1
        elif got["ids"]:
            restarts = [life["said"] for life in mine[1:]]
            count["retracted"] += bool(restarts)
            count["restarts"] += len(restarts)
            alone = {"flow": flow, "pages": PAGES, "prompt": got["prompt"], "tokens": len(got["ids"])}
            compared.append((one["rid"], got["ids"], alone | {"restarts": restarts}))
    count["compared"] = len(compared)
    references = [reference for _, _, reference in compared]
    alone = lab.run({"engine": lab.settings(), "passes": [], "references": references})
    assert alone.result is not None, alone.log[-6000:]
    wanted = zip(compared, alone.result["references"], strict=True)
    parted = {rid: (why, ids, want) for (rid, ids, _), want in wanted if (why := agree(ids, want))}
    for rid, (why, ids, want) in parted.items():
        print(f"{rid}: {why}; said {ids}, alone {want}; lives {lives[rid]}; ended by {done[rid]['end']}")
    return {rid: why for rid, (why, _, _) in parted.items()}, count


@pytest.mark.parametrize(
    ("version", "flow", "mixed"),
    [
        ("newest", "block_topk", True),
        pytest.param("newest", "quest", False, marks=pytest.mark.release),
        pytest.param("oldest", "quest", False, marks=pytest.mark.release),
    ],
)
def test_requests_that_come_and_go_say_what_they_say_alone(
    request: pytest.FixtureRequest, version: str, flow: str, mixed: bool
) -> None:
    lab: Lab = request.getfixturevalue(version)
    lab.environment |= HOPEFUL
    asked = requests(1)
    config = {"flow": flow, "budget": {"pages": PAGES}}
    job = {"engine": lab.settings(**TIGHT, enable_mixed_chunk=mixed), "passes": [], "traffic": asked}
    job["at_once"] = 14
    with lab.witness() as seen:
        answer = lab.run(job, config)
    assert answer.result is not None, answer.log[-6000:]
    found, count = compare(lab, flow, asked, answer.result["traffic"], seen)
    print(dict(count), found)
    wrong = {rid: why for rid, why in found.items() if why != "excused"}
    assert not wrong
    assert len(found) < 0.01 * count["compared"]
    # that it was a test
    assert any("mixed" in line for line in seen) == mixed
    assert count["evictions"] > 20
    assert count["retracted"] >= 5
    assert count["aborted"] >= 15
    assert count["on another's answer"] >= 1
    assert count["compared"] > 0.75 * REQUESTS
    # nothing was lost: all is free or in the cache, and after a flush all is free
    kept, empty = [line for line in seen if "size" in line][-2:]
    assert kept["free"] + kept["cached"] == kept["size"] == empty["free"]
    assert kept["locked"] == 0
    assert kept["rows"] == kept["of"]


def test_retracted_requests_read_what_they_said_densely(newest: Lab) -> None:
    flow = "quest"
    newest.environment["SGLANG_TEST_RETRACT"] = "1"  # at every third pass, whatever the memory
    asked = [
        {"rid": f"r{i}", "prompt": p, "tokens": TOKENS, "leave": None, "after": None} for i, p in enumerate(prompts(6))
    ]
    config = {"flow": flow, "budget": {"pages": PAGES}}
    job = {"engine": newest.settings(), "passes": [], "traffic": asked, "at_once": len(asked)}
    with newest.witness() as seen:
        answer = newest.run(job, config)
    assert answer.result is not None, answer.log[-6000:]
    found, count = compare(newest, flow, asked, answer.result["traffic"], seen)
    assert not any(why != "excused" for why in found.values()), found
    assert count["restarts"] >= 3
