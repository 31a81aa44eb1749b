"""What goes into an artifact, from what the stages made."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vortex.artifact.kernel_texts import pack
from vortex.artifact.manifest import (
    ConstantEntry,
    FieldEntry,
    KernelEntry,
    Manifest,
    ParameterEntry,
    StateEntry,
    TargetEntry,
)
from vortex.artifact.resumed import as_json, resumptions
from vortex.compilation.lowered import Lowered
from vortex.errors import IR_STRUCTURE
from vortex.ir.core import Module
from vortex.ir.dialects import page
from vortex.ir.types import TensorType
from vortex.kinds.kind import CALLS, KINDS
from vortex.spec import REQUIRED, Spec
from vortex.targets.cpu import detect_mcpu, machine, required_features


def assemble(
    lowered: Sequence[Lowered],
    libraries: Mapping[str, Path],
    texts: Mapping[str, str],
    about: Mapping[str, Any],
    resources: Mapping[str, Mapping[str, Mapping[str, object]]],
    sources: Mapping[str, str],
) -> tuple[Manifest, dict[str, bytes | Path]]:
    """The manifest, and the files beside it by their path inside the artifact.

    ``texts`` are the stages' texts by file name, ``about`` is how the artifact came to be, ``resources`` what each
    kernel takes of a GPU, by target and symbol, ``sources`` the texts of stage ``src``.
    """
    program = lowered[0].program
    files: dict[str, bytes | Path] = {f"ir/{name}": text.encode() for name, text in texts.items()}
    files |= pack(dict(sources))
    files |= {f"lib.{name}.so": library for name, library in libraries.items()}
    constants = []
    for d in program.declared("resource"):
        t = _tensor(program, d.name)
        files[f"constants/{d.name}.bin"] = base64.b64decode(d.attrs["data"])
        constants.append(ConstantEntry(d.name, f"constants/{d.name}.bin", str(t.dtype), t.tile))
    blocks = page.page_blocks(program)
    fields = [
        FieldEntry(d.name, t.tile if blocks == 1 or page.of_whole_pages(d) else (blocks, *t.tile), str(t.dtype))
        for d in program.declared("buffer")
        if d.attrs.get("role") == "field" and (t := _tensor(program, d.name))
    ]
    states = [
        StateEntry(
            d.name,
            t.tile if blocks == 1 or d.attrs["layout"] != "entry" else (blocks, *t.tile),
            str(t.dtype),
            _PER[str(d.attrs["layout"])],
            str(float(d.attrs["init"])),
        )
        for d in program.declared("buffer")
        if d.attrs.get("role") == "state" and (t := _tensor(program, d.name))
    ]
    manifest = Manifest(
        flow=program.name,
        source=str(program.attrs.get("source", "")),
        spec=spec_of(program),
        fields=tuple(fields),
        states=tuple(states),
        constants=tuple(constants),
        parameters=tuple(ParameterEntry.of(d) for d in program.declared("param")),
        targets={low.target.name: _target(low, resources.get(low.target.name, {})) for low in lowered},
        cap=page.cap_of(program),
        shortlist=page.shortlist_of(program),
        toolchain={name: v for name, v in about["versions"].items() if v},
        provenance={
            "argv": list(about["argv"]),
            "sources": dict(about.get("sources", {})),
            **as_json(resumptions(about)),
        },
    )
    return manifest, files


def require_whole(program: Module) -> None:
    """Refuse a program that a decoder cannot run: each of its calls launches a kernel.

    Raises:
        VortexError: VX2008.
    """
    launched = {KINDS[str(f.attrs["kind"])].call for f in program.functions.values()}
    if missing := [call for call in CALLS if call not in launched]:
        why = f"program @{program.name} has no kernel for {', '.join(missing)}"
        raise IR_STRUCTURE.at(why=f"{why}; an artifact has one for each of {', '.join(CALLS)}")


_PER = {layout: per for per, layout in page.STATE_LAYOUTS.items()}


def spec_of(module: Module) -> Spec:
    """The model shape a module was traced for; VX2008 when it does not say."""
    missing = [n for n in REQUIRED if n not in module.attrs]
    if missing:
        raise IR_STRUCTURE.at(why=f"module @{module.name} does not say its {', '.join(missing)}")
    return Spec.of_attrs(module.attrs)


def _tensor(module: Module, name: str) -> TensorType:
    found = module.decls[name].type
    assert isinstance(found, TensorType), f"@{name} is not a tensor"
    return found


def _target(low: Lowered, resources: Mapping[str, Mapping[str, object]]) -> TargetEntry:
    kernels = [
        KernelEntry(
            k.name, k.kind, k.symbol, tuple(k.args), k.page_words, k.row_words, k.schedule, k.digest,
            resources.get(k.symbol, {}),
        )
        for k in low.kernels.values()
    ]  # fmt: skip
    library = f"lib.{low.target.name}.so"
    if low.target.kind != "cpu":
        return TargetEntry(library, tuple(kernels))
    mcpu = detect_mcpu()
    return TargetEntry(library, tuple(kernels), mcpu, machine(), required_features(mcpu))
