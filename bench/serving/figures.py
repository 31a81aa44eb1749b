"""SGLang's own bench_serving: how fast servers are at load."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
from pathlib import Path
from typing import Any

from serving.bench import Bench, together
from serving.client import Server
from serving.models import qwen
from serving.servers import DENSE, PAGE

Loads = list[tuple[int, int]]
"""Requests at once and the tokens of each one's prompt."""
LOADS = [f"{name}=16x32768,16x16384" for name in ("triton", "quest", "quest_then_mass")]


def figures(bench: Bench) -> None:
    from sglang.benchmark import serving  # type: ignore[import-not-found,unused-ignore]

    names = {name for wave in bench.args.wave for name in wave}
    longest = max(tokens for wave in bench.args.wave for loads in wave.values() for _, tokens in loads)
    room, device = longest + bench.args.new + 64, bench.args.device
    models = {which: qwen(bench.folder, which, room, device) for which in sorted({*map(_model_of, names)})}
    for wave in bench.args.wave:
        up, turns = threading.Barrier(len(wave)), {name: threading.Event() for name in wave}

        def ask(name: str, wave: Any = wave, up: Any = up, turns: Any = turns) -> None:
            earlier = list(turns.values())[: list(turns).index(name)]
            waited = False
            with bench.report.attempt("figures", name):
                try:
                    model = models[_model_of(name)]
                    with loaded(bench, name, model, wave[name]) as server:
                        waited = True
                        up.wait()
                        for turn in earlier:
                            turn.wait()
                        measure(bench, serving, server, model, name, wave[name])
                finally:
                    turns[name].set()
                    if not waited:
                        up.wait()

        together(ask, wave)


def loaded(bench: Bench, name: str, model: Path, loads: Loads) -> contextlib.AbstractContextManager[Server]:
    """A server, dense or of a flow, with room for the largest of ``loads``."""
    settings: dict[str, Any] = {
        "max_total_tokens": max(batch * (tokens + bench.args.new + 2 * PAGE) for batch, tokens in loads),
        "max_running_requests": max(batch for batch, _ in loads), "skip_tokenizer_init": False,
        "context_length": max(tokens for _, tokens in loads) + bench.args.new + 64, "mem_fraction_static": 0.95,
        "dtype": "bfloat16", "decode_log_interval": 100, "chunked_prefill_size": 8192,
    }  # fmt: skip
    which, by = _model_of(name), name.rpartition("/")[2]
    label = f"figures-{name.replace('/', '-').replace('+', '-')}"
    if by in DENSE:
        backend = bench.servers.dense if bench.cpu else by.removesuffix("_tc")
        return bench.servers.start(label, model, None, attention_backend=backend, **settings)
    by, plus, prefill = by.partition("+")
    flow = "quest" if bench.cpu else str(bench.args.artifacts / f"{which}_{by}.vxa")
    config = {"flow": flow, "budget": {"pages": 27}} | ({"prefill_backend": prefill} if plus else {})
    return bench.servers.start(label, model, config, **settings)


def measure(bench: Bench, serving: Any, server: Server, model: Path, name: str, loads: Loads) -> None:
    for batch, tokens in loads:
        for prompts, rate in (("cold", math.inf), ("warm", math.inf), *(("warm", r) for r in bench.args.rates)):
            if rate != math.inf and batch == 1:
                continue
            row = served(bench, serving, server, model, batch, tokens, rate, flush=prompts == "cold")
            bench.report.add("figures", name=name, batch=batch, tokens=tokens, prompts=prompts, rate=str(rate), **row)
    bench.report.add("figures", name=name, graphs=server.graphs())


def served(
    bench: Bench, serving: Any, server: Server, model: Path, batch: int, tokens: int, rate: float, flush: bool
) -> dict[str, Any]:
    """One run of bench_serving; prompts of one length are the same in each."""
    if flush:
        server.flush()
    words = {
        "backend": "sglang", "base_url": server.address, "model": model, "tokenizer": model,
        "dataset_name": "random-ids", "num_prompts": batch, "random_input_len": tokens,
        "random_output_len": bench.args.new, "random_range_ratio": 1.0, "request_rate": rate,
        "max_concurrency": batch, "seed": 1, "warmup_requests": 0,
        "output_file": bench.folder / "serving.jsonl",
    }  # fmt: skip
    argv = [f"--{key.replace('_', '-')}={value}" for key, value in words.items()]
    old, sys.argv = sys.argv, ["bench_serving", *argv, "--tokenize-prompt", "--disable-tqdm"]
    try:
        with (bench.folder / "client.log").open("a") as log, contextlib.redirect_stdout(log):
            serving.cli_main()
    finally:
        sys.argv = old
    made = json.loads((bench.folder / "serving.jsonl").read_text().splitlines()[-1])
    keys = ["duration", "completed", "total_input_tokens", "total_output_tokens", "output_throughput"]
    keys += [f"{q}_{what}_ms" for what in ("ttft", "tpot", "itl") for q in ("median", "p95", "p99")]
    return {key: round(made[key], 3) for key in keys if key in made}


def _model_of(name: str) -> str:
    """The model of a server of the figures."""
    return name.rpartition("/")[0] or "1.7b"


def load_of(word: str) -> tuple[str, Loads]:
    name, _, loads = word.partition("=")
    batches = [load.split("x") for load in loads.split(",")]
    return name, [(int(batch), int(tokens)) for batch, tokens in batches]
