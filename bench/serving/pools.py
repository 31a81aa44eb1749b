"""Pools that are too small for what is asked of them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from serving.bench import Bench, label_of, together
from serving.client import Server

CHURN = ["chunks", "mixed-chunks", "dense-chunks", "dense-mixed-chunks"]
FULL = ["dense", "dense-mixed", "sparse", "sparse-mixed"]


def churn(bench: Bench) -> None:
    from tests.engine import test_churn

    test_churn.REQUESTS = bench.args.requests
    asked, model, scale = test_churn.requests(1), bench.model("grouped"), 1 if bench.cpu else 2
    config = {"flow": bench.flow("tiny"), "budget": {"pages": test_churn.PAGES}}

    def serve(name: str) -> None:
        label, mixed, dense = label_of("churn", name), "mixed" in name, name.startswith("dense")
        witness = bench.folder / f"{label}.jsonl"
        settings = {"max_total_tokens": 768 * scale, "chunked_prefill_size": 64, "enable_mixed_chunk": mixed}
        with bench.report.attempt("churn", name):
            with bench.servers.start(label, model, None if dense else config, witness, **settings) as server:
                began = time.monotonic()
                done = asyncio.run(server.traffic(asked, 14 * scale))
                took, graphs = time.monotonic() - began, server.graphs()
            seen = [json.loads(line) for line in witness.read_text().splitlines()]
            row = churned(bench, test_churn, model, asked, done, seen, None if dense else test_churn.PAGES)
            bench.report.add("churn", name=name, requests=len(asked), seconds=round(took, 1), graphs=graphs, **row)

    together(serve, bench.args.churn)


def churned(
    bench: Bench, churn: Any, model: Path, asked: Any, done: Any, seen: list[dict[str, Any]], pages: int | None
) -> dict[str, Any]:
    """As tests/engine/test_churn.py compares, with the numbers that it asserts."""
    lives, compared = churn.history(seen), []
    count: Counter[str] = Counter(evictions=sum(bool(line.get("evicted")) for line in seen))
    count["mixed"] = sum("mixed" in line for line in seen)
    short = []
    for one in asked:
        got, mine = done[one["rid"]], lives.get(one["rid"], [])
        count["aborted"] += got["end"] == "abort"
        if got["end"] not in ("abort", "stop") and len(got["ids"]) != one["tokens"]:
            short.append(one["rid"])
        dense = churn.read_densely(one, done, mine)
        if not all(life["hit"] <= d for life, d in zip(mine, dense, strict=True)):
            count["on another's answer"] += 1
        elif got["ids"]:
            restarts = [life["said"] for life in mine[1:]]
            count["retracted"] += bool(restarts)
            count["restarts"] += len(restarts)
            alone = {"flow": "quest", "pages": pages, "prompt": got["prompt"], "answer": got["ids"]}
            compared.append(alone | {"restarts": restarts})
    kept, empty = [line for line in seen if "size" in line][-2:]
    lost = {
        "all_free_or_cached": kept["free"] + kept["cached"] == kept["size"],
        "all_free_when_flushed": empty["free"] == empty["size"],
        "none_locked": kept["locked"] == 0,
        "rows_free": kept["rows"] == kept["of"],
    }
    count["compared"] = len(compared)
    return {
        "count": dict(count),
        "short": short,
        "nothing_lost": lost,
        "as_simulated": bench.judge.by_simulation(model, compared),
    }


def full(bench: Bench) -> None:
    config = {"flow": bench.flow("tiny"), "budget": {"pages": 2}}

    def serve(name: str) -> None:
        dense, mixed = name.startswith("dense"), "mixed" in name
        settings: dict[str, Any] = {"max_total_tokens": 1888, "chunked_prefill_size": 32, "enable_mixed_chunk": mixed}
        label = label_of("full", name)
        with (
            bench.report.attempt("full", name),
            bench.servers.start(label, bench.model("grouped"), None if dense else config, **settings) as server,
        ):
            ended = fill(server)
            why = [line for line in server.log.read_text(errors="replace").splitlines() if "out of memory" in line]
            bench.report.add("full", name=name, ended=ended, why=why[-1][:200] if why else "")

    together(serve, bench.args.full)


def fill(server: Server) -> dict[str, Any]:
    """How many of the requests got their answers whole.

    The first four have three pages each when the prompt of 94 comes, which the pool of 118 has room for; they grow
    while it is read, where chunks are mixed.
    """
    draw = random.Random(1)
    sizes = [(40, 66)] * 4 + [(1500, 2)]
    body = {
        "input_ids": [[draw.randrange(5, 1000) for _ in range(tokens)] for tokens, _ in sizes],
        # to requests that would not end early SGLang grants all that they may say
        "sampling_params": [{"temperature": 0, "max_new_tokens": new} for _, new in sizes],
    }
    whole, reasons = 0, Counter[str]()
    with contextlib.suppress(OSError, http.client.HTTPException):
        made = server.ask("/generate", body, 120)
        whole = sum(len(one["output_ids"]) == new for one, (_, new) in zip(made, sizes, strict=True))
        reasons.update(str((one["meta_info"].get("finish_reason") or {}).get("type")) for one in made)
    return {"whole": whole, "of": len(sizes), "finished": dict(reasons)}
