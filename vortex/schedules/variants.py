"""The kernels that one function of a page program stands for: its own schedule, and those of its variants."""

from __future__ import annotations

from vortex.ir.core import Attr, Function
from vortex.kinds.buckets import Bucket, buckets_of, serving


def variants_of(f: Function) -> list[Function]:
    """A kernel with its own schedule, then one for each variant that its schedule has: ``NAME_v1``, ``NAME_v2``, ..,
    whose ``variant_of`` is NAME.
    """
    own = {k: v for k, v in f.attrs.get("schedule", {}).items() if k != "variants"}
    made = [f] if "schedule" not in f.attrs else [_scheduled(f, f.name, own)]
    for i, other in enumerate(f.attrs.get("schedule", {}).get("variants", ()), 1):
        rest = {k: v for k, v in own.items() if k != "serves"}
        made.append(_scheduled(f, f"{f.name}_v{i}", {**rest, **other, "variant_of": f.name}))
    return made


def _scheduled(f: Function, name: str, schedule: dict[str, Attr]) -> Function:
    return Function(f.keyword, name, f.args, f.ops, {**f.attrs, "schedule": schedule})


def variant_for(f: Function, bucket: Bucket) -> Function:
    """The one of those that runs in steps of a bucket."""
    return serving(bucket, [(v, buckets_of(v.attrs.get("schedule", {}))) for v in variants_of(f)])
