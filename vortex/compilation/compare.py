"""What differs between two compilations on disk, dump folders or artifacts, each part by itself.

Libraries and constants are compared by hash and never loaded. What follows from something else is not told again:
CUDA source and PTX follow from TensorIR, and TensorIR from a kernel's page IR and knobs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher

from vortex.artifact.folder import verify_files
from vortex.artifact.manifest import Manifest
from vortex.compilation.stored import Step, Stored, StoredKernel
from vortex.ir.compare import Change, FunctionChange, ModuleChange, Sign, compare_modules, settings
from vortex.ir.core import Module
from vortex.ir.parser import parse_module
from vortex.ir.schedule_changes import knob_changes

TEXTS = ("tir", "source", "ptx")
"""Texts of a kernel in the order in which they are made."""
VARIABLE = re.compile(r"(?<![\w.\"])[A-Za-z_]\w*(?![\w(\"])")
"""A name in TensorIR that is neither an attribute, a function nor quoted."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of two compilations that differs."""

    title: str
    change: ModuleChange


def compare_stored(a: Stored, b: Stored) -> list[Part]:
    """The parts that differ: what the manifest says, the passes, the flow, where dumps diverge first, each target.

    Raises:
        VortexError: VX5002 when a file of an artifact is not what its manifest says, VX2001 and others when IR does
            not parse.
    """
    for side in (a, b):
        if side.manifest is not None:
            verify_files(side.path, side.manifest)
    facts = list(_facts(a, b))
    parts = [Part("manifest", ModuleChange(tuple(facts), ()))]
    told = {(c.what, c.name) for c in facts} | {("attribute", "name"), ("attribute", "target")}
    if a.steps and b.steps:
        parts.append(Part("passes", ModuleChange(tuple(_passes(a.steps, b.steps)), ())))
        parts.append(_divergence(a, b, told))
    elif a.flow and b.flow:
        found = compare_modules(_parsed(a, a.flow, "flow"), _parsed(b, b.flow, "flow"))
        parts.append(Part("flow", _without(found, told)))
    for part in parts[1:]:
        told |= {(c.what, c.name) for c in part.change.changes}
    known = [part.change for part in parts]
    parts += [Part(target, change) for target, change in _targets(a, b, told) if change not in known]
    return [part for part in parts if part.change]


def _parsed(side: Stored, text: str, what: str) -> Module:
    return parse_module(text, f"{side.path}: {what}")


def _without(change: ModuleChange, told: set[tuple[str, str]]) -> ModuleChange:
    """``change`` less what was said of the whole."""
    return replace(change, changes=tuple(c for c in change.changes if (c.what, c.name) not in told))


# --- what the manifest says --------------------------------------------------------------------------------------


def _facts(a: Stored, b: Stored) -> Iterator[Change]:
    for c in _entries_that_differ(a, b):
        yield replace(c, before=c.before.strip('"'), after=c.after.strip('"'))


def _entries_that_differ(a: Stored, b: Stored) -> Iterator[Change]:
    if a.name != b.name:
        yield Change("~", "flow", "name", a.name, b.name)
    yield from settings("version", a.versions, b.versions)
    yield from settings("target", _target_names(a), _target_names(b))
    if a.manifest is None or b.manifest is None:
        return
    left, right = _entries(a.manifest), _entries(b.manifest)
    for what in left:
        yield from settings(what, left[what], right[what])


def _entries(m: Manifest) -> dict[str, dict[str, object]]:
    """What an artifact says of itself beside its kernels, by kind and name."""
    hashes = {name: entry.sha256[:16] for name, entry in m.files.items()}
    return {
        "attribute": {**asdict(m.spec), "cap": asdict(m.cap), "shortlist": m.shortlist},
        "field": {f.name: f"{f.dtype}{list(f.tile)}" for f in m.fields},
        "state": {s.name: f"{s.dtype}{list(s.tile)} per {s.per} from {s.init}" for s in m.states},
        "param": {p.name: f"{p.dtype}{list(p.shape)} per {p.per}" for p in m.parameters},
        "constant": {c.name: f"{c.dtype}{list(c.shape)} {hashes[c.file]}" for c in m.constants},
        "library": {name: f"{hashes[t.library]} for {t.mcpu or name}" for name, t in m.targets.items()},
    }


# --- dumps: which pass -------------------------------------------------------------------------------------------


def _passes(a: tuple[Step, ...], b: tuple[Step, ...]) -> Iterator[Change]:
    """Passes that only one side ran, or that had other options."""
    for op, i, end, j, last in _aligned(a, b).get_opcodes():
        if op == "equal":
            for x, y in zip(a[i:end], b[j:last], strict=True):
                if x.name != y.name:
                    yield Change("~", "pass", _titled(x), x.name, y.name)
        else:
            yield from (Change("-", "pass", _titled(s), f"of {s.stage} IR", "") for s in a[i:end])
            yield from (Change("+", "pass", _titled(s), "", f"of {s.stage} IR") for s in b[j:last])


