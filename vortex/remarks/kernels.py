"""What is to say of kernels that were compiled for a GPU: what bounds them, what they spill, what has no room, and
where predictions of their times are not to be relied on.

Numbers are those of a manifest: what ptxas reported, and the schedule with what follows from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from vortex.errors import Loc
from vortex.ir.core import Function, Module
from vortex.ir.staging import origin_of, stage
from vortex.kinds.buckets import buckets_of
from vortex.remarks.remark import Remark
from vortex.schedules.arithmetic import Arithmetic
from vortex.schedules.cuda_select import largest
from vortex.schedules.form import form_of
from vortex.schedules.select_memory import shortlists
from vortex.schedules.shared_sweeps import chosen_together, shared_sweeps
from vortex.targets.gpu import machine_of
from vortex.targets.predicted import Kind, spoken, worth_of
from vortex.targets.roofline import Demand, Times, number

Numbers = Mapping[str, object]

CHANGES = {
    ("memory", "select"): "store fields in a narrower type, or score a shortlist of the pages",
    ("memory", "attend"): "keep fewer pages, or K and V in fp8: --kv-dtype fp8_e4m3",
    (
        "latency",
        "select",
    ): "make pages small enough for more CTAs an SM, or tune: more bytes under way is what is missing",
    ("latency", "attend"): "tune: deeper rings or more CTAs an SM have more bytes under way",
    ("compute", "select"): "contract fewer rows of a page: reduce over heads or tokens before the product",
    ("compute", "attend"): "nothing in the flow: a byte of K and V is multiplied with so many heads",
    (
        "scalar arithmetic",
        "select",
    ): "turn it into a contraction with the field as it is stored, or fold an axis earlier",
    ("spills", "select"): "keep fewer numbers of a page at a time: reduce over its tokens before other work",
}
"""What would change what a kernel waits for, by the limiter and the kind."""
SPILLS = "keep fewer numbers of a page at a time: reduce over its tokens before other work, or store fewer rows"
ROOM = {
    "shared memory": "keep fewer numbers of each page between sweeps, or take smaller pages (or blocks: --block-size)",
    "registers": "reduce over heads or tokens earlier, so that a lane has fewer numbers at hand",
}

MEASURE = "take it as a lower bound, and measure: vortex tune, or vortex trace on the engine"


def of_kernel(program: Module, f: Function, name: str, schedule: Numbers, resources: Numbers) -> list[Remark]:
    """Of kernel ``f`` on a GPU, or a variant of it with a name and schedule of its own; nothing where it was not
    compiled. The schedule is taken with what follows from it (:func:`vortex.schedules.check.described`).
    """
    if not resources:
        return []
    is_select = f.attrs["kind"] == "select"
    room = largest(f) if is_select else None
    made = [replace(r, loc=room.loc if room is not None else None) for r in warnings(name, schedule, resources)]
    return [*made, *_limiter(program, f, name, schedule, resources)]


def of_cluster(program: Module, f: Function, name: str, schedule: Numbers) -> list[Remark]:
    """Of kernel ``f``, or a variant of it, whose CTAs share a row in clusters; nothing of any other."""
    cluster = number(schedule, "cluster")
    if cluster <= 1:
        return []
    rows = max((b.rows for b in buckets_of(schedule)), default=0)
    steps = f" in steps of about {rows} rows or fewer" if rows else ""
    shared, sweeps = shared_sweeps(program, f), stage(f).loops
    of = f"all {sweeps} sweeps" if shared == sweeps else f"the first {shared} of {sweeps} sweeps"
    of = "the sweep" if sweeps == 1 else of
    part, held = chosen_together(f), number(schedule, "threads") * number(schedule, "keys")
    choice = "" if part is None else f", and the choice among more than {held:.0f} of them"
    why = f"{cluster:.0f} CTAs, a cluster, share a row of {name}{steps}: {of} over its pages{choice}"
    loc = next((o.loc for o in [*shortlists(f), *filter(None, [part])] if o.loc is not None), None)
    return [Remark("clusters", "passed", why, "", loc, name)]


def warnings(name: str, schedule: Numbers, resources: Numbers) -> list[Remark]:
    """What a compilation warns of: spills, and CTAs for which an SM has no room."""
    return [*_spills(name, resources), *_occupancy(name, schedule, resources)]


def _line(program: Module, f: Function, limiter: str) -> Loc | None:
    """The line of the flow with most of what a kernel waits for: of arithmetic, or what reads the largest field."""
    if f.attrs["kind"] != "select":
        return None
    work = Arithmetic.of(program, f)
    found = max(work.counted, key=lambda o: work.counted[o], default=None)
    if limiter != "scalar arithmetic":
        load = max(work.sizes, key=lambda o: work.sizes[o], default=None)
        found = next((o for o in f.ops if o.loc and any(origin_of(v).owner is load for v in o.operands)), None)
    return found.loc if found is not None else None


def _spills(name: str, r: Numbers) -> Iterator[Remark]:
    if spilled := number(r, "spills"):
        why = f"{name} has no room for {spilled:.0f} bytes in its {number(r, 'registers'):.0f} registers a lane"
        yield Remark("spills", "missed", why, SPILLS, kernel=name)


def _occupancy(name: str, schedule: Numbers, r: Numbers) -> Iterator[Remark]:
    asked, held = number(schedule, "residents"), number(r, "ctas")
    if 0 < held < asked:
        why = f"an SM holds {_ctas(held)} of {name}, and its schedule asks for {asked:.0f}: {_use(r)}"
        yield Remark("occupancy", "missed", why, ROOM.get(str(r.get("bound_by")), ""), kernel=name)


def _ctas(n: float) -> str:
    return "1 CTA" if n == 1 else f"{n:.0f} CTAs"


def _use(r: Numbers) -> str:
    """What rules further CTAs out."""
    bound = str(r.get("bound_by"))
    if bound == "shared memory":
        return f"each takes {number(r, 'static_shared') + number(r, 'dynamic_shared'):.0f} bytes of shared memory"
    if bound == "registers":
        return f"each takes {number(r, 'registers'):.0f} registers for {number(r, 'threads'):.0f} threads"
    return f"{bound} are all taken"


def _limiter(program: Module, f: Function, name: str, schedule: Numbers, r: Numbers) -> Iterator[Remark]:
    """What a kernel waits for that has the GPU to itself."""
    kind, machine = str(f.attrs["kind"]), machine_of(program)
    if not number(schedule, "bytes_in_flight") or not number(schedule, "bytes_per_page") or kind == "append":
        return
    times = Times.of(Demand.of_bytes(1.0, schedule, r, machine), machine)
    others = {n: share for n, share in times.shares.items() if n != times.limiter and round(100 * share)}
    beside = ", ".join(f"{spoken(n)} {share:.0%}" for n, share in sorted(others.items(), key=lambda x: -x[1]))
    of = f"{times.shares[times.limiter]:.0%} of its time" + (f" (beside it {beside})" if beside else "")
    why = f"{name} waits for {spoken(times.limiter)}, {of}"
    if times.limiter == "latency":
        flight, needed = number(schedule, "bytes_in_flight") * number(r, "ctas"), machine.bytes_needed
        why += f": an SM has {flight / 1024:.0f} KiB under way, and {needed / 1024:.0f} KiB keep the memory busy"
    loc = _line(program, f, times.limiter)
    yield Remark("limiter", "analysis", why, CHANGES.get((times.limiter, kind), ""), loc, name)
    form = form_of(program, f, int(number(schedule, "cluster")))
    worth = worth_of(Kind(machine.name, kind, form, times.limiter, large=True))
    if worth.off and kind in ("select", "attend"):
        yield Remark(
            "prediction", "analysis", f"a predicted time of {name} is unsure: {worth.text}", MEASURE, loc, name
        )
