"""The stages in order: from a flow, or any stage of it, to an artifact.

:func:`compile_flow` is the picture of ``docs/architecture.md`` as code; read it first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vortex.compilation.lowered import Lowered
from vortex.compilation.recorder import OnStep, Record
from vortex.errors import BAD_OPTION, IR_STAGE, NO_COMPILER
from vortex.install.scratch import scratch_folder
from vortex.ir.core import Module
from vortex.passes.manager import DEFAULT_PIPELINE, Choose, PassCall, parse_pipeline
from vortex.schedules.check import check_program
from vortex.spec import Spec
from vortex.targets.target import STAGES, TARGETS, Target

if TYPE_CHECKING:
    from vortex.artifact.manifest import Manifest
    from vortex.flow.flow import vFlow

__all__ = ["STAGES", "Compilation", "compile_flow", "pipeline", "start_resources"]

PER_TARGET = "schedule"
"""The first pass that looks at the target; what stands before it runs once for all targets."""

Resources = dict[str, dict[str, int | float | str]]
"""What kernels take of a GPU, by name: numbers as the manifest has them."""

TOOLS = ("imports", "build")
"""Parts of a compilation that are not our code: importing torch and TVM; TVM's lowering, LLVM and cc."""


@dataclass
class Compilation:
    """What a compilation made, as far as it went; keys are target names."""

    flow: Module | None = None
    programs: dict[str, Module] = field(default_factory=dict)
    lowered: list[Lowered] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    artifact: Path | None = None
    manifest: Manifest | None = None
    dumps: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def own_seconds(self) -> float:
        """Time in our own code: neither imports nor TVM nor the C compiler."""
        return sum(s for part, s in self.seconds.items() if part not in TOOLS)


def compile_flow(
    source: str | vFlow | Module | list[Lowered],
    *,
    spec: Spec | None = None,
    targets: Sequence[Target] = (TARGETS["cpu"],),
    passes: str | Sequence[PassCall] | None = None,
    to: str = "lib",
    out: str | Path | None = None,
    dump: Path | Literal["auto"] | None = None,
    argv: Sequence[str] = (),
    on_step: OnStep | None = None,
    choose: Choose | None = None,
) -> Compilation:
    """Take ``source`` down to stage ``to``; at ``lib`` an artifact is written to ``out`` (default ``<name>.vxa``).

    ``source`` is a flow (its name, ``file.py``, ``file.py:name`` or the object), a flow or page module, or what
    :func:`vortex.compilation.resume.read_tir` read. ``passes`` (a pipeline's text or calls) replaces the default
    pipeline; one that stays in flow IR replaces that part of it. ``choose`` (:class:`vortex.tune.choose.Chooser`) is
    asked what tuning databases know; without it nothing is looked up. ``dump`` is a folder for every step's text;
    ``auto`` makes ``dumps/<name>-<hash>``.

    Raises:
        VortexError: any mistake; then ``out`` is as it was.
    """
    for target in targets:
        target.require(to)
    made = Compilation()
    record = Record(dump, list(argv), [t.name for t in targets], on_step, made.seconds, choose)
    with record.closed():
        if isinstance(source, Module):
            module = source
        elif isinstance(source, list):
            return _finish(made, source, to, out, record)
        else:
            module = _trace(source, spec, record)
        record.start("trace" if module is not source else "resume", module)
        made.dumps = record.path

        if to != "flow":
            _need("networkx", "networkx")
        shared, late = pipeline(passes, module, to)
        with record.time("passes"):
            module = record.run(module, shared)
            if module.stage == "flow":
                made.flow = module
                if to == "flow":
                    return made
                raise IR_STAGE.at(got="flow", expected="page IR", hint="the pipeline has no 'outline'")
            if to == "flow":
                raise IR_STAGE.at(got="page", expected="flow IR", hint="start from a .flow file, or go further down")
            for target in targets:
                made.programs[target.name] = record.run(module, late, target)
            if scheduled(module) and (other := [t.name for t in targets if t.name != module.attrs["target"]]):
                why = f"the program was scheduled for {module.attrs['target']}"
                raise BAD_OPTION.at(option=f"--target {other[0]}", why=why, hint="resume from an earlier dump")
            for target in targets:
                # somebody may have edited what was dumped
                if scheduled(made.programs[target.name]):
                    check_program(made.programs[target.name], target)
        if to == "page":
            return made

        with record.time("imports"):
            _need("tvm", "apache-tvm")
            import vortex.codegen.tir  # noqa: F401 - TVM, seconds that are not ours
            from vortex.codegen.emit import emit_program
        lowered = []
        for target in targets:
            with record.time("emit"):
                program = made.programs[target.name]
                lowered.append(Lowered(target, program, emit_program(program, target.name), record.origin))
        return _finish(made, lowered, to, out, record)


