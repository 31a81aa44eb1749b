"""Runs one engine and what a job on standard input asks of it; runs in the engine's environment.

Job and answer are JSON. A job: {"engine": {...}, "passes": [{"prompts": [[...]], "tokens": n}, ...],
"traffic": requests of traffic.py's, "at_once": n, "references": [{"flow", "pages", "dense_layers", "prompt", "tokens",
"restarts"}, ...]}. The last line of standard output: {"passes": [[{"ids": [...], "cached": n}, ...], ...], "traffic":
{name: {"prompt", "ids", "end"}}, "references": [[[token, gap], ...], ...]}.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def served(job: dict[str, Any]) -> dict[str, Any]:
    import sglang
    from traffic import serve

    if not job["passes"] and not job.get("traffic"):
        return {"passes": [], "traffic": {}}
    engine = sglang.Engine(**job["engine"])
    try:
        done: list[list[dict[str, Any]]] = []
        for one in job["passes"]:
            sampling = {"temperature": 0, "max_new_tokens": one["tokens"], "ignore_eos": True}
            made = engine.generate(input_ids=one["prompts"], sampling_params=sampling)
            done.append([{"ids": m["output_ids"], "cached": m["meta_info"].get("cached_tokens", 0)} for m in made])
        traffic: dict[str, Any] = {}
        if asked := job.get("traffic"):
            traffic = engine.loop.run_until_complete(serve(engine, asked, job["at_once"]))
        return {"passes": done, "traffic": traffic}
    finally:
        engine.shutdown()


def references_of(job: dict[str, Any]) -> list[list[tuple[int, float]]]:
    from simulation import Simulation, greedy, load

    path = job["engine"]["model_path"]
    model, done = load(path), []
    for one in job.get("references", []):
        prompt, tokens, restarts = one.pop("prompt"), one.pop("tokens"), one.pop("restarts", ())
        if one.get("flow") == "transformers":
            done.append([(token, 1.0) for token in greedy(path, prompt, tokens)])
        else:
            done.append(Simulation(model, **one).steps(prompt, tokens, restarts))
    return done


if __name__ == "__main__":
    job = json.load(sys.stdin)
    answer = {**served(job), "references": references_of(job)}
    print("\n" + json.dumps(answer), flush=True)
