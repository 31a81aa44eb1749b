"""From a page program to the keys of its kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vortex.ir import digest
from vortex.ir.core import Function, Module
from vortex.ir.dialects.page import block_size
from vortex.ir.types import TensorType
from vortex.kinds.buckets import Bucket
from vortex.schedules.template import schedulable
from vortex.targets.cpu import detect_mcpu
from vortex.targets.gpu import MACHINES
from vortex.targets.target import Target
from vortex.tune.layers import Query
from vortex.tune.record import Key, MachineKey, Measure
from vortex.tune.shapes import Shape


def machine_key(target: Target) -> MachineKey:
    """The machine that a compilation for ``target`` is for; of a CPU target, this one."""
    if target.kind == "cpu":
        return MachineKey(detect_mcpu(), os.cpu_count() or 1, 0)
    machine = MACHINES[target.name]
    return MachineKey(target.name, machine.sms, machine.cta_shared)


def policy(target: Target) -> Measure:
    """How the times are taken that choices are made by."""
    return Measure("wall", "none") if target.kind == "cpu" else Measure("cudagraph", "cold")


def key_of(program: Module, f: Function, bucket: Bucket) -> Key:
    """The key of one kernel for shapes in ``bucket``; schedules and names do not enter."""
    dtypes = {str(d.type.dtype) for d in digest.named(program, f) if isinstance(d.type, TensorType)}
    return Key(str(f.attrs["kind"]), digest.kernel(program, f), bucket, tuple(sorted(dtypes)))


def query_of(
    program: Module, f: Function, target: Target, bucket: Bucket, machine: MachineKey | None = None
) -> Query | None:
    """What to ask databases for; None for kernels with nothing to choose. ``machine`` is the target's unless given."""
    template = schedulable(program, f, target)
    if template is None:
        return None
    return Query(key_of(program, f, bucket), machine or machine_key(target), template.key, policy(target))


def queries(program: Module, target: Target, shape: Shape) -> Iterator[tuple[Function, Query]]:
    """Each kernel of ``program`` that has something to choose."""
    size = block_size(program)
    for f in program.functions.values():
        query = query_of(program, f, target, shape.bucket(str(f.attrs["kind"]), size))
        if query is not None:
            yield f, query
