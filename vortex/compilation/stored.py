"""A compilation as it lies on disk, a dump folder or an artifact, read for people: its steps, kernels and texts.

Nothing is loaded and nothing is run. What the two do not share is left empty: an artifact keeps no text of the passes
in between, a dump keeps no library. The reproducer of a failure is its dump as far as that came, or the IR that the
command was given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from vortex.artifact import folder as artifact
from vortex.artifact.kernel_texts import KEPT, kept_text
from vortex.artifact.manifest import Manifest
from vortex.compilation import dump
from vortex.compilation.reproducer import STAGES, Reproducer, is_reproducer, read_reproducer
from vortex.compilation.resume import read_text
from vortex.errors import NO_SUCH_FILE
from vortex.ir.core import Module
from vortex.ir.parser import parse_module
from vortex.untrusted_json import JsonError, Partial, Pattern, parse, read

Form = Literal["artifact", "dump", "reproducer"]


@dataclass(frozen=True, slots=True)
class Step:
    """One pass that ran, or the trace that everything began with."""

    name: str
    """As the pipeline's text has it, options included."""
    stage: str
    """Of the IR that it left."""
    target: str
    """Empty where it ran once for all targets."""
    changed: bool
    seconds: float
    text: str
    """The IR that it left; empty where nothing changed."""


