"""A compilation on disk as what a report says of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vortex.compilation.stored import Step as StoredStep
from vortex.compilation.stored import Stored, StoredKernel
from vortex.errors import VortexError
from vortex.ir import digest
from vortex.ir.core import Function, Module
from vortex.ir.dialects.page import block_size
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.remarks.decisions import NotTaken
from vortex.report.assessment import Assessment, assess
from vortex.report.graph import draw
from vortex.report.kernel_lines import texts_of
from vortex.report.measured import Row, measured
from vortex.report.model import Compilation, Kernel, Neighbour, Remark, Source, Step, Text
from vortex.report.neighbours import knobs, look_up, origin, serves
from vortex.report.places import Places, op_counts, split_ir
from vortex.report.sources import read_source
from vortex.report.verdict import verdict
from vortex.spec import Spec
from vortex.targets.gpu import MACHINES
from vortex.tune.layers import Layers
from vortex.tune.shapes import Shape


@dataclass(frozen=True, slots=True)
class Request:
    """What a report is wanted of a compilation."""

    shape: Shape
    layers: Layers
    rows: Sequence[Row] = ()
    """Of a results file."""
    redact: bool = False
    """Whether the flow's source and all paths are left out."""
    sass: bool = False
    """Whether nvcc is asked for machine code and the lines of PTX, seconds a kernel."""


@dataclass
class _Texts:
    """Texts as they come, each with its number."""

    places: Places
    made: list[Text] = field(default_factory=list)

    def ir(self, title: str, text: str, target: str = "") -> int:
        lines, found = split_ir(text, self.places)
        return self.add(Text(title, "ir", lines, found, target))

    def add(self, text: Text) -> int:
        self.made.append(text)
        return len(self.made) - 1


def describe(stored: Stored, request: Request) -> Compilation:
    """What a report says of ``stored``; what is missing is left out."""
    places = Places()
    texts = _Texts(places)
    steps = list(_steps(stored, texts))
    programs = {t: p for t, p in (stored.programs or _last_program(stored)).items() if _has_spec(p)}
    if not steps:
        if stored.flow:
            texts.ir("flow IR", stored.flow)
        for target, program in programs.items():
            texts.ir(f"page IR for {target}", print_module(program), target)

    def why_not(program: Module, f: Function, target: str) -> NotTaken:
        return look_up(request.layers, program, f, target, request.shape)[0]

    found = {t: assess(stored, t, p, request.shape, why_not) if t else Assessment() for t, p in programs.items()}
    kernels = [
        _kernel(
            replace(stored, programs=programs),
            k,
            programs.get(k.target),
            found.get(k.target, Assessment()),
            request,
            texts,
        )
        for k in stored.kernels
    ]
    for target in dict.fromkeys(k.target for k in stored.kernels):
        texts.add(_schedules(target, [k for k in stored.kernels if k.target == target]))
    if stored.traceback and not request.redact:  # it quotes lines of code
        texts.add(Text("traceback", "traceback", tuple(stored.traceback.splitlines()), ()))
    remarks = tuple(
        Remark(r.rule, r.sort, r.kernel, r.message, r.help, places.of(r.loc)) for a in found.values() for r in a.remarks
    )
    drawings = tuple(d for target, program in programs.items() for d in draw(program, target, places))
    made = Compilation(
        name=stored.name,
        path=str(stored.path),
        form=stored.form,
        status=stored.status,
        error=stored.error,
        command=shlex.join(stored.argv),
        versions=dict(stored.versions),
        identity=_identity(stored, programs),
        workload=_workload(request.shape, programs),
        machines=tuple(m.name for m in MACHINES.values()),
        seconds=dict(stored.seconds),
        verdict=(),
        sources=tuple(_sources(stored, places, programs)),
        places=tuple(places.found),
        texts=tuple(texts.made),
        steps=tuple(steps),
        kernels=tuple(kernels),
        remarks=tuple(dict.fromkeys(remarks)),
        not_assessed={target: a.failed for target, a in found.items() if a.failed},
        drawings=drawings,
    )
    made = replace(made, verdict=verdict(made))
    return _redacted(made, places.files) if request.redact else made


def _steps(stored: Stored, texts: _Texts) -> Iterator[Step]:
    before: dict[str, int] = {}
    for s in stored.steps:
        last = before.get(s.target, before.get("", -1))
        number = texts.ir(_title(s), s.text, s.target) if s.text else last
        before[s.target] = number
        now, then = (op_counts(texts.made[n].lines) if n >= 0 else {} for n in (number, last))
        made = {name: n - then.get(name, 0) for name, n in now.items() if n > then.get(name, 0)}
        gone = {name: n - now.get(name, 0) for name, n in then.items() if n > now.get(name, 0)}
        changed = s.changed and bool(s.text)
        yield Step(s.name, s.stage, s.target, changed, 1e3 * s.seconds, sum(now.values()), number, made, gone)


def _title(s: StoredStep) -> str:
    return f"after {s.name}{f' for {s.target}' if s.target else ''}"


