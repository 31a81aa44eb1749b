"""The flow of the demo on a GPU that is not there: what its kernels take, and the bytes they are predicted to read."""

from __future__ import annotations

import time
from collections.abc import Sequence

from vortex.artifact.manifest import KernelEntry
from vortex.budget import Budget, Cap
from vortex.cli.show import say, table
from vortex.errors import VortexError
from vortex.install.scratch import scratch_folder
from vortex.kinds.kind import KINDS
from vortex.spec import Spec
from vortex.targets.gpu import MACHINES
from vortex.targets.target import TARGETS


def cross_compile(flow: str, spec: Spec, target: str, *, kv_heads: int, budget: Budget, lengths: Sequence[int]) -> None:
    """Compile ``flow`` for ``target`` and print a row a kernel, for a decode step of requests of those lengths.

    Without nvcc a line says how to get it, and nothing is printed.
    """
    from vortex.codegen.build.toolkit import find_toolkit
    from vortex.driver import compile_flow

    try:
        find_toolkit()
    except VortexError:
        say(f"not compiled for {target}: no nvcc here; pip install 'vortex[cuda]' (350 MB) brings it, no GPU is needed")
        return
    say(f"compiling {flow} for {target} ...")
    start = time.perf_counter()
    with scratch_folder("vortex-demo-") as scratch:
        made = compile_flow(flow, spec=spec, targets=[TARGETS[target]], out=scratch / "demo.vxa")
    say(f"compiled in {time.perf_counter() - start:.1f} s")
    assert made.manifest is not None
    machine, kernels = MACHINES[target], made.manifest.targets[target].kernels
    pages = [-(-n // spec.block_size) for n in lengths]
    rows = []
    for k in kernels:
        size = kv_heads * predicted_bytes(k, pages, spec, budget, made.manifest.cap)
        shared = sum(int(str(k.resources[n])) for n in ("static_shared", "dynamic_shared"))
        cells = [k.resources.get(n, "-") for n in ("registers", "spills", "ctas", "limiter")]
        rows.append(
            [k.name, str(shared), *map(str, cells), f"{size / 1e6:.2f}", f"{size / machine.bandwidth * 1e6:.2f}"]
        )
    head = ("kernel", "shared", "registers", "spilled", "CTAs an SM", "limiter", "MB read", "us at least")
    print()
    about = f"{TARGETS[target].about}, {machine.sms} SMs, {machine.bandwidth / 1e12:g} TB/s"
    table(head, rows, f"{flow} for {target} ({about}), which need not be here: a step of the last batch, predicted")


def predicted_bytes(kernel: KernelEntry, pages: Sequence[int], spec: Spec, budget: Budget, cap: Cap) -> int:
    """What a kernel reads of pages and summaries in a decode step, for one KV head of requests of so many pages."""
    each = int(str(kernel.schedule.get("bytes_per_page", 0)))
    kept = [cap.kept(budget, n) for n in pages]
    scored = [cap.scored(budget, n) for n in pages]
    # a page of a request (a block, where pages have several) fills once in as many steps as it has tokens
    count = {"none": 0, "filled": len(pages) / spec.block_size, "scored": sum(scored), "kept": sum(kept)}
    return int(each * count[KINDS[kernel.kind].pages])
