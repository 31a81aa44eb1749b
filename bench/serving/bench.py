"""What all parts have in common."""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from serving.client import Server
from serving.judge import Judge
from serving.models import small
from serving.report import Report
from serving.servers import Servers

TOKENS = 40
LONG_LENGTHS = (150, 700, 1250, 1390, 1555, 1700)
"""Tokens of prompts of which some have more pages than a shortlist of 64."""
LENGTHS = (150, 163, 176, 189, 300, 420, 555, 700)
FLOWS = {
    **dict.fromkeys(("tiny", "chosen", "scaled", "smollm2"), "quest"),
    **dict.fromkeys(("latent", "latent_fp8"), "latent_topk"),
    "two_steps": "quest_then_mass",
}
"""Artifact -> the flow that it is made of, which a CPU compiles by itself."""


class Bench:
    """The models, servers and answers of one run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.report = args, Report(args)
        self.cpu = args.device == "cpu"
        self.folder = Path(tempfile.mkdtemp(prefix="serve-"))
        self.servers = Servers(
            self.report, args.device, args.dtype, self.folder, args.out.parent, threading.Semaphore(args.side_by_side),
            args.start_seconds, args.prefill_graphs, args.flashinfer,
        )  # fmt: skip
        self.judge = Judge(args.dtype, 1 if self.cpu else max(1, (os.cpu_count() or 2) // 2 - 1))

    def flow(self, name: str) -> str:
        if not self.cpu:
            return str(self.args.artifacts / f"{name}.vxa")
        flow = FLOWS.get(name, "quest")
        example = Path(__file__).resolve().parents[2] / "examples" / f"{flow}.py"
        return str(example) if example.exists() else flow

    def model(self, kind: str) -> Path:
        return small(self.folder, kind, self.args.dtype)

    def control(self, part: str, server: Server, asked: list[list[int]], tokens: int) -> list[dict[str, Any]]:
        """Answers of the dense backend at once, and how many of them it says again one by one and from its cache."""
        passes = self.passes(server, asked, tokens)
        dense = passes.pop("fresh")
        row = {when: self.judge.agree(said, dense) for when, said in passes.items()}
        self.report.add(part, name=f"{self.servers.dense} against itself", graphs=server.graphs(), **row)
        return dense

    def passes(
        self, server: Server, asked: list[list[int]], tokens: int, each: Sequence[dict[str, Any]] = ()
    ) -> dict[str, list[dict[str, Any]]]:
        made = {when: server.all(asked, tokens, each=each) for when in ("fresh", "cached")}
        server.flush()
        return made | {"one by one": server.all(asked, tokens, at_once=False, each=each)}

    def compared(
        self,
        part: str,
        model: Path,
        asked: list[list[int]],
        servers: dict[str, tuple[dict[str, Any] | None, Any]],
        simulated: dict[str, Any] | None = None,
        others: dict[str, dict[str, Any]] | None = None,
        chosen: dict[str, list[int | None]] | None = None,
    ) -> None:
        """A row for each server's answers, beside those of the first, which is dense, and the simulation's.

        ``simulated`` is what else the simulation is told, and ``others`` what simulations are told that these answers
        must not please as much. ``chosen`` has, by server, the pages that each prompt's request asks for, all of them
        where it is None.
        """
        found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}

        def ask(name: str) -> None:
            config, settings = servers[name]
            label, mixes = label_of(part, name), "enable_mixed_chunk" in settings
            each = [choice_of(pages) for pages in (chosen or {}).get(name, [])]
            witness = self.folder / f"{label}.jsonl" if mixes else None
            with (
                self.report.attempt(part, name),
                self.servers.start(label, model, config, witness, **settings) as server,
            ):
                passes = self.passes(server, asked, TOKENS, each)
                served = server.ask("/server_info").get("vortex")
                found[name] = passes, {"served": served, "graphs": server.graphs()}
                if witness:
                    found[name][1]["mixed"] = witness.read_text().count('"mixed"')

        wanted = [row for row in self.args.rows if row.startswith(f"{part}-")]
        together(ask, [name for name in servers if not wanted or name == "dense" or label_of(part, name) in wanted])
        flow, dense = FLOWS.get(part, FLOWS["tiny"]), found.get("dense", ({}, {}))[0].get("fresh")
        for name, (passes, row) in found.items():
            pages = (chosen or {}).get(name) or [3 if name.startswith("3 ") else None] * len(asked)
            for when, said in passes.items():
                row[when] = {
                    "cached": sum(one["cached"] for one in said),
                    # so that answers can be judged again without a GPU
                    "said": [" ".join(map(str, one["ids"])) for one in said],
                }
                if dense:
                    row[when]["as_dense"] = self.judge.agree(said, dense)
                told = {"flow": flow} | (simulated or {})
                if name.startswith("dense"):
                    told["triton_decodes"] = not self.cpu
                answers = [
                    told | {"pages": n, "prompt": p, "answer": s["ids"], "cuts": [s["cached"]] if s["cached"] else []}
                    for n, p, s in zip(pages, asked, said, strict=True)
                ]
                row[when]["as_simulated"] = self.judge.by_simulation(model, answers)
                if when == "fresh":
                    every = {"by_all_pages": {"pages": None}} if any(pages) else {}
                    for label, other in (every | (others or {})).items():
                        row[when][label] = self.judge.by_simulation(model, [one | other for one in answers])
            self.report.add(part, name=name, **row)


def together(do: Callable[[str], None], names: Iterable[str]) -> None:
    """Each in a thread; how many servers there are at a time is another matter."""
    threads = [threading.Thread(target=do, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def choice_of(pages: int | None) -> dict[str, Any]:
    """The sampling parameters of a request that asks for so many pages, or for all."""
    return {"custom_params": {"vortex": {"dense": True} if pages is None else {"pages": pages}}}


def label_of(part: str, name: str) -> str:
    return f"{part}-{name}".replace(",", "").replace(" ", "-")
