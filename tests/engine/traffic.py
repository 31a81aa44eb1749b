"""Requests that join and leave one engine by themselves. Runs in the engine's environment.

A request is ``{"rid", "prompt", "tokens", "leave", "after"}``: one with ``leave`` is aborted when it has said that many
tokens, one with ``after`` waits for the request of that name to end and goes on from what was said there.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any


async def serve(engine: Any, requests: list[dict[str, Any]], at_once: int) -> dict[str, dict[str, Any]]:
    """The prompt and ids of each, by name, with why it ended; ``at_once`` are in the engine at any time.

    At the end the cache is flushed twice: before the second flush nothing holds a page.
    """
    gate = asyncio.Semaphore(at_once)
    ended = {r["rid"]: asyncio.Event() for r in requests}
    done: dict[str, dict[str, Any]] = {}

    async def one(rid: str, prompt: list[int], tokens: int, leave: int | None, after: str | None) -> None:
        if after:
            await ended[after].wait()
            prompt = [*done[after]["prompt"], *done[after]["ids"], *prompt]
        # a request that cannot end early would get all its memory before it starts
        sampling = {"temperature": 0, "max_new_tokens": tokens}
        async with contextlib.nullcontext() if after else gate:  # who goes on does so at once
            said: list[int] = []
            why = None
            parts = await engine.async_generate(input_ids=prompt, sampling_params=sampling, stream=True, rid=rid)
            if leave == 0:
                asyncio.get_running_loop().call_later(0.01, engine.tokenizer_manager.abort_request, rid)
            async for part in parts:
                # one that leaves the queue, where it is once it was retracted, is sent its last token alone
                said = max(said, part["output_ids"], key=len)
                why = part["meta_info"]["finish_reason"]
                if leave and len(said) >= leave:
                    engine.tokenizer_manager.abort_request(rid)
        done[rid] = {"prompt": prompt, "ids": said, "end": why and why["type"]}
        ended[rid].set()

    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(one(**request))
    for _ in range(2):
        while not (await engine.tokenizer_manager.flush_cache()).success:
            await asyncio.sleep(0.1)
    return done
