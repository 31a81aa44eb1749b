"""Which flows of the library keep a model's answers: measures with ``vortex eval``, and writes docs/accuracy.md.

    PYTHONPATH=. python bench/eval_library.py --commit $(git rev-parse HEAD) --out bench/results/eval/smollm2.json \\
        -- --tokens 4096,8192 --prompts 32 --device cuda
    PYTHONPATH=. python bench/eval_library.py --write docs/accuracy.md bench/results/eval/*.json

Flows over latent rows need a model that has some, flows with parameters need trained ones: both are left out, and the
results say so. ``--flows`` names others, files among them. Words behind ``--`` go to ``vortex eval``.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vortex.evaluate.outcomes import BASELINES
from vortex.evaluate.tables import NONE, number, share

BEGIN, END = "<!-- results: bench/eval_library.py writes them -->", "<!-- end of results -->"


def flows() -> tuple[list[str], dict[str, str]]:
    """Flows that a model with K and V can be asked about, and why the others are left out."""
    from vortex.errors import OTHER_CACHE, VortexError
    from vortex.flow.flow import find_flow, library_names
    from vortex.flow.trace import trace
    from vortex.spec import Spec

    kept, left = [], {}
    for name in library_names():
        try:
            if trace(find_flow(name), Spec()).declared("param"):
                left[name] = "has weights that need training"
            else:
                kept.append(name)
        except VortexError as e:
            if e.kind is not OTHER_CACHE:
                raise
            left[name] = "reads latent rows"
    return kept, left


def device(words: Sequence[str]) -> str:
    """What it ran on, as results name it."""
    import torch

    if "cuda" in words or "--device=cuda" in words:
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def measure(named: Sequence[str], commit: str, command: Sequence[str], words: Sequence[str]) -> dict[str, Any]:
    """Run ``vortex eval``; what it says of itself goes to our stderr."""
    kept, left = (list(named), {}) if named else flows()
    start = time.monotonic()
    done = subprocess.run([*command, *kept, *words, "--json"], stdout=subprocess.PIPE, text=True)
    try:
        result = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise SystemExit(f"vortex eval gave no JSON, and exit code {done.returncode}") from None
    return {
        "device": device(words),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": commit,
        "command": " ".join(sys.argv),
        "seconds": round(time.monotonic() - start, 1),
        "left_out": left,
        "result": result,
    }


def section(name: str, run: dict[str, Any]) -> str:
    """Markdown of one file of results."""
    result, settings = run["result"], run["result"]["settings"]
    budgets = sorted({x["budget"] for x in result["lanes"] if x["rule"] != "dense"})
    k = " / ".join(map(str, budgets))
    at = settings["workload"]
    spec = at["spec"]
    lines = [
        f"### {settings['model']} on {run['device']}",
        "",
        f"`bench/results/eval/{name}`, {run['date'][:10]}, commit {run['commit'][:12]}, {run['seconds']:.0f} s: "
        f"`{settings['command']}`. Numbers are those of {k} candidate pages of {settings['page_size']} tokens, which "
        f"a KV head reads beside the first {settings['sink']} and the last {settings['recent']}. MB and predicted us: "
        f"one layer's step of {at['batch']} requests of {at['tokens']} tokens, {at['kv_heads']} KV heads of "
        f"{spec['head_dim']}, {spec['group']} query heads each, on {at['target']}.",
        "",
        *_totals(result, budgets),
    ]
    for length in dict.fromkeys(t["length"] for t in result["tasks"]):
        lines += ["", *_tasks(result, budgets, length)]
    poor = [
        f"{t['task']} at {t['length']} ({share(_nan(t['dense']))})" for t in result["tasks"] if not t["informative"]
    ]
    if poor:
        lines += ["", f"The model cannot do these densely; the first table is without them: {', '.join(poor)}."]
    if left := run["left_out"]:
        lines += ["", f"Left out: {', '.join(f'`{flow}` {why}' for flow, why in left.items())}."]
    if failed := [f"`{f['rule']}` {f['message'].splitlines()[0]}" for f in result["failures"]]:
        lines += ["", f"Failed: {'; '.join(failed)}."]
    return "\n".join(lines)


def _totals(result: dict[str, Any], budgets: Sequence[int]) -> list[str]:
    lanes = {(x["rule"], x["budget"]): x for x in result["lanes"]}
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "answers": lambda x: share(_nan(x["answers"])),
        "lost/won": lambda x: f"{x['worse']}/{x['better']}",
        "log-prob to dense": lambda x: number(_nan(x["logprob_difference"]), 2),
        "recall": lambda x: share(_nan(x["recall"])),
        "mass": lambda x: share(_nan(x["mass"])),
        "worst head": lambda x: share(_nan((x["worst_head"] or {}).get("mass"))),
        "MB": lambda x: number(_nan(x["bytes"]) / 1e6, 0),
        "us": lambda x: number(_nan(x["microseconds"]), 0),
    }
    rows = [
        [_name(rule), *(_over(rule, budgets, lanes, of) for of in columns.values())]
        for rule in dict.fromkeys(x["rule"] for x in result["lanes"])
    ]
    return _markdown(["rule", *columns], rows)


def _tasks(result: dict[str, Any], budgets: Sequence[int], length: int) -> list[str]:
    cells = {(x["task"], x["rule"], x["budget"]): x for x in result["cells"] if x["length"] == length}
    tasks = [t for t in result["tasks"] if t["length"] == length]

    def column(task: dict[str, Any], rule: str) -> str:
        mine = {(r, b): x for (name, r, b), x in cells.items() if name == task["task"]}
        if task["scored"]:
            return _over(rule, budgets, mine, lambda x: share(_nan(x["answers"])))
        return _over(rule, budgets, mine, lambda x: number(_nan(x["logprob"]), 2))

    rows = [[_name(rule), *(column(t, rule) for t in tasks)] for rule in dict.fromkeys(rule for _, rule, _ in cells)]
    return _markdown([f"{length} tokens", *(t["task"] for t in tasks)], rows)


def _over(
    rule: str, budgets: Iterable[int], found: dict[tuple[str, int], dict[str, Any]], of: Callable[[dict[str, Any]], str]
) -> str:
    """One text for each budget; one alone for dense."""
    wanted = [0] if rule == "dense" else budgets
    texts = [of(found[rule, b]) if (rule, b) in found else NONE for b in wanted]
    return NONE if set(texts) == {NONE} else " / ".join(texts)


def _name(rule: str) -> str:
    return rule if rule in BASELINES else f"`{rule}`"


def _nan(x: float | None) -> float:
    return float("nan") if x is None else x


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def written(page: str, files: Iterable[Path]) -> str:
    """A page with its results made anew."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    made = "\n\n".join(section(f.name, json.loads(f.read_text())) for f in files)
    return "".join([before, BEGIN, "\n", made, "\n" if made else "", END, after])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="PAGE", type=Path, help="make the results of this page anew, from FILES")
    parser.add_argument("--flows", default="", help="instead of the library's, with commas between")
    parser.add_argument("--commit", default="", help="what is measured")
    parser.add_argument("--out", type=Path, help="file of results")
    parser.add_argument("rest", nargs="*", help="FILES of --write, or words for vortex eval behind --")
    args = parser.parse_args(words)
    if args.write:
        args.write.write_text(written(args.write.read_text(), map(Path, args.rest)))
        return
    if not (args.out and args.commit):
        parser.error("--out and --commit are needed")
    command = [sys.executable, "-m", "vortex", "eval"]
    made = measure([f for f in args.flows.split(",") if f], args.commit, command, args.rest)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
