"""The stages in order: from a flow, or any stage of it, to an artifact.

:func:`compile_flow` is the picture of ``docs/architecture.md`` as code; read it first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vortex.compilation.flow_files import flow_files
from vortex.compilation.lowered import Lowered
from vortex.compilation.recorder import OnStep, Record
from vortex.errors import BAD_OPTION, IR_STAGE, NO_COMPILER
from vortex.install.scratch import scratch_folder
from vortex.ir.core import Module
from vortex.ir.printer import print_module
from vortex.passes.manager import DEFAULT_PIPELINE, Choose, PassCall, parse_pipeline
from vortex.schedules.check import check_program
from vortex.spec import Spec
from vortex.targets.target import STAGES, TARGETS, Target

if TYPE_CHECKING:
    from vortex.artifact.manifest import Manifest
    from vortex.artifact.resumed import Resumed
    from vortex.flow.flow import vFlow

__all__ = ["STAGES", "Compilation", "compile_flow", "pipeline", "start_resources"]

PER_TARGET = ("softmax-sums", "schedule")
"""The passes that look at the target; what stands before the first of them runs once for all targets."""

Resources = dict[str, dict[str, int | float | str]]
"""What kernels take of a GPU, by name: numbers as the manifest has them."""

TOOLS = ("imports", "build")
"""Parts of a compilation that are not our code: importing torch and TVM; TVM's lowering, LLVM and cc."""

OnBuilt = Callable[[str, int, int], None]
"""Called with a GPU's target, how many of its kernels are compiled, and of how many; first with none."""


@dataclass(repr=False)
class Compilation:
    """What a compilation made, as far as it went."""

    flow: Module | None = None
    """The flow IR, where it was the last stage."""
    programs: dict[str, Module] = field(default_factory=dict)
    """The page IR by target."""
    lowered: list[Lowered] = field(default_factory=list)
    """The TensorIR of the kernels, for each target."""
    sources: dict[str, str] = field(default_factory=dict)
    """LLVM IR or CUDA C++ by target."""
    artifact: Path | None = None
    """Where it lies: what :func:`vortex.load` takes."""
    manifest: Manifest | None = None
    """What the artifact says of itself: kernels, fields, resources, digest."""
    dumps: Path | None = None
    """The folder of dumps, where there is one."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each part took."""

    @property
    def own_seconds(self) -> float:
        """Time in our own code: neither imports nor TVM nor the C compiler."""
        return sum(s for part, s in self.seconds.items() if part not in TOOLS)

    def __repr__(self) -> str:
        """How a prompt shows it: a line, for the texts of all stages are long."""
        last = next(reversed(self.programs.values()), self.flow)
        stages = {
            "flow": self.flow,
            "page": self.programs,
            "tir": self.lowered,
            "src": self.sources,
            "lib": self.artifact,
        }
        facts = {
            "flow": self.manifest.flow if self.manifest is not None else last.name if last is not None else "",
            "stage": next((name for name, made in reversed(stages.items()) if made), ""),
            "targets": ", ".join(self.programs or ([t.target.name for t in self.lowered])),
            "artifact": self.artifact or "",
            "dumps": self.dumps or "",
        }
        told = ", ".join(f"{name}: {fact}" for name, fact in facts.items() if fact)
        return f"<Compilation {told}>" if told else "<Compilation>"

    def _repr_html_(self) -> str:
        """How a notebook shows it: the artifact, or how far it went, and the text of the last program."""
        from vortex.notebook import frame

        last = next(reversed(self.programs.values()), self.flow)
        name = self.manifest.flow if self.manifest is not None else last.name if last is not None else ""
        facts: dict[str, object] = {"artifact": self.artifact or "", "dumps": self.dumps or ""}
        facts |= self.manifest.facts() if self.manifest is not None else {}
        facts["seconds"] = ", ".join(f"{part} {s:.1f}" for part, s in self.seconds.items())
        title = f"text of stage {last.stage}" if last is not None else ""
        return frame("compilation", name, facts, title, "" if last is None else print_module(last, locs=False))


