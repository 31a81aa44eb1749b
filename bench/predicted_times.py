"""The times that today's model predicts of kernels beside those that committed results measured; needs no GPU.

Every kernel that bench/results has a time of is compiled to page IR and predicted at its shape, without what ptxas
would report. The outcome is vortex/targets/predicted.jsonl, by which reports say what a prediction is worth, and the
table in docs/explain.md. From the repository's root, after a change of the model or new results:

    PYTHONPATH=. python bench/predicted_times.py           # write both
    PYTHONPATH=. python bench/predicted_times.py --check   # say whether they are up to date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vortex.budget import Budget
from vortex.check.kernel_costs import Compiled, Step, kernel_costs
from vortex.check.step_bytes import StepBytes, count_step
from vortex.driver import compile_flow
from vortex.ir.core import Function, Module
from vortex.schedules.variants import variants_of
from vortex.spec import Spec
from vortex.targets import predicted
from vortex.targets.gpu import H200
from vortex.targets.predicted import Compared, Kind
from vortex.targets.target import TARGETS
from vortex.tune.choose import defaults

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "vortex" / "targets" / predicted.DATA
PAGE = ROOT / "docs" / "explain.md"
BLOCK = re.compile(
    r"(<!-- predicted: bench/predicted_times.py writes it -->\n).*?(<!-- end of predicted -->)", re.DOTALL
)
KINDS = ("append", "select", "attend")
RESERVED = 3
"""Pages kept without being scored."""
OWN, BLOCKS = "bench/language_flows.py:", Spec(page_size=64, block_size=16)


@dataclass(frozen=True)
class Flow:
    """A flow as it was measured."""

    path: str
    spec: Spec = field(default_factory=Spec)
    tuned: bool = False
    """Whether it ran with shipped records, which had no clusters on the days of the files below."""


QUEST, BLOCK_TOPK = Flow("quest", tuned=True), Flow("block_topk", tuned=True)
MASS, MASS_FP8 = Flow("mass"), Flow(OWN + "mass_fp8")
STEPS = {
    "quest_then_mass": Flow("examples/quest_then_mass.py"),
    "quest_then_mass_int4": Flow(OWN + "quest_then_mass_int4"),
    "quest_then_mass_fp8": Flow(OWN + "quest_then_mass_fp8"),
    "quest_then_exact": Flow("examples/quest_then_exact.py"),
    "pyramid": Flow("examples/pyramid.py", BLOCKS),
    "pyramid_fp8": Flow(OWN + "pyramid_fp8", BLOCKS),
}
LAYERS: Mapping[str, tuple[int, Mapping[str, Flow]]] = {
    "layer.json": (27, {"quest": QUEST, "block_topk": BLOCK_TOPK}),
    "select.json": (27, {"select_default_quest": QUEST, "select_default_block_topk": BLOCK_TOPK}),
    "mass.json": (27, {"mass_fp8": MASS_FP8, "mass_int4": MASS}),
    "mass_fp8_scalar.json": (27, {"mass_fp8": MASS_FP8}),
    "mass_clusters.json": (
        27,
        {"mass_fp8": MASS_FP8, "mass_int4": MASS, "mass_int4, without the variant of few rows": MASS},
    ),
    "steps.json": (8, STEPS),
    "steps_clusters.json": (8, STEPS),
}
"""What bench/gpu_layer.py wrote: the budget, and the flows by their names there."""
PEERS = {
    ("mass_int4", 0): MASS,
    ("bounds_then_mass", 11): Flow(OWN + "quest_then_mass_fp8"),
    ("bounds_then_mass", 105): Flow(OWN + "bounds_then_mass_408"),
    ("bounds_then_mass", 412): Flow(OWN + "bounds_then_mass_1636"),
}
"""Ours in mass_peers.json, by name and the pages kept where a list has a length for those."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    made = list(compare())
    data = "".join(f"{c.as_line()}\n" for c in made)
    page = BLOCK.sub(lambda m: f"{m[1]}{table(made)}{m[2]}", PAGE.read_text())
    stale = [str(path.relative_to(ROOT)) for path, text in ((DATA, data), (PAGE, page)) if _read(path) != text]
    for path in stale:
        print(f"{path} {'is out of date' if args.check else 'is written'}")
    if not args.check:
        DATA.write_text(data)
        PAGE.write_text(page)
    far = [c for c in made if not c.near and c.like.large]
    print(f"{len(made)} measurements, {sum(c.like.large for c in made)} above 50 MB; of those more than 25 % off:")
    for c in far:
        print(f"  {c.kind}: {c.predicted:.1f} us predicted, {c.measured:.1f} measured ({c})")
    return int(args.check and bool(stale))


