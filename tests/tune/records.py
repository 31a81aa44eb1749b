"""Records by hand and by hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from vortex.kinds.buckets import Bucket, bucket_of
from vortex.kinds.kind import KINDS
from vortex.tune.record import Key, MachineKey, Measure, Record, Sample

H200 = MachineKey("sm_90a", 132, 232448)
COLD = Measure("cudagraph", "cold")


def record(
    config: dict[str, int] | None = None,
    us: float | None = 10.0,
    *,
    status: str = "ok",
    checked: bool = True,
    spread: float = 1.01,
    kind: str = "attend",
    ir: str = "vx1:00",
    bucket: Bucket | None = None,
    target: MachineKey = H200,
    template: str = "cuda.attend@1",
    measure: Measure = COLD,
    at: str = "2026-01-01T00:00:00Z",
) -> Record:
    times = None if status != "ok" or us is None else (round(us * 0.99, 3), us, round(us * spread, 3))
    key = Key(kind, ir, bucket or bucket_of(kind, 64, 2048, 30), ("bf16",))
    env = {"template": template, "vortex": "0.1.0"}
    sample = Sample(status, checked, times, 25, (("at", at),))
    return Record.make(key, target, env, measure, config or {"warps": 4}, [sample])


_sizes = st.integers(0, 12).map(lambda e: 1 << e)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    status = draw(st.sampled_from(("ok", "ok", "build", "wrong", "crash")))
    us = None
    if status == "ok":
        us = tuple(round(x, 3) for x in sorted(draw(st.tuples(*[st.floats(0.01, 1e6)] * 3))))
    by = (("at", f"2026-01-{draw(st.integers(1, 28)):02d}T00:00:00Z"), ("gpu", draw(st.sampled_from("AB"))))
    return Sample(status, draw(st.booleans()), us, draw(st.integers(0, 100)), by)  # type: ignore[arg-type]


@st.composite
def records(draw: st.DrawFn) -> Record:
    """From few keys and configurations, so that ids meet."""
    kind = draw(st.sampled_from(("select", "attend")))
    axes = {a: draw(st.sampled_from((1, 64))) for a in KINDS[kind].axes}
    key = Key(kind, f"vx1:{draw(st.integers(0, 1))}", Bucket(**axes), ("bf16",))
    env = {"template": f"cuda.{kind}@1", "vortex": draw(st.sampled_from(("0.1", "0.2")))}
    config = {"warps": draw(st.sampled_from((1, 2)))}
    return Record.make(key, H200, env, COLD, config, draw(st.lists(samples(), min_size=1, max_size=40)))