def compile_flow(
    source: str | vFlow | type[vFlow] | Module | list[Lowered],
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
    keep_source: bool = True,
    on_built: OnBuilt | None = None,
    resumed: tuple[Resumed, ...] = (),
    dump_tvm: bool = False,
) -> Compilation:
    """Take ``source`` down to stage ``to``; at ``lib`` an artifact is written to ``out`` (default ``<name>.vxa``).

    ``source`` is a flow (its name, ``file.py``, ``file.py:name``, the class or an object), a flow or page module, or
    what :func:`vortex.compilation.resume.read_tir` or ``read_src`` read; ``resumed`` says how what was read came to be.
    ``passes`` (a pipeline's text or calls) replaces the default pipeline; one that stays in flow IR replaces that part
    of it. ``choose`` (:class:`vortex.tune.choose.Chooser`) is asked what tuning databases know; without it nothing is
    looked up. ``dump`` is a folder for every step's text; ``auto`` is a folder of its own for each thing asked for,
    ``dumps/<name>-<hash>-<targets>``, and ``-<to>`` behind it for an earlier stage than ``lib``. Dump and artifact hold
    the flow's own code unless ``keep_source`` is False. ``on_built`` hears how far a GPU's kernels are compiled. With
    ``dump_tvm`` the dump has the passes of TVM too, which then takes several times as long.

    Raises:
        VortexError: any mistake; then ``out`` is as it was.
    """
    for target in targets:
        target.require(to)
    made = Compilation()
    names = [t.name for t in targets]
    record = Record(dump, list(argv), names, on_step, made.seconds, choose, resumed, to=to, dump_tvm=dump_tvm)
    with record.closed():
        if isinstance(source, Module):
            module = source
        elif isinstance(source, list):
            return _finish(made, source, to, out, record, on_built)
        else:
            module = _trace(source, spec, record)
        traced = module is not source
        shared, late = pipeline(passes, module, to)
        files = flow_files(module) if traced and keep_source else ()
        record.start("trace" if traced else "resume", module, [*shared, *late], files)
        made.dumps = record.path

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
            if find_spec("tvm") is None:
                raise NO_COMPILER.at(what="apache-tvm", hint="e.g. apt install gcc")
            import vortex.codegen.tir  # noqa: F401 - TVM, seconds that are not ours
            from vortex.codegen.emit import emit_program
        lowered = []
        for target in targets:
            with record.time("emit"):
                program = made.programs[target.name]
                lowered.append(Lowered(target, program, emit_program(program, target.name), record.origin))
        return _finish(made, lowered, to, out, record, on_built)


def start_resources(lowered: Lowered, kinds: Collection[str]) -> Callable[[], Resources]:
    """Registers, spills, CTAs an SM of kernels of some kinds, by name and as the manifest has them.

    nvcc runs beside the caller, until the result is called for; nothing is linked.

    Raises:
        VortexError: VX4007 without nvcc, VX4003 without a C++ compiler; by the result, VX4005 when nvcc fails.
    """
    from vortex.codegen.build.library import start_resources as start

    return start(lowered.target, {name: k for name, k in lowered.kernels.items() if k.kind in kinds})


def _trace(source: str | vFlow | type[vFlow], spec: Spec | None, record: Record) -> Module:
    with record.time("imports"):
        from vortex.flow.flow import find_flow
        from vortex.flow.trace import trace
    with record.time("trace"):
        flow = find_flow(source) if isinstance(source, str) else source
        return trace(flow, spec or Spec())


def _finish(
    made: Compilation,
    lowered: Sequence[Lowered],
    to: str,
    out: str | Path | None,
    record: Record,
    on_built: OnBuilt | None,
) -> Compilation:
    """From TensorIR to the artifact."""
    record.lowered(lowered)
    made.dumps = record.path
    made.lowered = list(lowered)
    made.programs = {low.target.name: low.program for low in lowered}
    if to == "tir":
        return made
    if to == "lib":
        from vortex.compilation.assemble import require_whole

        for low in lowered:
            require_whole(low.program)
    with scratch_folder() as scratch:
        libraries, resources = {}, {}
        for low in lowered:
            name = low.target.name
            with record.time("imports"):
                from vortex.codegen.build.library import build_target
            with record.time("build"):
                libraries[name] = scratch / f"lib.{name}.so"
                told = partial(on_built, name) if on_built is not None else None
                with _watched(low, record):
                    built = build_target(low.target, low.kernels, libraries[name], low.sources, told)
            made.sources[name], resources[name] = built.source, built.resources
            record.resources(name, built.resources)
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


@contextmanager
def _watched(low: Lowered, record: Record) -> Iterator[None]:
    """TVM's own passes on a target's kernels go into the dump, where they are wanted."""
    dump = record.tvm_passes(low)
    if dump is None:
        yield
        return
    from vortex.codegen.build.tvm_passes import watched

    try:
        with watched(dump.kernels, dump.add):
            yield
    finally:
        dump.close()


def pipeline(passes: str | Sequence[PassCall] | None, module: Module, to: str) -> tuple[list[PassCall], list[PassCall]]:
    """What to run on ``module``: the passes for all targets, then those that run once a target.

    IR that was scheduled already, and perhaps edited since, gets no pass unless it is asked for.
    """
    stage = module.stage
    if passes is None:
        passes = default_pipeline(module)
    calls = parse_pipeline(passes) if isinstance(passes, str) else list(passes)
    if stage == "flow":
        before = next((i for i, c in enumerate(calls) if c.name == "outline"), len(calls))
        if to == "flow":
            return calls[:before], []
        if before >= len(calls) - 1:
            calls = [*calls[:before], *parse_pipeline(f"outline,{DEFAULT_PIPELINE['page']}")]
    cut = next((i for i, c in enumerate(calls) if c.name in PER_TARGET), len(calls))
    return calls[:cut], calls[cut:]


def default_pipeline(module: Module | Literal["flow"]) -> list[PassCall]:
    """What runs when nobody says otherwise, on a module or on a flow that is yet to be traced."""
    if isinstance(module, Module) and module.stage == "page":
        return [] if scheduled(module) else parse_pipeline(DEFAULT_PIPELINE["page"])
    return parse_pipeline(f"{DEFAULT_PIPELINE['flow']},{DEFAULT_PIPELINE['page']}")


def scheduled(module: Module) -> bool:
    """Whether page IR has been through ``schedule``."""
    return "target" in module.attrs
