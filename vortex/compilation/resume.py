"""Picking up a compilation at a stage that an earlier one dumped, edited or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vortex.artifact.resumed import Resumed, resumptions
from vortex.compilation.dump import MANIFEST, read_manifest, text_hash
from vortex.compilation.lowered import Lowered
from vortex.errors import BAD_OPTION, IR_STAGE, NO_SUCH_FILE, NO_TARGET_IN_ARTIFACT, VortexError
from vortex.ir.core import Module
from vortex.ir.parser import parse_module
from vortex.targets.target import Target


def read_ir(file: str, stage: str | None = None) -> Module:
    """The module in a ``.flow`` or ``.page`` file; VX2009 when it is not of ``stage``."""
    module = parse_module(read_text(file), file)
    if stage is not None and module.stage != stage:
        raise IR_STAGE.at(got=module.stage, expected=f"a {stage} file", hint=f"use --from {module.stage}")
    return module


def read_text(file: str) -> str:
    """The content of a file; VX7002 when it cannot be read."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as e:
        raise NO_SUCH_FILE.at(path=file, why=f"cannot be read: {e.strerror}") from None
    except UnicodeDecodeError:
        raise NO_SUCH_FILE.at(path=file, why="is not text") from None
    except ValueError:
        raise NO_SUCH_FILE.at(path=file.encode("unicode_escape").decode(), why="is no name of a file") from None


def dumped_targets(folder: Path) -> tuple[str, ...]:
    """The names of the targets whose TensorIR a dump folder holds.

    Raises:
        VortexError: VX7002 when the folder is not a dump or holds no TensorIR.
    """
    return tuple(map(str, _dumped(folder)[1]))


def read_tir(folder: Path, targets: tuple[Target, ...]) -> list[Lowered]:
    """The TensorIR of a dump folder, with the page IR it came from.

    Raises:
        VortexError: VX7002 when the folder is not a dump or lacks files, VX5003 when it lacks a target.
    """
    programs, kernels, origin = _dumped(folder)
    flow = read_text(str(folder / origin)) if isinstance(origin, str) else ""
    return [_lowered(folder, target, programs, kernels, flow) for target in targets]


def read_src(folder: Path, targets: tuple[Target, ...]) -> list[Lowered]:
    """The CUDA C++ or LLVM IR of a dump folder, with the TensorIR and the page IR it came from.

    Raises:
        VortexError: as :func:`read_tir`; VX7001 when an edit of the folder lies where this does not look.
    """
    found = [
        replace(low, sources={n: read_text(str(folder / n)) for n in sources_of(low)})
        for low in read_tir(folder, targets)
    ]
    unread = [
        n for n in _differing(folder, read_manifest(folder)["files"]) if Path(n).suffix in (".tir", ".ptx", ".sass")
    ]
    if unread:
        why = f"'{unread[0]}' was edited, and what is built from is {', '.join(found[0].sources)}"
        hint = "--from tir" if unread[0].endswith(".tir") else f"edit the file beside it, or put '{unread[0]}' back"
        raise BAD_OPTION.at(option="--from src", why=why, hint=hint)
    return found


def sources_of(low: Lowered) -> list[str]:
    """The files of a dump that hold stage ``src`` of a target: of a GPU one a kernel, of a CPU one."""
    name = low.target.name
    return [f"{name}.ll"] if low.target.kind == "cpu" else [f"{k}.{name}.cu" for k in low.kernels]


def resumed_ir(file: str, stage: str) -> tuple[Resumed, ...]:
    """How a compilation that begins with a ``.flow`` or ``.page`` file came to be, the earliest first."""
    path = Path(file)
    return _resumed(path.parent, stage, [path.name])


def resumed_dump(folder: Path, stage: str, lowered: list[Lowered]) -> tuple[Resumed, ...]:
    """The same of one that begins with the TensorIR, or the sources, of a dump."""
    programs, kernels, origin = _dumped(folder)
    targets = [low.target.name for low in lowered]
    names = [str(origin)] if origin else []
    names += [str(programs[t]) for t in targets]
    names += [str(k["file"]) for t in targets for k in kernels[t]]
    return _resumed(folder, stage, [*names, *(n for low in lowered for n in low.sources)])


def _resumed(folder: Path, stage: str, names: list[str]) -> tuple[Resumed, ...]:
    try:
        about = read_manifest(folder)
    except VortexError:
        return (Resumed(stage, (), tuple(names)),)
    known = {n: about["files"][n] for n in names if n in about["files"]}
    unknown = tuple(n for n in names if n not in known)
    return (*resumptions(about), Resumed(stage, tuple(_differing(folder, known)), unknown))


def _differing(folder: Path, hashes: dict[str, str]) -> list[str]:
    """The files that are no longer what was dumped."""
    there = [n for n in hashes if (folder / n).is_file()]
    return [
        n for n in there if text_hash((folder / n).read_text(encoding="utf-8", errors="surrogateescape")) != hashes[n]
    ]


def _dumped(folder: Path) -> tuple[dict[str, Any], dict[str, Any], object]:
    """What the manifest of a dump says of its page IR and kernels, by target, and of the flow they came from."""
    manifest = read_manifest(folder)
    programs, kernels = manifest.get("programs"), manifest.get("kernels")
    if not isinstance(programs, dict) or not isinstance(kernels, dict):
        raise NO_SUCH_FILE.at(
            path=str(folder), why="holds no TensorIR: the compilation that dumped it stopped before tir"
        )
    return programs, kernels, manifest.get("origin")


def _lowered(folder: Path, target: Target, programs: dict[str, Any], kernels: dict[str, Any], flow: str) -> Lowered:
    from vortex.codegen.emit import KernelSource

    if target.name not in programs or target.name not in kernels:
        raise NO_TARGET_IN_ARTIFACT.at(path=str(folder), target=target.name, have=", ".join(programs) or "none")
    try:
        program = read_ir(str(folder / programs[target.name]), "page")
        sources = {
            k["name"]: KernelSource(
                name=k["name"],
                text=read_text(str(folder / k["file"])),
                args=tuple(k["args"]),
                page_words=k["page_words"],
                row_words=k["row_words"],
                kind=k["kind"],
                symbol=k["symbol"],
                schedule=dict(k["schedule"]),
                digest=str(k["digest"]),
            )
            for k in kernels[target.name]
        }
    except (KeyError, TypeError, AttributeError) as e:
        raise NO_SUCH_FILE.at(path=str(folder / MANIFEST), why=f"is damaged: {e!r}") from None
    return Lowered(target, program, sources, flow)
