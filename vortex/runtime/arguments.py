"""The arguments of a decoder's calls as kernels take them. They are checked once for each kind of them that a step
sees: ``Step.seen`` has the signature of the last.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vortex.errors import CAPACITY
from vortex.runtime.calls import Signature, signature
from vortex.runtime.library import Library
from vortex.runtime.planned import Planned, Selection
from vortex.runtime.shapes import check_queries, compiled_for, parts
from vortex.runtime.steps import Step
from vortex.runtime.tensors import ALIGNMENT, TORCH, require, require_aligned, require_number, wrong

NewTokens = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor]
"""K, V, where they are stored, and whose they are: the arguments of :meth:`Decoder.append`."""


class CallArguments:
    """Those of calls for layers of ``heads`` KV heads on ``device``, and what stands for arguments that are not given.

    Attributes:
        nothing_new: the new tokens of a step that adds none, as ``select`` takes them.
    """

    def __init__(self, library: Library, heads: int, device: torch.device | None) -> None:
        self._spec = spec = library.manifest.spec
        self._heads, self._device = heads, device
        self._dtype = TORCH[spec.dtype]
        self._aligned = library.name != "cpu"  # kernels that move 16 bytes at a time
        self._scale = spec.head_dim**-0.5
        self._no_lse = torch.empty(0, heads * spec.group, dtype=torch.float32, device=device)
        self._no_tokens = torch.empty(0, heads, spec.head_dim, dtype=self._dtype, device=device)
        self._no_loc = torch.empty(0, dtype=torch.int64, device=device)
        self.nothing_new: dict[str, object] = {f"{name}_new": self._no_tokens for name in spec.pools}
        self.nothing_new |= {"loc": self._no_loc, "row_offsets": torch.zeros(1, dtype=torch.int32, device=device)}

    def of_append(self, planned: Planned, appended: NewTokens) -> dict[str, object]:
        """The arguments of ``append``; VX6001, VX6002."""
        k, v, loc, row_offsets = appended
        spec, step = self._spec, planned.step
        stored = k is None
        if (v is None) != stored and not (v is None and spec.kv_lora_rank):
            raise wrong("append", "has one of k and v; both or neither are needed")
        if k is None:
            new = dict.fromkeys(spec.pools, self._no_tokens)
            loc = self._no_loc if loc is None else loc
        elif loc is None:
            raise wrong("append", "has tokens but no loc")
        else:
            new = parts(spec, "append", k, v)
        kind: Signature = (stored, *signature(loc, "loc"), *signature(row_offsets, "row_offsets"))
        for name, tokens in new.items():
            kind += signature(tokens, name)
        if step.seen.get("append") != kind:
            shape: tuple[int | str, ...] = ("T", self._heads, spec.head_dim)
            for name, tokens in new.items():
                compiled_for(spec, name, tokens, 3)
                shape = tuple(require(name, tokens, self._dtype, shape, self._device).shape)
            require("loc", loc, torch.int64, ("T",) if stored else shape[:1], self._device)
            require("row_offsets", row_offsets, torch.int32, (step.size.batch + 1,), self._device)
            step.seen["append"] = kind
        given = self.nothing_new  # numpy's empty arrays have strides of 0, which launchers refuse
        if loc.shape[0]:
            given = {"loc": loc, **{f"{name}_new": tokens for name, tokens in new.items()}}
        return {**given, "row_offsets": row_offsets, **planned.tables, **planned.state}

    def of_select(
        self, planned: Planned, q: torch.Tensor, pages: torch.Tensor, counts: torch.Tensor, new: Mapping[str, object]
    ) -> dict[str, object]:
        """The arguments of ``select``, whose launch takes in the tokens of ``new``; VX6001, VX6002, VX6006."""
        step = planned.step
        kind = (*signature(q, "q"), *signature(pages, "pages"), *signature(counts, "counts"))
        if step.seen.get("select") != kind:
            self._check_queries(step, q)
            self._check_selection(step, pages, counts)
            if pages.shape[2] < step.size.capacity:
                raise CAPACITY.at(need=step.size.capacity, capacity=pages.shape[2])
            step.seen["select"] = kind
        return {**new, "q": q, "pages": pages, "counts": counts, **planned.state, **planned.tables}

    def check_attend(
        self,
        step: Step,
        q: torch.Tensor,
        selection: Selection | None,
        out: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """VX6001, VX6002 for arguments of ``attend`` to a selection, or to all pages."""
        kind = signature(q, "q")
        if selection is not None:
            kind += (*signature(selection[0], "pages"), *signature(selection[1], "counts"))
        kind += signature(out, "out")
        if lse is not None:
            kind += signature(lse, "lse")
        call = "attend_all" if selection is None else "attend"
        if step.seen.get(call) == kind:
            return
        if selection is not None:
            self._check_selection(step, *selection)
        self._check_queries(step, q)
        require("out", out, self._dtype, (*q.shape[:2], self._spec.v_dim), self._device)
        if lse is not None:
            require("lse", lse, torch.float32, tuple(q.shape[:2]), self._device)
        step.seen[call] = kind

    def of_attend(
        self, planned: Planned, q: torch.Tensor, out: torch.Tensor, lse: torch.Tensor | None, scale: float | None
    ) -> dict[str, object]:
        """The arguments of ``attend``, once they are checked, but for the selection; VX6002."""
        if scale is None and self._spec.kv_lora_rank:
            why = "is not given; under MLA it is the model's 1/sqrt(qk_nope_head_dim + qk_rope_head_dim)"
            raise wrong("scale", why)
        # not in the signatures: an address changes with every view of one buffer
        if self._aligned and (q.data_ptr() | out.data_ptr()) % ALIGNMENT:
            require_aligned("q", q)
            require_aligned("out", out)
        return {
            "q": q, "out": out, "lse": self._no_lse if lse is None else lse,
            "scale": self._scale if scale is None else require_number("scale", scale),
            **planned.tables,
        }  # fmt: skip

    def _check_queries(self, step: Step, q: torch.Tensor) -> None:
        check_queries(self._spec, q, step.size.batch, self._heads, self._device)

    def _check_selection(self, step: Step, pages: torch.Tensor, counts: torch.Tensor) -> None:
        require("pages", pages, torch.int32, (step.size.batch, self._heads, "K"), self._device)
        require("counts", counts, torch.int32, (step.size.batch, self._heads), self._device)