def _aligned(a: tuple[Step, ...], b: tuple[Step, ...]) -> SequenceMatcher[str]:
    return SequenceMatcher(None, [_titled(s) for s in a], [_titled(s) for s in b], autojunk=False)


def _titled(step: Step) -> str:
    """A pass without its options, and the target that it ran for."""
    name = step.name.partition("{")[0]
    return f"{name} for {step.target}" if step.target else name


def _divergence(a: Stored, b: Stored, told: set[tuple[str, str]]) -> Part:
    """After the first step that both took and that left other IR, what differs; an empty part where none did."""
    left, right = list(_texts(a.steps)), list(_texts(b.steps))
    for i, j, n in _aligned(a.steps, b.steps).get_matching_blocks():
        for k in range(n):
            step = a.steps[i + k]
            if left[i + k] != right[j + k]:
                modules = (_parsed(a, left[i + k], step.name), _parsed(b, right[j + k], step.name))
                if found := _without(compare_modules(*modules), told):
                    return Part(f"diverge first after {_titled(step)} (step {i + k} of {len(a.steps) - 1})", found)
    return Part("", ModuleChange((), ()))


def _texts(steps: tuple[Step, ...]) -> Iterator[str]:
    """The IR after each step."""
    latest: dict[str, str] = {}
    for s in steps:
        if s.text:
            latest[s.target] = s.text
        yield latest.get(s.target) or latest.get("", "")


# --- targets -----------------------------------------------------------------------------------------------------


def _targets(a: Stored, b: Stored, told: set[tuple[str, str]]) -> Iterator[tuple[str, ModuleChange]]:
    """Each target: its program, and what its kernels are and take beside it."""
    kernels = [{(k.target, k.name): k for k in side.kernels} for side in (a, b)]
    for target in [t for t in _target_names(a) if t in _target_names(b)]:
        x, y = a.programs.get(target), b.programs.get(target)
        found = _without(compare_modules(x, y), told) if x is not None and y is not None else ModuleChange((), ())
        functions = {f.name: f for f in found.functions}
        for name in dict.fromkeys(n for side in kernels for t, n in side if t == target):
            if name not in functions or functions[name].sign == "~":
                before = functions[name].changes if name in functions else ()
                mine, theirs = (side.get((target, name)) for side in kernels)
                if rest := tuple(_kernel(mine, theirs, bool(before), x is None)):
                    sign: Sign = "~" if mine and theirs else "-" if mine else "+"
                    functions[name] = FunctionChange(sign, "kernel", name, before + rest)
        yield target, replace(found, functions=tuple(functions.values()))


def _target_names(side: Stored) -> dict[str, str]:
    """In order, each with what is said of it."""
    return dict.fromkeys((*side.programs, *(k.target for k in side.kernels)), "compiled")


def _kernel(a: StoredKernel | None, b: StoredKernel | None, other: bool, knobs: bool) -> Iterator[Change]:
    """What a kernel is and takes of a GPU. Its knobs where ``knobs``, its texts unless its IR is ``other`` anyway."""
    if a is None or b is None:
        before, after = (one.kind if one is not None else "" for one in (a, b))
        yield Change("+" if a is None else "-", "kind", "", before, after)
        return
    changes = list(settings("attribute", {"kind": a.kind}, {"kind": b.kind}))
    changes += settings("argument", dict.fromkeys(a.args, "taken"), dict.fromkeys(b.args, "taken"))
    if knobs:
        for sign, knob, before, after, origin in knob_changes(_attrs(a.schedule), _attrs(b.schedule)):
            changes.append(Change(sign, "knob", knob, before, after, origin=origin))
    if not other and not changes and (what := _other_text(a, b)):
        before, after = (f"{len(x.texts.get(what, '').splitlines())} lines" for x in (a, b))
        changes.append(Change("~", "text", what, before, after))
    yield from changes
    yield from settings("resource", _attrs(a.resources), _attrs(b.resources))


def _attrs(found: Mapping[str, object]) -> dict[str, object]:
    """JSON as attributes: IR has no null."""
    return {k: _attr(v) for k, v in found.items()}


def _attr(x: object) -> object:
    if isinstance(x, Mapping):
        return _attrs(x)
    return tuple(map(_attr, x)) if isinstance(x, list | tuple) else "null" if x is None else x


def _other_text(a: StoredKernel, b: StoredKernel) -> str:
    """The first text that is another one; empty where there is none, or where all that differs follows from names."""
    for what in TEXTS:
        x, y = a.texts.get(what, ""), b.texts.get(what, "")
        if x != y:
            return what if what != "tir" or _numbered(a, x) != _numbered(b, y) else ""
    return ""


def _numbered(kernel: StoredKernel, text: str) -> str:
    """TensorIR without comments, its variables replaced by numbers in order: they are named after those of a flow."""
    names: dict[str, str] = {}
    text = re.sub(r"#[^\n]*", "", text.replace(kernel.symbol, "kernel"))
    return VARIABLE.sub(lambda found: names.setdefault(found[0], f"n{len(names)}"), text)
