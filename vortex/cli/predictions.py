"""What an artifact's kernels cost at a shape: bytes, FLOPs, microseconds and limiter, for ``vortex info --shape``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vortex.budget import Budget
from vortex.cli.show import emit_json, lines, table
from vortex.errors import BAD_OPTION
from vortex.targets.gpu import MACHINES, Machine
from vortex.targets.target import ALIASES

if TYPE_CHECKING:
    from vortex.artifact.manifest import KernelEntry
    from vortex.check.kernel_costs import KernelCost
    from vortex.compilation.stored import Stored
    from vortex.ir.core import Module
    from vortex.tune.shapes import Shape


def show_costs(path: str, shape: str, target: str | None, gpu: str | None, as_json: bool) -> int:
    """Print the costs of every kernel that a step of the shape launches, for each GPU target or the one named."""
    from vortex.artifact.folder import read_manifest
    from vortex.check.kernel_costs import layer_microseconds
    from vortex.compilation.stored import read_stored
    from vortex.schedules.taken_in import takes_in_tokens

    stored, manifest = read_stored(path), read_manifest(path)
    names = [t for t in MACHINES if t in stored.programs]
    if target is not None:
        names = [t for t in names if t == ALIASES.get(target, target)]
    if not names:
        why = f"'{path}' has no {'GPU target' if target is None else f'kernels for {target}'}"
        raise BAD_OPTION.at(option="--shape", why=f"{why}, and costs are those of a GPU", hint="compile for sm_90a")
    at, found = _shape(stored, shape), {}
    for name in names:
        machine = _machine(gpu) if gpu else MACHINES[name]
        costs = _costs(stored, name, manifest.targets[name].kernels, at, machine)
        found[name] = machine, costs, layer_microseconds(stored.programs[name], costs)
    if as_json:
        emit_json(
            {
                "shape": at.to_json(),
                "targets": {
                    t: {"gpu": m.name, "microseconds": round(layer, 2), "kernels": [c.as_json() for c in costs]}
                    for t, (m, costs, layer) in found.items()
                },
            }
        )
        return 0
    for i, (name, (machine, costs, layer)) in enumerate(found.items()):
        head = ("kernel", "MB read", "MB written", "MFLOP", "us", "limiter", "share")
        program = stored.programs[name]
        print("\n" if i else "", end="")
        table(head, [_row(c) for c in costs], f"{stored.name} for {name} on {machine.name}, predicted: {at}")
        taken = "; append has no launch of its own, for select takes it in" if takes_in_tokens(program) else ""
        for c in costs:
            if c.cluster > 1:
                print(f"{c.kernel} runs in clusters of {c.cluster} CTAs, which share a row")
        print(f"a layer {layer:.1f} us; plan runs once a step{taken}. What predictions are worth:")
        tuned = _tuned(program, name, at) if machine is MACHINES[name] else {}
        for c in costs:
            if worth := c.worth:
                own = tuned.get(c.kernel.partition("_v")[0])
                beside = f"; the tuning database has {own:.1f} us for steps of its bucket" if own else ""
                print(lines(f"  {c.kernel}{' (unsure)' if worth.off else ''}: {worth.text}{beside}", "    "))
    return 0


def _row(c: KernelCost) -> list[str]:
    share = c.times.shares[c.times.limiter]
    sizes = [f"{n / 1e6:.2f}" for n in (c.read, c.written, c.flops)]
    return [c.kernel, *sizes, f"{c.microseconds:.1f}", c.times.limiter, f"{share:.0%}"]


def _tuned(program: Module, target: str, at: Shape) -> dict[str, float]:
    """Microseconds of kernels that the tuning databases have a measurement of, in the bucket of the shape itself."""
    from vortex.targets.target import TARGETS
    from vortex.tune.explain import explain
    from vortex.tune.keys import queries
    from vortex.tune.layers import Layers

    layers, made = Layers.default(), {}
    for f, query in queries(program, TARGETS[target], at):
        hit = explain(layers, query).hit
        if hit is not None and hit.record.key.bucket == query.key.bucket and hit.record.us:
            made[f.name] = hit.record.us
    return made


def _machine(name: str) -> Machine:
    known = {m.name: m for m in MACHINES.values()} | {
        t: MACHINES[full] for t, full in ALIASES.items() if full in MACHINES
    }
    known |= MACHINES
    if name not in known:
        raise BAD_OPTION.at(option="--gpu", why=f"'{name}' is no GPU that is known", hint=f"one of {', '.join(known)}")
    return known[name]


def _shape(stored: Stored, text: str) -> Shape:
    """The shape that the option says, with the KV heads and kept pages that benchmarks have unless it says them."""
    from vortex.check.bounds import counted_tokens
    from vortex.ir.parser import parse_module
    from vortex.spec import Spec
    from vortex.tune.shapes import read_shape

    program = next(iter(stored.programs.values()))
    spec = Spec.of_attrs(program.attrs)
    heads = 1 if spec.kv_lora_rank else 8
    at = read_shape(f"kv_heads={heads},kept=30,{text}" if "=" in text else text)
    flow = parse_module(stored.flow, str(stored.path)) if stored.flow else program
    if (most := counted_tokens(flow, spec, at.tokens)) < at.tokens:
        why = f"a page of the flow is so large that no more than {most} tokens can be counted"
        raise BAD_OPTION.at(option="--shape", why=why, hint=f"give tokens={most}" if most else "none can be")
    return at


def _costs(
    stored: Stored, target: str, kernels: Sequence[KernelEntry], at: Shape, machine: Machine
) -> list[KernelCost]:
    """Of the variants that a step of the shape would launch, by their own names."""
    from vortex.check.kernel_costs import Compiled, Step, kernel_costs
    from vortex.runtime.variants import Variants
    from vortex.spec import Spec

    program = stored.programs[target]
    spec = Spec.of_attrs(program.attrs)
    rows = at.batch * at.kv_heads
    picked = {k.variant_of: k for k in Variants.of(kernels).pick(rows, at.columns(spec.block_size), at.kept)}
    compiled = {base: Compiled(k.schedule, k.resources) for base, k in picked.items() if base in program.functions}
    recent = min(2, at.kept)
    sink = min(1, at.kept - recent)
    step = Step(rows, at.tokens, Budget(at.kept - recent - sink, sink=sink, recent=recent))
    costs = kernel_costs(program, spec, step, machine, compiled)
    return [replace(c, kernel=picked[c.kernel].name if c.kernel in picked else c.kernel) for c in costs]