@dataclass(frozen=True, slots=True)
class StoredKernel:
    """One kernel for one target."""

    target: str
    name: str
    kind: str
    symbol: str
    args: tuple[str, ...]
    schedule: Mapping[str, object]
    digest: str
    resources: Mapping[str, object]
    """On a GPU: what ``vortex info`` shows; empty for a CPU and where the kernel was not compiled."""
    texts: Mapping[str, str]
    """Of ``tir``, ``source`` and ``ptx`` those that are kept."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A compilation on disk."""

    path: Path
    form: Form
    name: str
    """Of the flow."""
    argv: tuple[str, ...]
    versions: Mapping[str, str]
    flow: str
    """Text of the flow IR that it began with; empty where it began below."""
    steps: tuple[Step, ...]
    """Empty for an artifact."""
    programs: Mapping[str, Module]
    """The scheduled page IR, by target."""
    kernels: tuple[StoredKernel, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of a dump: what each part of the compilation took."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Text of the files that the flow was traced from, by their paths as locations have them."""
    status: str = "ok"
    """``ok``, ``failed``, or ``running`` where the compilation was killed or goes on."""
    error: str = ""
    """What a failed compilation ended with."""
    manifest: Manifest | None = None
    """Of an artifact."""
    traceback: str = ""
    """Of a reproducer."""

    @property
    def digest(self) -> str:
        """Of an artifact; empty for a dump."""
        return self.manifest.digest if self.manifest else ""


def read_stored(path: str | Path) -> Stored:
    """The compilation in a dump folder or an artifact, or in the reproducer of a failure.

    Raises:
        VortexError: VX7002 when ``path`` is neither or a file of a dump is missing or damaged, VX5002 when a file of
            an artifact is not what its manifest says, VX2001 and others when IR does not parse.
    """
    path = Path(path)
    if not path.is_dir():
        why = "is a file" if path.exists() else "does not exist"
        raise NO_SUCH_FILE.at(path=str(path), why=f"{why}: an artifact or a dump folder is needed")
    if is_reproducer(path):
        return _of_reproducer(read_reproducer(path))
    try:
        found = parse((path / dump.MANIFEST).read_bytes())
    except (OSError, JsonError):
        found = None  # read_manifest says what is wrong
    if isinstance(found, dict) and "dump" in found:
        return _of_dump(path, found)
    return _of_artifact(path, artifact.read_manifest(path))


def _of_artifact(path: Path, m: Manifest) -> Stored:
    def text(name: str) -> str:
        return read_text(str(path / name)) if name in m.files else ""

    kernels = []
    for target, entry in m.targets.items():
        for k in entry.kernels:
            texts = {"tir": text(f"ir/{k.name}.{target}.tir")}
            texts |= {what: kept_text(path, m, k.name, target, what) for what in KEPT.values()}
            kernels.append(
                StoredKernel(
                    target, k.name, k.kind, k.symbol, k.args, k.schedule, k.digest, k.resources,
                    {what: content for what, content in texts.items() if content},
                )
            )  # fmt: skip
    pages = {target: text(f"ir/{m.flow}.{target}.page") for target in m.targets}
    return Stored(
        path,
        "artifact",
        m.flow,
        tuple(str(word) for word in _list(m.provenance.get("argv"))),
        m.toolchain,
        text(f"ir/{m.flow}.trace.flow"),
        (),
        {t: parse_module(page, str(path / f"ir/{m.flow}.{t}.page")) for t, page in pages.items() if page},
        tuple(kernels),
        sources={file: found for file, name in _kept_sources(m).items() if (found := text(f"ir/source/{name}"))},
        manifest=m,
    )


def _of_reproducer(r: Reproducer) -> Stored:
    if r.dump is not None:
        made = read_stored(r.dump)
        return replace(
            made, path=r.path, form="reproducer", argv=r.argv, versions={**made.versions, **r.versions},
            sources={**r.inputs, **made.sources}, status="failed", error=r.error, traceback=r.traceback,
        )  # fmt: skip
    steps = [
        Step(f"input {name}", STAGES[Path(name).suffix], "", True, 0.0, text)
        for name, text in r.inputs.items()
        if Path(name).suffix in STAGES
    ]
    return Stored(
        r.path, "reproducer", r.path.name, r.argv, r.versions, "", tuple(steps), {}, (),
        sources=r.inputs, status="failed", error=r.error, traceback=r.traceback,
    )  # fmt: skip


def _kept_sources(m: Manifest) -> dict[str, object]:
    found = m.provenance.get("sources")
    return found if isinstance(found, dict) else {}


def _list(found: object) -> list[object]:
    return list(found) if isinstance(found, list | tuple) else []


def _of_dump(path: Path, found: dict[str, object]) -> Stored:
    dump.read_manifest(path)  # the version is known, or it says so
    try:
        m: _Dumped = read(Annotated[_Dumped, Partial(more=True)], found)
    except JsonError as e:
        raise NO_SUCH_FILE.at(path=str(path / dump.MANIFEST), why=f"is damaged: {e}") from None

    def text(name: str) -> str:
        return read_text(str(path / name))

    steps = [
        Step(s.name, s.stage, s.target, s.changed, s.seconds, text(s.file) if s.file and s.changed else "")
        for s in m.steps
    ]
    return Stored(
        path,
        "dump",
        m.flow,
        m.argv,
        {name: v for name, v in m.versions.items() if v},
        text(m.origin) if m.origin else "",
        tuple(steps),
        {target: parse_module(text(file), str(path / file)) for target, file in m.programs.items()},
        tuple(_dumped_kernels(path, m)),
        m.seconds,
        {file: text(name) for file, name in m.sources.items()},
        m.status,
        m.error,
    )


def _dumped_kernels(path: Path, m: _Dumped) -> Iterator[StoredKernel]:
    for target, kernels in m.kernels.items():
        printed = _printed_resources(path / f"{target}.resources.txt")
        for k in kernels:
            texts = {"tir": read_text(str(path / k.file))}
            for suffix, what in KEPT.items():
                file = path / f"{k.name}.{target}{suffix}"
                if file.exists():
                    texts[what] = read_text(str(file))
            resources = m.resources.get(target, {}).get(k.symbol) or printed.get(k.symbol, {})
            yield StoredKernel(target, k.name, k.kind, k.symbol, k.args, k.schedule, k.digest, resources, texts)


def _printed_resources(file: Path) -> dict[str, dict[str, object]]:
    """What kernels take of a GPU, by symbol, as dumps have it for people: the manifest of older ones has no numbers."""
    found: dict[str, dict[str, object]] = {}
    symbol = ""
    for line in read_text(str(file)).splitlines() if file.exists() else ():
        words = line.split(maxsplit=1)
        if len(words) == 1 and not line.startswith(" "):
            symbol = words[0]
        elif len(words) == 2 and line.startswith("  ") and symbol:
            name, x = words
            found.setdefault(symbol, {})[name] = float(x) if "." in x else int(x) if x.isdecimal() else x
    return found


_FileName = Annotated[str, Pattern(r"[^/\\\0]+", "the name of a file in the folder")]
_Word = Annotated[str, Pattern(r"(?s).*", "text")]


@dataclass(frozen=True, slots=True)
class _DumpedStep:
    """A step as the manifest of a dump has it."""

    name: str
    stage: str
    target: str
    changed: bool
    seconds: float
    file: _FileName | None = None


@dataclass(frozen=True, slots=True)
class _DumpedKernel:
    name: str
    file: _FileName
    kind: str
    symbol: str
    args: tuple[str, ...]
    digest: str
    schedule: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Dumped:
    """What is read here of the manifest of a dump; the rest of it is for others."""

    flow: str = ""
    argv: tuple[_Word, ...] = ()
    versions: Mapping[str, str | None] = field(default_factory=dict)
    origin: _FileName | None = None
    sources: Mapping[_Word, _FileName] = field(default_factory=dict)
    steps: tuple[Annotated[_DumpedStep, Partial(more=True)], ...] = ()
    programs: Mapping[str, _FileName] = field(default_factory=dict)
    kernels: Mapping[str, tuple[Annotated[_DumpedKernel, Partial(more=True)], ...]] = field(default_factory=dict)
    resources: Mapping[str, Mapping[str, Mapping[str, object]]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    status: _Word = "ok"
    error: _Word = ""
