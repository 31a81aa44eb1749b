"""A client of one server, over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


class Server:
    """One server and a client of its; ``async_generate`` and ``flush_cache`` are what tests/engine/traffic.py asks."""

    def __init__(self, address: str, log: Path, mixes: bool = False) -> None:
        self.address, self.log, self.mixes = address, log, mixes
        self.tokenizer_manager = self

    def ask(self, path: str, body: Any = None, timeout: float = 300) -> Any:
        head = {"Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.address}{path}", data, head), timeout=timeout
        ) as got:
            text = got.read().decode()
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(text)
        return text

    def one(self, prompt: list[int], tokens: int, **more: Any) -> dict[str, Any]:
        """An answer with the gap between the two best tokens at each step, unless the server is to mix chunks: SGLang
        mixes nothing while a request wants log-probabilities.
        """
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True} | more
        body: dict[str, Any] = {"input_ids": prompt, "sampling_params": sampling}
        if not self.mixes:
            body |= {"return_logprob": True, "logprob_start_len": -1, "top_logprobs_num": 2}
        made = self.ask("/generate", body)
        about = made["meta_info"]
        if self.mixes:
            return {"ids": made["output_ids"], "gaps": [], "cached": about.get("cached_tokens", 0)}
        best = [[entry[0] for entry in step] for step in about["output_top_logprobs"]]
        ids = [entry[1] for entry in about["output_token_logprobs"]]
        return {"ids": ids, "gaps": [b[0] - b[1] for b in best], "cached": about.get("cached_tokens", 0)}

    def all(
        self, prompts: Sequence[list[int]], tokens: int, at_once: bool = True, each: Sequence[dict[str, Any]] = ()
    ) -> list[dict[str, Any]]:
        """Answers of all prompts; ``each`` has sampling parameters of its own for every prompt, or is empty."""
        with ThreadPoolExecutor(len(prompts) if at_once else 1) as threads:
            more = each or [{}] * len(prompts)
            return list(threads.map(lambda p, m: self.one(p, tokens, **m), prompts, more))

    def flush(self) -> None:
        for _ in range(100):
            try:
                self.ask("/flush_cache", {})
                return
            except OSError:
                time.sleep(0.1)

    async def async_generate(self, input_ids: list[int], sampling_params: Any, stream: bool, rid: str) -> Any:
        body = {"input_ids": input_ids, "sampling_params": sampling_params, "stream": stream, "rid": rid}
        return self._parts(body)

    async def _parts(self, body: dict[str, Any]) -> AsyncIterator[Any]:
        async with self.session.post(f"{self.address}/generate", json=body) as answer:
            async for line in answer.content:
                text = line.decode().removeprefix("data:").strip()
                if text and text != "[DONE]":
                    part = json.loads(text)
                    if "error" in part:
                        raise RuntimeError(text)
                    yield part

    def abort_request(self, rid: str) -> None:
        self.aborts.append(asyncio.ensure_future(self._abort(rid)))

    async def _abort(self, rid: str) -> None:
        async with self.session.post(f"{self.address}/abort_request", json={"rid": rid}) as answer:
            await answer.read()

    async def flush_cache(self) -> Any:
        async with self.session.post(f"{self.address}/flush_cache") as answer:
            return argparse.Namespace(success=answer.status == 200)

    async def traffic(self, requests: list[dict[str, Any]], at_once: int) -> dict[str, Any]:
        import aiohttp
        from traffic import serve

        self.aborts: list[Any] = []
        limits = {"timeout": aiohttp.ClientTimeout(total=None), "connector": aiohttp.TCPConnector(limit=0)}
        async with aiohttp.ClientSession(**limits, read_bufsize=2**20) as self.session:
            done = await serve(self, requests, at_once)
            await asyncio.gather(*self.aborts)
        return done

    def graphs(self) -> dict[str, int]:
        """How many of the log's lines on decoding say that a CUDA graph ran, and that none did; of those on prompts,
        how many say that one ran.
        """
        lines = self.log.read_text(errors="replace").splitlines()
        decoding, prompts = ([line for line in lines if f"{what} batch" in line] for what in ("Decode", "Prefill"))
        replayed, of_prompts = (sum("cuda graph: True" in line for line in some) for some in (decoding, prompts))
        return {"replayed": replayed, "eager": len(decoding) - replayed, "prompts": of_prompts}