def _last_program(stored: Stored) -> dict[str, Module]:
    """The last page IR of each target, of a compilation that did not come to schedules; what does not parse is not."""
    found: dict[str, Module] = {}
    for s in reversed(stored.steps):
        if s.stage == "page" and s.text and s.target not in found:
            try:
                found[s.target] = parse_module(s.text, s.name)
            except VortexError:
                continue
    if len(found) > 1:
        found.pop("", None)
    return dict(reversed(found.items()))


def _has_spec(program: Module) -> bool:
    """Whether a program says which model it is for; one that was edited by hand may not."""
    try:
        Spec.of_attrs(program.attrs)
    except (KeyError, TypeError, VortexError):
        return False
    return True


def _kernel(
    stored: Stored, k: StoredKernel, program: Module | None, found: Assessment, request: Request, texts: _Texts
) -> Kernel:
    """A kernel with its texts; a variant costs and is remarked on as the kernel that it stands for."""
    of = str(k.schedule.get("variant_of", k.name))
    f = program.functions.get(of) if program is not None else None
    made, unknown = texts_of(stored, k, f, texts.places, sass=request.sass)
    database, near = "", tuple[Neighbour, ...]()
    if program is not None and f is not None:
        found_there, near = look_up(request.layers, program, f, k.target, request.shape)
        database = found_there.why
    page_size = block_size(program) if program is not None else 1
    gpu = k.target in MACHINES and k.name == of
    return Kernel(
        target=k.target,
        name=k.name,
        kind=k.kind,
        variant_of=of if of != k.name else "",
        digest=k.digest,
        origin=origin(k.schedule),
        knobs=knobs(k.schedule),
        serves=serves(k.schedule),
        resources=dict(k.resources),
        cost=found.costs.get(of),
        why_no_cost=found.why_no_costs,
        measured=measured(request.rows, stored.name, k.name, request.shape, page_size) if gpu else (),
        database=database,
        neighbours=near,
        texts=tuple(texts.add(t) for t in made),
        no_texts=unknown,
    )


def _schedules(target: str, kernels: Sequence[StoredKernel]) -> Text:
    """All knobs of a target's kernels, a line each: what is compared of two schedules."""
    lines: list[str] = []
    for k in kernels:
        lines.append(f"{k.name}: {origin(k.schedule) or 'nothing to choose'}")
        lines += [f"  {name} = {x}" for name, x in sorted(knobs(k.schedule).items())]
        if told := serves(k.schedule):
            lines.append(f"  serves {told}")
    return Text(f"schedules for {target}", "schedule", tuple(lines), (), target)


def _identity(stored: Stored, programs: Mapping[str, Module]) -> dict[str, str]:
    """Hashes by which this compilation is told from others."""
    found = {"artifact": stored.digest} if stored.digest else {}
    if stored.flow:
        try:
            found["flow IR"] = digest.structural(parse_module(stored.flow, stored.name))
        except VortexError:
            found["flow IR"] = "does not parse"
    return found | {f"schedules {t}": digest.schedule(p) for t, p in programs.items() if t}


def _workload(shape: Shape, programs: Mapping[str, Module]) -> str:
    sizes = {block_size(p) for p in programs.values()}
    pages = f", pages of {min(sizes)} tokens" if sizes else ""
    return (
        f"one layer's step of {shape.batch} requests of {shape.tokens} tokens, {shape.kv_heads} KV heads, "
        f"{shape.kept} pages kept{pages}"
    )


def _sources(stored: Stored, places: Places, programs: Mapping[str, Module]) -> Iterator[Source]:
    """The files that locations name."""
    hashes = [str(p.attrs.get("source", "")) for p in programs.values()]
    if not hashes and stored.flow:
        try:
            hashes = [str(parse_module(stored.flow, stored.name).attrs.get("source", ""))]
        except VortexError:
            hashes = []
    for n, file in enumerate(places.files):
        lines = [p.line for p in places.found if p.source == n]
        if file in stored.sources:
            yield Source(Path(file).name, tuple(stored.sources[file].splitlines()), "")
        else:
            yield read_source(file, hashes[0] if hashes else "", lines)


def _redacted(c: Compilation, files: Sequence[str]) -> Compilation:
    """The same without source, and with names in place of paths."""
    names = {file: f"source {n + 1}" for n, file in enumerate(files)}
    names |= {c.path: "..."} | {str(Path(file).parent): "..." for file in files}
    names |= {Path(file).name: f"source {n + 1}" for n, file in enumerate(files)}
    hidden = re.compile("|".join(re.escape(x) for x in sorted(names, key=len, reverse=True) if len(x) > 1) or "$^")

    def shown(text: str) -> str:
        return hidden.sub(lambda found: names[found[0]], text)

    def word(text: str) -> str:
        return "..." if "/" in text else text

    made = replace(
        c,
        path=word(c.path),
        error=shown(c.error),
        command=shlex.join(word(w) for w in shlex.split(c.command)),
        sources=tuple(Source(f"source {n + 1}", (), "left out of this report") for n in range(len(c.sources))),
        texts=tuple(replace(t, lines=tuple(map(shown, t.lines))) for t in c.texts),
    )
    return replace(made, verdict=verdict(made))