def start_resources(lowered: Lowered, kinds: Collection[str]) -> Callable[[], Resources]:
    """Registers, spills, CTAs an SM of kernels of some kinds, by name and as the manifest has them.

    nvcc runs beside the caller, until the result is called for; nothing is linked.

    Raises:
        VortexError: VX4007 without nvcc, VX4003 without a C++ compiler; by the result, VX4005 when nvcc fails.
    """
    from vortex.codegen.build.library import start_resources as start

    kind = {name: str(f.attrs["kind"]) for name, f in lowered.program.functions.items()}
    return start(lowered.target, {name: k for name, k in lowered.kernels.items() if kind[name] in kinds})


def _trace(source: str | vFlow, spec: Spec | None, record: Record) -> Module:
    with record.time("imports"):
        from vortex.flow.flow import find_flow
        from vortex.flow.trace import trace
    with record.time("trace"):
        flow = find_flow(source) if isinstance(source, str) else source
        return trace(flow, spec or Spec())


def _finish(
    made: Compilation, lowered: Sequence[Lowered], to: str, out: str | Path | None, record: Record
) -> Compilation:
    """From TensorIR to the artifact."""
    record.lowered(lowered)
    made.dumps = record.path
    made.lowered = list(lowered)
    made.programs = {low.target.name: low.program for low in lowered}
    if to == "tir":
        return made
    with scratch_folder() as scratch:
        libraries, resources = {}, {}
        for low in lowered:
            name = low.target.name
            with record.time("imports"):
                from vortex.codegen.build.library import build_target
            with record.time("build"):
                libraries[name] = scratch / f"lib.{name}.so"
                built = build_target(low.target, low.kernels, libraries[name])
            made.sources[name], resources[name] = built.source, built.resources
            for file, text in built.texts.items():
                record.text(file, text)
        if to == "src":
            return made
        from vortex.artifact.folder import write_artifact
        from vortex.compilation.assemble import assemble

        with record.time("write"):
            manifest, files = assemble(lowered, libraries, record.texts, record.about, resources, record.sources)
            made.artifact = Path(out or f"{manifest.flow}.vxa")
            made.manifest = write_artifact(made.artifact, manifest, files)
    return made


def _need(module: str, package: str) -> None:
    """VX4003 where a part of ``vortex[compile]`` is not installed."""
    if find_spec(module) is None:
        raise NO_COMPILER.at(what=package, hint="e.g. apt install gcc")


def pipeline(passes: str | Sequence[PassCall] | None, module: Module, to: str) -> tuple[list[PassCall], list[PassCall]]:
    """What to run on ``module``: the passes for all targets, then those that run once a target.

    IR that was scheduled already, and perhaps edited since, gets no pass unless it is asked for.
    """
    stage = module.stage
    if passes is None:
        passes = "" if scheduled(module) else DEFAULT_PIPELINE[stage]
    calls = parse_pipeline(passes) if isinstance(passes, str) else list(passes)
    if stage == "flow":
        before = next((i for i, c in enumerate(calls) if c.name == "outline"), len(calls))
        if to == "flow":
            return calls[:before], []
        if before >= len(calls) - 1:
            calls = [*calls[:before], *parse_pipeline(f"outline,{DEFAULT_PIPELINE['page']}")]
    cut = next((i for i, c in enumerate(calls) if c.name == PER_TARGET), len(calls))
    return calls[:cut], calls[cut:]


def scheduled(module: Module) -> bool:
    """Whether page IR has been through ``schedule``."""
    return "target" in module.attrs
