"""Runs one engine and what a job on standard input asks of it; runs in the engine's environment.

Job and answer are JSON. A job: {"engine": {...}, "passes": [{"prompts": [[...]], "tokens": n, "choices": [...],
"watch": [...]}, ...], "traffic": requests of traffic.py's, "at_once": n, "references": [{"flow", "pages",
"dense_layers", "prompt", "tokens", "restarts", "masses", "scales", "triton", "cuts", "said": [pass, request]}, ...]}.
In a pass "choices" may say what each request chooses, and beside them "watch" tokens whose log-probabilities at each
step are told. The last line of standard output: {"passes": [[{"ids": [...], "cached": n, "logprobs": [[...], ...]},
...], ...], "traffic": {name: {"prompt", "ids", "end"}}, "serves": what get_server_info says of the backend,
"references": [[[token, gap], ...], ...]}, where Simulation.seen follows a reference with masses.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
from typing import Any


def served(job: dict[str, Any]) -> dict[str, Any]:
    import sglang
    from traffic import serve

    if not job["passes"] and not job.get("traffic"):
        return {"passes": [], "traffic": {}}
    fork_workers()
    engine = sglang.Engine(**job["engine"])
    try:
        done: list[list[dict[str, Any]]] = []
        for one in job["passes"]:
            sampling = {"temperature": 0, "max_new_tokens": one["tokens"], "ignore_eos": True}
            if "choices" in one:
                done.append(engine.loop.run_until_complete(chosen(engine, one, sampling)))
                continue
            made = engine.generate(input_ids=one["prompts"], sampling_params=sampling)
            done.append([told(m) for m in made])
        traffic: dict[str, Any] = {}
        if asked := job.get("traffic"):
            traffic = engine.loop.run_until_complete(serve(engine, asked, job["at_once"]))
        return {"passes": done, "traffic": traffic, "serves": engine.get_server_info().get("vortex")}
    finally:
        engine.shutdown()


def fork_workers() -> None:
    """Spare each worker its own import of SGLang, which is half of what an engine takes to start; what SGLang asks for
    are spawned ones, and those of servers are.
    """
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.set_start_method = lambda *_, **__: None


def told(made: dict[str, Any]) -> dict[str, Any]:
    about = made["meta_info"]
    answer = {"ids": made["output_ids"], "cached": about.get("cached_tokens", 0)}
    if "output_token_ids_logprobs" in about:
        answer["logprobs"] = [[p for p, *_ in step] for step in about["output_token_ids_logprobs"]]
    return answer


async def chosen(engine: Any, one: dict[str, Any], sampling: dict[str, Any]) -> list[dict[str, Any]]:
    watched = {"return_logprob": True, "token_ids_logprob": one["watch"]} if "watch" in one else {}

    async def ask(prompt: list[int], choice: Any) -> dict[str, Any]:
        custom = {} if choice is None else {"custom_params": {"vortex": choice}}
        try:
            made = await engine.async_generate(input_ids=prompt, sampling_params=sampling | custom, **watched)
        except ValueError as error:
            return {"refused": str(error)}
        return told(made)

    return await asyncio.gather(*map(ask, one["prompts"], one["choices"]))


def references_of(job: dict[str, Any], passes: list[list[dict[str, Any]]]) -> list[Any]:
    from simulation import Simulation, greedy, load

    path = job["engine"]["model_path"]
    model, done = load(path, job["engine"].get("dtype", "float32")), []
    for one in job.get("references", []):
        prompt, tokens, restarts = one.pop("prompt"), one.pop("tokens"), one.pop("restarts", ())
        if one.get("flow") == "transformers":
            done.append([(token, 1.0) for token in greedy(path, prompt, tokens)])
        else:
            if "said" in one:
                first, second = one["said"]
                one["said"] = passes[first][second]["ids"]
            simulation = Simulation(model, **one)
            done.append(simulation.steps(prompt, tokens, restarts))
            if simulation.masses:
                done.append(simulation.seen)
    return done


if __name__ == "__main__":
    job = json.load(sys.stdin)
    answer = served(job)
    answer["references"] = references_of(job, answer["passes"])
    print("\n" + json.dumps(answer), flush=True)
