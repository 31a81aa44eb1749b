"""A step as it is planned: its requests, the step of that size, and what its layers have selected so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from vortex.artifact.manifest import Manifest
from vortex.errors import NOT_READY, SHAPE_MISMATCH
from vortex.runtime.calls import Signature, signature
from vortex.runtime.reuse import Kept, mapped, paused, resumed
from vortex.runtime.room import Room
from vortex.runtime.steps import Step, Steps
from vortex.runtime.tensors import require, wrong

Selection = tuple[torch.Tensor, torch.Tensor]
"""Pages and counts."""


@dataclass(slots=True)
class Requests:
    """The requests of a step: the arguments of :meth:`Decoder.plan`."""

    lengths: torch.Tensor
    page_table: torch.Tensor
    slots: torch.Tensor | None
    fresh: torch.Tensor | None
    budgets: torch.Tensor | None

    @property
    def kind(self) -> Signature:
        """All that their checks depend on; VX6002 for what is no tensor."""
        kind = (*signature(self.lengths, "lengths"), *signature(self.page_table, "page_table"))
        for name, given in (("slots", self.slots), ("fresh", self.fresh), ("budgets", self.budgets)):
            kind += (None,) if given is None else signature(given, name)
        return kind

    def check(self, manifest: Manifest, room: Room, device: torch.device | None, *, by_request: bool) -> None:
        """VX6001, VX6002 where they are not as :meth:`Decoder.plan` says; ``by_request`` tells whether they may have
        budgets of their own.
        """
        require("lengths", self.lengths, torch.int32, ("B",), device)
        batch = int(self.lengths.shape[0])
        require("page_table", self.page_table, torch.int32, (batch, "Pmax"), device)
        for name, given in (("slots", self.slots), ("fresh", self.fresh)):
            if given is not None:
                require(name, given, torch.int32, (batch,), device)
        if self.budgets is not None:
            if not by_request:
                want = "one budget for all requests"
                raise SHAPE_MISMATCH.at(what="budgets", got="one for each request", want=want, flag="--request-budgets")
            require("budgets", self.budgets, torch.int32, (batch, 5), device)
        columns = int(self.page_table.shape[1])
        if manifest.states:
            self._check_state(manifest, room, columns)
        if columns < 1:
            raise wrong("page_table", "has no columns; at least 1 is needed")

    def _check_state(self, manifest: Manifest, room: Room, columns: int) -> None:
        """VX6002 where a step of ``columns`` pages cannot find its state."""
        if self.slots is None:
            names = ", ".join(s.name for s in manifest.states)
            why = f"are not given; flow '{manifest.flow}' has state ({names}), which is found by them: "
            raise wrong("slots", why + "plan(lengths, page_table, slots), i32 [B]")
        if columns > room.columns:
            why = f"has {columns} columns; the state that was bound has room for {room.columns} pages a request"
            raise wrong("page_table", why)


@dataclass(slots=True)
class Planned:
    """The step that :meth:`Decoder.plan` began."""

    steps: Steps
    step: Step
    """Of that size."""
    requests: Requests
    tables: Mapping[str, object]
    """Lengths and page table, as all kernels take them."""
    state: Mapping[str, object]
    """Where state is and whose is new, as kernels of flows with state take it; nothing where there is none."""
    budgets: torch.Tensor
    """Those of requests' own, as the kernel of ``plan`` takes them."""
    selected: dict[int, Selection] = field(default_factory=dict)
    """What layers decoded with in this step."""

    @classmethod
    def of(cls, steps: Steps, step: Step, requests: Requests) -> Planned:
        """Nothing is selected yet."""
        state: dict[str, object] = {}
        if steps.library.manifest.states:
            state = {"slots": requests.slots, "fresh": step.not_fresh if requests.fresh is None else requests.fresh}
        tables = {"lengths": requests.lengths, "page_table": requests.page_table}
        own = step.none_own if requests.budgets is None else requests.budgets
        return cls(steps, step, requests, tables, state, own)

    def place_of(self, layer: int, every: int) -> tuple[Selection, Kept | None]:
        """Where the selection of ``layer`` goes, and what is kept of it for other steps, if it is; VX6003 where it is
        to stand for ``every`` steps and cannot.
        """
        kept = self.step.kept.get(layer)
        if every > 1 and (kept is None or self.requests.slots is None):
            needs = f"load(..., keep=[{layer}])" if kept is None else "plan(..., slots=)"
            raise NOT_READY.at(call=f"decode of layer {layer} with every={every}", needs=needs)
        if kept is not None:
            return (kept.pages, kept.counts), kept
        for other in self.selected.keys() - self.step.kept.keys():
            del self.selected[other]  # all layers that are not kept select into the same tensors
        return (self.step.pages, self.step.counts), None

    def select_if_due(self, kept: Kept, every: int, select: Callable[[], None]) -> None:
        """``select`` where what is kept does not stand for this step, and let it stand for it; on a GPU ``select`` is
        launched anyway, for the tokens that it takes in.
        """
        assert self.requests.slots is not None
        holds = kept.holds(self.requests.slots, self.requests.lengths, every)
        work = self.step.shared.get("work")
        if work is None:  # kernels of a CPU, which has the number at hand
            if not bool(holds):
                select()
        else:
            saved = self.step.shared["kept.items"]
            paused(work, saved, holds)
            select()
            resumed(work, saved)
        recent = self.step.shared["budget"][2]
        if self.steps.by_request:
            recent = torch.where(self.budgets[:, 0] >= 0, self.budgets[:, 2], recent)[:, None, None]
        kept.move(self.step.shared["plan"], recent)

    def pages_of(self, layer: int, source: int, heads: torch.Tensor | None) -> Selection:
        """For ``layer``, the selection of layer ``source`` in this step, with heads exchanged where asked for; VX6002,
        VX6003 where there is none.
        """
        found = self.selected.get(source)
        if found is None or (heads is not None and source not in self.step.kept):
            after = ", for another layer has selected since or heads are exchanged" if found is None else ""
            needs = f"decode of layer {source} in this step, and load(..., keep=[{source}]){after}"
            raise NOT_READY.at(call=f"decode of layer {layer} with pages_of={source}", needs=needs)
        if heads is None:
            return found
        kind = signature(heads, "heads")
        if self.step.seen.get("heads") != kind:
            require("heads", heads, torch.int64, (self.steps.heads,), self.steps.device)
            self.step.seen["heads"] = kind
        mapped(dict(zip(("pages", "counts"), found, strict=True)), heads, self.step.mapped)
        return self.step.mapped["pages"], self.step.mapped["counts"]