def compare() -> Iterator[Compared]:
    """Every measurement of a kernel of ours that a file says the flow of."""
    for file, (budget, flows) in LAYERS.items():
        results = _results(file)
        for row in results["rows"]:
            if flow := flows.get(row["flow"]):
                yield from _of_row(file, flow, row, Budget(budget), results)
    for row in _results("mass_peers.json")["rows"]:
        kept = row["pages_kept"][0]
        if flow := PEERS.get((row["name"], 0), PEERS.get((row["name"], kept))):
            yield from _of_row("mass_peers.json", flow, row, Budget(kept - RESERVED), {})
    for row in _results("latent_decoder.json")["rows"]:
        if row.get("decoder") == "now":
            spec = Spec.of_latent("512+64", 20, page_size=row["page"])
            made = {"requests": row["B"], "tokens": 32763, "attend_us": row["us"]}
            yield from _of_row(
                "latent_decoder.json", Flow("latent_topk", spec), made, Budget(2048 // row["page"] - RESERVED), {}
            )


def _of_row(
    file: str, flow: Flow, row: Mapping[str, Any], budget: Budget, results: Mapping[str, Any]
) -> Iterator[Compared]:
    """The kernels of a row that has their times; where results say what a kernel took of the GPU, it is told of."""
    program = _program(flow.path, flow.spec)
    heads = 1 if flow.spec.kv_lora_rank else 8
    if "resources" in results:
        known = {"select": Compiled({}, results["resources"], tensor_cores=False)}
    else:
        ran = {f.name: variants_of(f)[0] if flow.tuned else _ran(f, row) for f in program.functions.values()}
        known = {name: Compiled(f.attrs["schedule"]) for name, f in ran.items()}
    step, counted = Step(heads * row["requests"], row["tokens"], budget), _counted(flow, row["tokens"], budget)
    for c in kernel_costs(program, flow.spec, step, H200, known, counted):
        f = program.functions[c.kernel]
        kind = str(f.attrs["kind"])
        if kind in KINDS and f"{kind}_us" in row:
            yield Compared(
                file=f"h200/{file}",
                flow=Path(flow.path).stem if ":" not in flow.path else flow.path.partition(":")[2],
                ir=c.ir,
                gpu=H200.name,
                kind=kind,
                form=c.like.form,
                limiter=c.like.limiter,
                requests=row["requests"],
                rows=heads * row["requests"],
                tokens=row["tokens"],
                kept=budget.pages + RESERVED,
                megabytes=round((c.read + c.written) / 1e6, 2),
                predicted=round(c.microseconds, 2),
                measured=round(row[f"{kind}_us"], 2),
            )


def _ran(f: Function, row: Mapping[str, Any]) -> Function:
    """The kernel that ran, by the name that a row has: a variant of few rows where there was one."""
    own, *others = variants_of(f)
    return next((v for v in others if v.name in row.get("kernels", ())), own)


@cache
def _program(path: str, spec: Spec) -> Module:
    where = str(ROOT / path) if ".py" in path else path
    made = compile_flow(where, spec=spec, targets=[TARGETS["sm_90a"]], to="page", choose=defaults())
    return made.programs["sm_90a"]


@cache
def _counted(flow: Flow, tokens: int, budget: Budget) -> list[StepBytes]:
    """The bytes of a row, which the same step of more requests has again."""
    return count_step(_program(flow.path, flow.spec), flow.spec, tokens, budget)


def _results(file: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / "h200" / file).read_text())


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def table(made: Iterable[Compared]) -> str:
    """How far off predictions are, by what is alike."""
    groups: dict[Kind, list[Compared]] = defaultdict(list)
    for c in made:
        groups[c.like].append(c)
    lines = ["kernels | measurements | measured / predicted | more than 25 % off", "--- | --- | --- | ---"]
    for like in sorted(groups, key=lambda k: (not k.large, KINDS.index(k.kind), k.form, k.limiter)):
        group = groups[like]
        low, high = (f(c.ratio for c in group) for f in (min, max))
        far = [c for c in group if not c.near]
        cases = [f"{c.flow}, {c.requests} of {c.tokens} tokens ({c.ratio:.2f})" for c in far]
        listed = "; ".join(cases) if len(cases) <= 3 else str(len(cases))
        lines.append(f"{like} | {len(group)} | {low:.2f} to {high:.2f} | {listed or 'none'}")
    return "".join(f"| {line} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
