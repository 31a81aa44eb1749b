"""The numbers of a flow's parameters: checked against the artifact, dealt out to layers and heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vortex.artifact.manifest import LEADING, ParameterEntry, expected
from vortex.errors import WRONG_PARAMETERS, VortexError, nearest
from vortex.runtime.safetensors import read_safetensors
from vortex.runtime.tensors import TORCH, as_kernel_sees, short

if TYPE_CHECKING:
    from vortex.ir.core import Module

Given = str | Path | Mapping[str, torch.Tensor]
"""A file of safetensors, or the tensors themselves."""


class Parameters:
    """All sets of all parameters, as they were given; decoders of one model may share one object.

    Raises:
        VortexError: VX6020 for a tensor that is missing, surplus, or of another type or shape than the flow's; VX7002
            for a file that cannot be read.
    """

    def __init__(self, flow: str, entries: Sequence[ParameterEntry], given: Given | None) -> None:
        self.flow, self.entries = flow, tuple(entries)
        named = isinstance(given, str | Path)
        self.where = f"'{given}'" if named else "parameters"
        tensors = read_safetensors(given) if isinstance(given, str | Path) else dict(given or {})
        if given is None and entries:
            which = ", ".join(f"{e.name}: {expected(e)}" for e in entries)
            why = f"none are given, and flow '{flow}' has {which}"
            raise self._wrong(why, 'load(..., parameters="file.safetensors"), or a mapping of names to tensors')
        known = {e.name for e in entries}
        if missing := [e for e in entries if e.name not in tensors]:
            first = missing[0]
            why = f"there is no tensor '{first.name}' ({expected(first)}){nearest(first.name, tensors.keys() - known)}"
            raise self._wrong(why, self._model())
        if surplus := sorted(tensors.keys() - known):
            why = f"tensor '{surplus[0]}' is none of flow '{flow}'{nearest(surplus[0], known)}"
            raise self._wrong(
                why, f"it has {', '.join(sorted(known)) or 'no parameters'}; leave others out of the file"
            )
        for e in entries:
            self._check(e, tensors[e.name])
        self.tensors = {e.name: tensors[e.name] for e in entries}
        self._made: dict[tuple[str, int, int, int, torch.device], torch.Tensor] = {}
        self._heads()

    @classmethod
    def of_program(cls, program: Module, given: Given | None) -> Parameters:
        """For a flow that runs eagerly: what a decoder of its kernels would take, and nothing else."""
        return cls(program.name, [ParameterEntry.of(d) for d in program.declared("param")], given)

    def _check(self, e: ParameterEntry, x: object) -> None:
        if not isinstance(x, torch.Tensor):
            raise self._wrong(f"'{e.name}' is {type(x).__name__}", f"a tensor {expected(e)} is needed")
        if x.dtype != TORCH[e.dtype]:
            why = f"'{e.name}' is {short(x.dtype)}; {e.dtype} is needed"
            raise self._wrong(why, f"store it as {str(TORCH[e.dtype]).removeprefix('torch.')}: x.to(...) before saving")
        leading = len(LEADING[e.per])
        if x.dim() != leading + len(e.shape) or tuple(x.shape[leading:]) != e.shape or 0 in x.shape:
            why = f"'{e.name}' has shape {list(x.shape)}; {expected(e)} is needed"
            raise self._wrong(why, self._model())

    def _heads(self) -> None:
        """All parameters are of one model: the same numbers of layers and heads."""
        seen: dict[str, tuple[str, int]] = {}
        for e in self.entries:
            for axis, n in zip(LEADING[e.per], self.tensors[e.name].shape, strict=False):
                other, m = seen.setdefault(axis, (e.name, n))
                if m != n:
                    why = f"'{e.name}' has {n} {axis} and '{other}' has {m}"
                    raise self._wrong(why, self._model())

    def of(self, layer: int, head_offset: int, heads: int, device: torch.device) -> dict[str, torch.Tensor]:
        """The arguments of a layer's kernels: for each KV head its own set where there is one.

        Raises:
            VortexError: VX6020 for a layer or heads beyond those that were given.
        """
        return {f"param.{e.name}": self._set(e, layer, head_offset, heads, device) for e in self.entries}

    def _set(self, e: ParameterEntry, layer: int, head_offset: int, heads: int, device: torch.device) -> torch.Tensor:
        x = self.tensors[e.name]
        if e.per != "model" and layer >= x.shape[0]:
            raise self._wrong(f"'{e.name}' has {x.shape[0]} layers, and layer {layer} is bound", self._model())
        if e.per == "head" and head_offset + heads > x.shape[1]:
            which = f"heads {head_offset} to {head_offset + heads - 1} are bound"
            raise self._wrong(f"'{e.name}' has {x.shape[1]} KV heads, and {which}", self._model())
        key = (e.name, -1 if e.per == "model" else layer, head_offset, heads, device)
        if key not in self._made:
            mine = {"model": lambda: x, "layer": lambda: x[layer]}.get(
                e.per, lambda: x[layer, head_offset : head_offset + heads]
            )()
            self._made[key] = as_kernel_sees(mine.to(device).contiguous())
        return self._made[key]

    def _model(self) -> str:
        return f"the tensors are of another model or flow than this; train them for flow '{self.flow}' and this model"

    def _wrong(self, why: str, hint: str) -> VortexError:
        return WRONG_PARAMETERS.at(where=self.where, why=why, hint=hint)
