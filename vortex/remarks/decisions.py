"""What passes and databases decided about kernels, in words: which became one, and where knobs came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vortex.errors import counted
from vortex.ir.core import Module
from vortex.kinds.buckets import Bucket
from vortex.passes.fuse import Fuse
from vortex.passes.manager import DEFAULT_PIPELINE, PassContext, parse_pipeline, run_pipeline
from vortex.remarks.remark import Remark

FEWER = "keep fewer numbers of each page between sweeps: reduce before a softmax or a statistic over pages"


@dataclass(frozen=True, slots=True)
class NotTaken:
    """What tuning databases say of a kernel whose knobs are not from one."""

    why: str = ""
    """In words; empty where nobody asked."""
    measured: bool = False
    """Whether there is a measurement by now."""


def of_fusion(module: Module, fuse: Fuse) -> list[Remark]:
    """What a pass ``fuse`` decides about page IR that has not been through it."""
    decided = fuse.decide(module)
    made = []
    for name, parts in decided.groups.items():
        if len(parts) > 1:
            why = f"{len(parts)} kernels became {name}: {', '.join(f.name for f in parts)}"
            # the line that it ends in, such as the selection: kernels of one kind come in the flow's order
            lines = (o.loc for f in reversed(parts) for o in reversed(f.ops) if o.loc is not None)
            made.append(Remark("fusion", "passed", why, "", next(lines, None), name))
    for a in decided.apart:
        why = f"{a.first} and {a.second} did not become one kernel: {a.why}"
        made.append(Remark("fusion", "missed", why, FEWER if a.loc is not None else "", a.loc, a.first))
    return made


def fusion_of_flow(module: Module, passes: str = "") -> list[Remark]:
    """What ``fuse`` decides on the way down from flow IR; ``passes`` is the pipeline, the default one unless given."""
    calls = parse_pipeline(passes or DEFAULT_PIPELINE["flow"])
    if "outline" in (c.name for c in calls[-1:]):
        calls += parse_pipeline(DEFAULT_PIPELINE["page"])
    at = next((i for i, c in enumerate(calls) if c.name == "fuse"), None)
    fuse = calls[at].build() if at is not None else None
    return of_fusion(run_pipeline(module, calls[:at], PassContext()), fuse) if isinstance(fuse, Fuse) else []


def of_knobs(name: str, schedule: Mapping[str, object], databases: NotTaken) -> list[Remark]:
    """Where the knobs of a kernel came from; ``databases`` is what those say where it was not from one of them."""
    origin = str(schedule.get("from", ""))
    how, _, record = origin.partition(":")
    if not origin:
        return []
    given = schedule.get("user", ())
    by_hand = f"; {', '.join(map(str, given))} given by hand" if isinstance(given, list | tuple) and given else ""
    told = {
        "db": f"record {record} of a tuning database, measured",
        "transfer": f"record {record} of a tuning database, measured on another GPU",
        "model": "defaults by a model of the GPU",
        "heuristic": "defaults",
        "user": "given by hand",
    }.get(how, origin)
    asked = databases.why and how in ("model", "heuristic")
    missing = f"; not from a tuning database: {databases.why}" if asked else ""
    serves = schedule.get("serves", ())
    for_which = f", for {_buckets(serves)}" if isinstance(serves, list | tuple) and serves else ""
    help = "measure it: vortex tune" if asked and not databases.measured else ""
    return [
        Remark("knobs", "analysis", f"the knobs of {name} are {told}{for_which}{by_hand}{missing}", help, kernel=name)
    ]


def _buckets(serves: list[object] | tuple[object, ...]) -> str:
    shown = [str(Bucket(*x)) for x in serves if isinstance(x, list | tuple) and len(x) == 3]
    return "; ".join(shown[:3]) + (f" and {counted(len(shown) - 3, 'more shape')}" if len(shown) > 3 else "")
