"""Try some fifty variations of a rule overnight and keep a leaderboard, with nothing but ``vortex eval --json``.

    python examples/search_rules.py --folder night --hours 8

Each variation is a file, so that a good one can be read, edited and compiled: ``vortex compile night/r07.py``. Several
are evaluated in a call, for they share what the model made of the prompts. The leaderboard is a file of JSON lines;
what is in it is not tried again, so the program can be stopped and started at any time. Words behind ``--`` go to
``vortex eval``, as in ``-- --tasks niah_single --tokens 8192``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RULE = '''"""{name}: {choices}."""

import torch

import vortex


@vortex.register("{name}")
class Rule(vortex.vFlow):
    def create_cache(self, spec):
        return {{"keys": vortex.Field(spec.page_size, spec.head_dim, {keys})}}

    def forward_cache(self, page):
        return {{"keys": page.k}}

    def forward_indexer(self, q, cache):
        logits = torch.einsum("gd,std->sgt", q, cache.keys) * q.shape[-1] ** -0.5  # [S, group, page]
        heads = {tokens}  # [S, group]
        return vortex.topk({heads})
'''
CHOICES = {
    "keys": {
        "int4": 'dtype="int4", scale=0',
        "int4 by channel": 'dtype="int4", scale=1',
        "int8": 'dtype="int8", scale=0',
        "fp8": 'dtype="fp8_e4m3"',
    },
    "tokens": {
        "logsumexp": "logits.logsumexp(-1)",
        "largest": "logits.amax(-1)",
        "mean": "logits.mean(-1)",
        "sharper logsumexp": "(2 * logits).logsumexp(-1)",
    },
    "heads": {
        "shares added": "heads.softmax(0).sum(-1)",
        "largest share": "heads.softmax(0).amax(-1)",
        "added": "heads.sum(-1)",
        "largest": "heads.amax(-1)",
    },
}
"""What a rule is made of: how keys are kept, what a page's tokens give a head, and what the heads give the page."""


@dataclass(frozen=True)
class Variation:
    """One rule of the search."""

    name: str
    chosen: tuple[str, ...]
    """A name of each of :data:`CHOICES`."""

    @property
    def text(self) -> str:
        """Its file."""
        parts = {kind: CHOICES[kind][name] for kind, name in zip(CHOICES, self.chosen, strict=True)}
        return RULE.format(name=self.name, choices=", ".join(self.chosen), **parts)


def variations(count: int, seed: int) -> list[Variation]:
    """``r00``, the first of :data:`CHOICES` each, then others in an order that ``seed`` decides."""
    every = itertools.product(*CHOICES.values())
    first, *rest = (Variation(f"r{n:02}", chosen) for n, chosen in enumerate(every))
    random.Random(seed).shuffle(rest)
    return [first, *rest][:count]


def entries(board: Path) -> list[dict[str, Any]]:
    """What is known; a line that a killed program left unfinished is not."""
    known = []
    for line in board.read_text().splitlines() if board.exists() else ():
        try:
            known.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return known


def add(board: Path, made: Iterable[dict[str, Any]]) -> None:
    """Append entries, each on a line of its own."""
    broken = board.exists() and not board.read_text().endswith("\n") and board.stat().st_size > 0
    with board.open("a") as lines:
        lines.write("\n" * broken + "".join(json.dumps(e) + "\n" for e in made))


def evaluate(command: Sequence[str], batch: Sequence[Path], rest: Sequence[str], seconds: float) -> dict[str, Any]:
    """The JSON of one call, or why there is none."""
    try:
        words = [*command, *map(str, batch), *rest, "--json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": "out of time"}
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"error": done.stderr.strip()[-2000:] or f"exit code {done.returncode}"}


def judged(batch: Sequence[Variation], report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line of the leaderboard for each variation of a call: its verdicts, or what went wrong."""
    for v in batch:
        verdicts = [x for x in report.get("verdicts", ()) if x["flow"] == v.name]
        failures = [x["message"] for x in report.get("failures", ()) if x["rule"] == v.name]
        entry: dict[str, Any] = {"name": v.name, "chosen": v.chosen, "verdicts": verdicts}
        if failures or not verdicts:
            entry["error"] = "; ".join(failures) or report.get("error", "no verdict")
        yield entry


def merit(entry: dict[str, Any]) -> tuple[float, float]:
    """Most answers first, mean over the budgets; then fewest bytes."""
    verdicts = entry["verdicts"]
    known = [v["answers"] for v in verdicts if v["answers"] is not None]
    size = sum(v["bytes"] or 0.0 for v in verdicts)
    return (-sum(known) / len(known) if known else 0.0, size)


def show(board: Path, most: int = 10) -> None:
    """Print the best."""
    known = entries(board)
    good = sorted((e for e in known if e["verdicts"]), key=merit)
    for place, e in enumerate(good[:most], 1):
        answers = "  ".join(f"{v['budget']} pages {v['answers']}" for v in e["verdicts"])
        print(f"{place:2}  {e['name']}  {answers}  ({', '.join(e['chosen'])})")
    print(f"{len(known)} tried, {sum('error' in e for e in known)} of them with errors; all in {board}")


def main(words: Sequence[str] | None = None) -> None:
    """Search, until all variations are tried or the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("search"), help="of rules and leaderboard")
    parser.add_argument("--count", type=int, default=50, help="variations to try")
    parser.add_argument("--at-once", type=int, default=5, help="variations that a call of vortex eval evaluates")
    parser.add_argument("--hours", type=float, default=8.0, help="after which nothing more is tried")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", default=shlex.join([sys.executable, "-m", "vortex", "eval"]))
    parser.add_argument("rest", nargs="*", help="words for vortex eval, behind --")
    args = parser.parse_args(words)
    args.folder.mkdir(parents=True, exist_ok=True)
    board, end = args.folder / "leaderboard.jsonl", time.monotonic() + 3600 * args.hours
    known = {e["name"] for e in entries(board)}
    left = [v for v in variations(args.count, args.seed) if v.name not in known]
    while left and (seconds := end - time.monotonic()) > 0:
        batch, left = left[: args.at_once], left[args.at_once :]
        files = [args.folder / f"{v.name}.py" for v in batch]
        for v, file in zip(batch, files, strict=True):
            file.write_text(v.text)
        report = evaluate(shlex.split(args.command), files, args.rest, seconds)
        if report.get("error") == "out of time":
            break  # these are tried again
        add(board, judged(batch, report))
        show(board)
    show(board)


if __name__ == "__main__":
    main()
