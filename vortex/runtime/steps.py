"""Steps of a decoder as they are prepared: one for each size, with its scratch and its calls; and what CUDA graphs pin.

Whatever a graph has captured must stay: the addresses of scratch, and room in its selections for the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from vortex.artifact.manifest import KernelEntry
from vortex.budget import Budget
from vortex.errors import CAPACITY, NO_CAPTURE, NOT_READY, SHAPE_MISMATCH, SHORT_OF_PAGES, warn
from vortex.kinds.kind import KINDS
from vortex.runtime.calls import Call, Signature
from vortex.runtime.library import Library
from vortex.runtime.reuse import Kept
from vortex.runtime.scratch import Items, Layout, Scratch, Size, require_block
from vortex.runtime.tensors import require_integer, wrong
from vortex.runtime.variants import Variants

KEPT = 64
"""Sizes of steps that are kept ready."""
MOST_REQUESTS = 4096
"""Of one step, where plan makes work lists."""


@dataclass(slots=True)
class Step:
    """What the size of a step settles; ``calls`` and ``seen`` fill as the layers come."""

    size: Size
    shared: Mapping[str, torch.Tensor]
    """Arguments that all layers share, by name."""
    dense: Mapping[str, torch.Tensor]
    """Those of them that are others where all pages are attended to."""
    pages: torch.Tensor
    counts: torch.Tensor
    not_fresh: torch.Tensor
    """Zeros ``[B]``: no request begins in its slot but with its own first token."""
    none_own: torch.Tensor
    """i32 ``[B, 5]``: no request has a budget of its own, where kernels know such."""
    kernels: tuple[KernelEntry, ...]
    """Those that serve this size, in launch order."""
    kept: Mapping[int, Kept]
    """Selections that outlast a call, by layer."""
    mapped: Mapping[str, torch.Tensor]
    """Where a selection with heads exchanged goes: pages and counts."""
    calls: dict[tuple[str, int], list[Call]] = field(default_factory=dict)
    seen: dict[str, Signature] = field(default_factory=dict)
    """Signature of the last checked arguments, by method."""


class Steps:
    """All steps of a decoder: what it was given once, its scratch, and the steps that are ready."""

    def __init__(
        self,
        library: Library,
        budget: Budget | None,
        *,
        dense: bool,
        head_offset: int = 0,
        keep: tuple[int, ...] = (),
        deterministic: bool = False,
        largest: Budget | None = None,
    ) -> None:
        self.library, self.dense, self.keep, self._deterministic = library, dense, keep, deterministic
        self._head_offset = head_offset
        self._by_row = any("row_budget" in k.args for k in library.target.kernels)
        self._row_budgets: dict[int, torch.Tensor] = {}  # layer -> pages of each head
        self.layers: dict[int, dict[str, object]] = {}  # layer -> its arguments by name
        self.heads = 0
        self.device: torch.device | None = None
        self.by_request = any("request_budget" in k.args for k in library.target.kernels)
        if largest is not None and not self.by_request:
            want = "one budget for all requests"
            raise SHAPE_MISMATCH.at(what="largest", got="a budget of requests", want=want, flag="--request-budgets")
        self._largest = None if largest is None else require_budget(largest)
        self.budget = None if budget is None else require_budget(budget)
        if budget is not None:
            self._require_rows(budget)
            _warn_of_shortlist(library, budget)
        self._constants: dict[str, object] = {}
        self._ready: dict[Signature, Step] = {}
        self._block: torch.Tensor | None = None
        self._scratch: Scratch | None = None
        self._machine = library.device
        self._variants = Variants.of(library.target.kernels, choose=not deterministic)
        self._watched = self._machine.kind != "cpu" or library.runs_on is not None  # may be captured
        self._captured: dict[int, int] = {}  # columns -> fewest pages that a captured selection holds

    def capacity(self, budget: Budget, columns: int) -> int:
        """The most pages that the artifact's flow selects of ``columns`` by a budget, at least 1."""
        return max(1, min(columns, self.library.manifest.cap.total(budget, columns)))

    def most(self, columns: int) -> int:
        """The most pages of ``columns`` that a request's selection holds, by the budget or the largest of its own."""
        return max(self.capacity(b, columns) for b in (self.budget, self._largest) if b is not None)

    @property
    def capturing(self) -> bool:
        """Whether a CUDA graph is being captured."""
        return self._watched and self._machine.capturing()

    def bind(self, layer: int, arguments: dict[str, object], device: torch.device, heads: int) -> None:
        """Keep the arguments of a layer; all layers have one device and number of heads."""
        if heads != self.heads:
            self._drop("bind")
        if device != self.device:
            self._constants = {f"const.{name}": x.to(device) for name, x in self.library.constants.items()}
        if self._by_row:
            # graphs hold its address: a layer that is bound again keeps it
            held = self._row_budgets.get(layer)
            if held is None or held.shape[0] != heads or held.device != device:
                with torch.inference_mode(False):
                    held = self._row_budgets[layer] = torch.zeros(heads, dtype=torch.int32, device=device)
            arguments["row_budget"] = held
            if self.budget is not None:
                self._write_rows(layer, self.budget, heads)
        self.layers[layer] = arguments
        self.device, self.heads = device, heads
        self._ready.clear()

    def set_budget(self, budget: Budget) -> None:
        """New numbers for the plans after this one; VX6002, VX6006 and VX6011 as ``Decoder.budget`` says."""
        require_budget(budget)
        if self.capturing:
            raise NO_CAPTURE.at(what="the budget was set", why="its numbers come from the host")
        self._require_rows(budget)
        for columns, held in self._captured.items():
            if (need := self.capacity(budget, columns)) > held:
                raise CAPACITY.at(need=need, capacity=held).note("a captured CUDA graph has that selection")
        if self._scratch is not None:
            self._scratch.write_budget(budget.numbers())
            self._scratch.forget()
        for layer in self._row_budgets:
            self._write_rows(layer, budget, self.heads)
        self.budget = budget
        self._ready.clear()

    def _require_rows(self, budget: Budget) -> None:
        """VX6001 for a table where the kernels have one budget for all rows; VX1020 where it lacks a bound row."""
        if budget.table and not self._by_row:
            want = "one number of pages for all rows"
            raise SHAPE_MISMATCH.at(what="the budget", got="a table by layer", want=want, flag="--budget-table")
        for layer in self._row_budgets:
            budget.of(layer, self._head_offset + self.heads - 1)

    @torch.inference_mode(False)
    def _write_rows(self, layer: int, budget: Budget, heads: int) -> None:
        own = [budget.row(layer, self._head_offset + h) for h in range(heads)]
        self._row_budgets[layer].copy_(torch.tensor(own, dtype=torch.int32))

    def set_block(self, block: torch.Tensor | None) -> None:
        """The caller's memory for scratch, or None; VX6002, VX6010."""
        if block is not None:
            require_block(block, self.device or block.device)
        self._drop("set_workspace")
        self._block = block

    def forget(self) -> None:
        """Kept selections stand for no step from here on."""
        if self._scratch is not None:
            self._scratch.forget()

    def size(self, batch: int, columns: int, room: int | None = None) -> Size:
        """Of a step by the budget, for ``columns`` of the page table; ``room`` for pages beyond what it keeps.

        VX6002 for what is no integer.
        """
        assert self.budget is not None
        batch, columns = require_integer("batch", batch), require_integer("columns", columns, 1)
        columns *= self.library.manifest.spec.page_blocks
        room = None if room is None else require_integer("capacity", room)
        return Size(batch, columns, max(self.most(columns), min(columns, room or 0)))

    def scratch(self, call: str) -> Scratch:
        """The scratch, once layers and budget are known; VX6003 before."""
        if self.device is None:
            raise NOT_READY.at(call=call, needs="bind")
        if self.budget is None:
            raise NOT_READY.at(call=call, needs="a budget (load(..., budget=) or decoder.budget)")
        if self._scratch is None:
            sms = self._machine.multiprocessors(self.device)
            kernels, blocks = self.library.target.kernels, self.library.manifest.spec.page_blocks
            items = Items.of(kernels, self.library.manifest.spec.block_size) if self._deterministic else None
            layout = Layout.of(
                kernels, self.heads, sms, dense=self.dense, page_blocks=blocks, keep=self.keep, items=items
            )
            block = None if self._block is None else require_block(self._block, self.device)
            self._scratch = Scratch(layout, self.device, block)
        return self._scratch

    def reserve(self, size: Size) -> Scratch:
        """Scratch with room for ``size``; VX6002, VX6010 as ``Scratch.reserve`` says."""
        scratch = self.scratch("reserve")
        assert self.budget is not None
        if scratch.reserve(size, self.budget.numbers(), capturing=self.capturing):
            self._ready.clear()
        return scratch

    def ready(self, kind: Signature) -> Step | None:
        """The step that was prepared for arguments of this signature."""
        return self._ready.get(kind)

    def prepare(self, kind: Signature, size: Size) -> Step:
        """A step of ``size``, to be found by ``kind``; raises as :meth:`reserve`, VX6002 for too many requests."""
        if self.scratch("plan").layout.planned and size.batch > MOST_REQUESTS:
            raise wrong("lengths", f"has {size.batch} requests; kernels of a GPU plan up to {MOST_REQUESTS}")
        scratch = self.reserve(size)
        # a selection has all the room there is, for budgets to come
        assert self.budget is not None
        kept = self.capacity(self.budget, size.columns)  # of most requests: few have larger budgets of their own
        kernels = self._variants.pick(size.batch * self.heads, size.columns, kept)
        views = dict(scratch.views(replace(size, capacity=scratch.most.capacity), kernels))
        dense = {name[6:]: views.pop(name) for name in list(views) if name.startswith("dense.")}
        if len(self._ready) >= KEPT:
            self._ready.clear()
        kept_of = {layer: Kept.of(views, layer) for layer in self.keep}
        mapped = {name[7:]: views.pop(name) for name in list(views) if name.startswith("mapped.")}
        none = torch.zeros(size.batch if self.library.manifest.states else 0, dtype=torch.int32, device=self.device)
        pages, counts, own = views.pop("pages"), views.pop("counts"), views.pop("request_budget", none)
        if self.by_request:
            dense["request_budget"] = own
        made = self._ready[kind] = Step(size, views, dense, pages, counts, none, own, kernels, kept_of, mapped)
        return made

    def run(self, step: Step, call: str, layer: int, given: Mapping[str, object], *, dense: bool = False) -> None:
        """Launch the kernels of one call of the decoder, or those of the kind ``call`` that belongs to none; ``given``
        holds the arguments that differ from call to call.
        """
        if step.size.batch == 0:
            return
        calls = step.calls.get((f"dense {call}" if dense else call, layer))
        if calls is None:
            calls = self._prepare_calls(step, call, layer, dense=dense)
        if self._watched and self._machine.capturing():
            self._note_capture(step, given)
        for each in calls:
            each.run(given)

    def _prepare_calls(self, step: Step, call: str, layer: int, *, dense: bool) -> list[Call]:
        known = {**step.shared, **self._constants, **self.layers.get(layer, {}), **(step.dense if dense else {})}
        functions = self.library.functions
        kernels = [k for k in step.kernels if (KINDS[k.kind].call or k.kind) == call]
        calls = [Call(k, layer, functions[k.symbol], known) for k in kernels]
        step.calls[f"dense {call}" if dense else call, layer] = calls
        return calls

    def _note_capture(self, step: Step, given: Mapping[str, object]) -> None:
        assert self._scratch is not None
        self._scratch.fixed = True
        pages = given.get("pages")
        if isinstance(pages, torch.Tensor):
            columns, held = step.size.columns, int(pages.shape[2])
            self._captured[columns] = min(held, self._captured.get(columns, held))

    def _drop(self, call: str) -> None:
        """Forget the scratch, for other; VX6010 when a graph uses it."""
        if self._scratch is not None:
            self._scratch.require_free(call, capturing=self.capturing)
        self._scratch = None
        self._ready.clear()


def _warn_of_shortlist(library: Library, budget: Budget) -> None:
    """VX6013 where the flow's shortlist has fewer pages than the budget scores."""
    manifest = library.manifest
    if 0 < manifest.shortlist < budget.pages:
        warn(SHORT_OF_PAGES.at(flow=manifest.flow, pages=budget.pages, listed=manifest.shortlist))


def require_budget(budget: object) -> Budget:
    """``budget`` when it is one; VX6002."""
    if not isinstance(budget, Budget):
        raise wrong("budget", f"is {budget!r}; a vortex.Budget is needed, as in Budget(pages=61)")
    return budget
