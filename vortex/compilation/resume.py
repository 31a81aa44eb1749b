"""Picking up a compilation at a stage that an earlier one dumped, edited or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vortex.compilation.dump import MANIFEST, read_manifest
from vortex.compilation.lowered import Lowered
from vortex.errors import IR_STAGE, NO_SUCH_FILE, NO_TARGET_IN_ARTIFACT
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
                text=(folder / k["file"]).read_text(encoding="utf-8"),
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
    except (OSError, UnicodeDecodeError) as e:
        raise NO_SUCH_FILE.at(path=str(folder), why=f"cannot be read: {e}") from None
    return Lowered(target, program, sources, flow)
