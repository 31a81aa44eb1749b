"""Decoding steps of a compiled flow, over tensors that the caller owns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from vortex.artifact.manifest import FieldEntry, StateEntry
from vortex.budget import Budget
from vortex.errors import NO_CAPTURE, NOT_READY
from vortex.runtime.arguments import CallArguments
from vortex.runtime.arguments import NewTokens as NewTokens
from vortex.runtime.calls import signature
from vortex.runtime.checks import (
    check_budgets,
    check_one_each,
    check_selection,
    check_slots,
    check_tables,
    check_tokens,
)
from vortex.runtime.library import Library, open_library
from vortex.runtime.parameters import Given, Parameters
from vortex.runtime.planned import Planned, Requests, Selection
from vortex.runtime.room import Room
from vortex.runtime.shapes import check_fields, check_given, check_pools, check_scales, check_states, parts
from vortex.runtime.steps import Steps
from vortex.runtime.tensors import as_kernel_sees, require_integer, whole, wrong


def load(
    path: str | Path,
    *,
    target: str | None = None,
    budget: Budget | None = None,
    debug: bool = False,
    dense: bool = False,
    require_digest: str | None = None,
    parameters: Given | Parameters | None = None,
    head_offset: int = 0,
    keep: Iterable[int] = (),
    deterministic: bool = False,
    largest: Budget | None = None,
) -> Decoder:
    """A decoder on an artifact's library of one target; loading runs its code.

    Args:
        path: the ``.vxa`` folder.
        target: ``cpu``, ``sm_90a``, ...; left out or ``auto``, the current CUDA device's if the artifact has it, else
            ``cpu``.
        budget: how many pages a row may read; :attr:`Decoder.budget` sets it later.
        debug: look at the numbers in lengths, page tables, slots and selections, and refuse those that lie outside.
            This waits for the device.
        dense: prepare :meth:`Decoder.attend_all` in each plan, for layers that attend to everything.
        require_digest: refuse an artifact whose digest (``vortex info`` shows it) is another.
        parameters: the weights of a flow that has some: a file of safetensors, tensors by name, or the
            :class:`~vortex.runtime.parameters.Parameters` of another decoder of the same flow.
        head_offset: the KV heads of the model that come before those of the pools, under tensor parallelism.
        keep: the layers whose selections other layers and later steps may take: ``pages_of=`` and ``every=`` of
            :meth:`Decoder.decode`.
        deterministic: give a request the same bits in any batch; on a GPU a layer then takes longer.
        largest: the largest budget that a request may have of its own (``budgets=`` of :meth:`Decoder.plan`):
            selections have room for it.

    Raises:
        VortexError: VX5001 to VX5005 and VX6009, as :func:`vortex.runtime.library.open_library` says; VX6020 for
            parameters of another flow or model, and VX7002 for a file that cannot be read.
    """
    library = open_library(path, target, require_digest)
    return Decoder(
        library,
        budget=budget,
        debug=debug,
        dense=dense,
        parameters=parameters,
        head_offset=head_offset,
        keep=keep,
        deterministic=deterministic,
        largest=largest,
    )


class Decoder:
    """The kernels of one artifact, called step by step; :func:`load` makes one, and explains the arguments.

    Once: :meth:`bind` each layer. Each step: :meth:`plan`, then for each layer :meth:`append` and :meth:`decode` (or
    :meth:`select` and :meth:`attend`), or :meth:`decode` with the new tokens. Sizes below: B requests,
    Hq = Hkv * group query heads, D head dim, P pages in the pool, Pmax columns of the page table, T new tokens,
    K capacity of a selection.

    Tensors given to :meth:`bind` and :meth:`plan` are kept, not copied: the caller may write new numbers into
    them. After the first step of a size nothing is allocated. One decoder serves one thread at a time, and its
    steps follow one another: the scratch of a step is the next one's, and nothing is locked. Threads that decode at
    once need a decoder each; those may share an artifact and pools. A process that was forked may go on with a
    decoder of the CPU, whose kernels then run in one thread; on a GPU it may not, as with torch.

    On a GPU kernels run in torch's current stream, and no call waits for the device. In a CUDA graph: first
    :meth:`reserve` the largest step, then capture any sizes; lengths, page tables and the budget may change between
    replays. ``debug`` looks at numbers, which waits for the device and cannot be captured; ``dense`` prepares
    :meth:`attend_all` in each plan. ``parameters`` has the weights of the flow (VX6020 when they do not fit it);
    :class:`~vortex.runtime.parameters.Parameters` may be shared by decoders. ``head_offset`` is how many KV heads of
    the model come before those of the pools, under tensor parallelism: ``vortex.head()`` counts from there. The
    selections of the layers in ``keep`` outlast the call that makes them: :meth:`decode` says for whom.

    Which pages are selected depends on no other request of a step. An output may differ in its last bits, though, with
    what else is decoded: a GPU cuts the pages of a request into items by the size of the step, and a step takes the
    variants of kernels that are best for its size. With ``deterministic`` items have a fixed number of pages and no
    variants run, so that a request has the same bits alone, in any batch, in a CUDA graph and out of one.

    Where an artifact was compiled with ``--request-budgets``, :meth:`plan` may be given a budget for each request.
    ``largest`` is one that keeps at least as many pages as any of them: selections have room for it
    (:data:`vortex.budget.EVERY_PAGE` for all pages). Scratch for it is all that it costs where no request asks for it.

    Attributes:
        pages, counts: what the last :meth:`decode` selected, unless it was given tensors of the caller's.
    """

    def __init__(
        self,
        library: Library,
        *,
        budget: Budget | None = None,
        debug: bool = False,
        dense: bool = False,
        parameters: Given | Parameters | None = None,
        head_offset: int = 0,
        keep: Iterable[int] = (),
        deterministic: bool = False,
        largest: Budget | None = None,
    ) -> None:
        self.library, self.debug = library, debug
        self.spec = library.manifest.spec
        self.head_offset = require_integer("head_offset", head_offset)
        self.keep = tuple(sorted({require_integer("keep", layer) for layer in keep}))
        if not isinstance(parameters, Parameters):
            parameters = Parameters(library.manifest.flow, library.manifest.parameters, parameters)
        self.parameters = parameters
        self.pages: torch.Tensor | None = None
        self.counts: torch.Tensor | None = None
        self._takes_in_tokens = library.takes_in_tokens
        self._steps = Steps(
            library,
            budget,
            dense=dense,
            head_offset=self.head_offset,
            keep=self.keep,
            deterministic=deterministic,
            largest=largest,
        )
        self._room = Room.of(library.manifest, {})
        self._arguments = CallArguments(library, 0, None)
        self._planned: Planned | None = None

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """VX6002: copies and pickles would share loaded code and scratch."""
        why = "cannot be copied or pickled: it holds loaded code and the scratch of its steps"
        raise wrong("a Decoder", f"{why}; vortex.load(path, require_digest=...) makes another of the same artifact")

    # --- what it is -----------------------------------------------------------------------------------------

    def _repr_html_(self) -> str:
        """How a notebook shows it: what it runs, with what budget, over which layers."""
        from vortex.notebook import frame

        manifest, b = self.library.manifest, self.budget
        budget = "none yet" if b is None else f"{b.pages} pages by score, the first {b.sink}, the last {b.recent}"
        ratio = f", or {b.ratio} of all" if b is not None and b.ratio else ""
        layers = f"{len(self._steps.layers)} bound, of {self.kv_heads} KV heads" if self.kv_heads else "none bound yet"
        facts = {"target": self.library.name, "budget": budget + ratio, "layers": layers, **manifest.facts()}
        return frame("decoder", manifest.flow, facts)

    @property
    def fields(self) -> tuple[FieldEntry, ...]:
        """The summaries to be bound: name, tile, storage type."""
        return self.library.manifest.fields

    @property
    def states(self) -> tuple[StateEntry, ...]:
        """The state to be bound: name, tile, storage type, and what it belongs to beside the request's slot."""
        return self.library.manifest.states

    def state_bytes(self, slots: int, columns: int, layers: int = 1) -> int:
        """Bytes of state of ``slots`` requests of up to ``columns`` pages over ``layers`` layers; VX6003 before
        :meth:`bind`, where the flow has state.
        """
        if self.states and not self.kv_heads:
            raise NOT_READY.at(call="state_bytes", needs="bind")
        return slots * layers * sum(s.bytes(self.kv_heads, columns) for s in self.states)

    @property
    def kv_heads(self) -> int:
        """Of every layer; 0 before :meth:`bind`."""
        return self._steps.heads

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels that the planned step runs, in launch order: of variants, those that serve its size.
        Steps that run the same kernels on the same numbers give the same bits.

        Raises:
            VortexError: VX6003 before :meth:`plan`.
        """
        if self._planned is None:
            raise NOT_READY.at(call="kernels", needs="plan")
        return tuple(k.name for k in self._planned.step.kernels)

    @property
    def budget(self) -> Budget | None:
        """How many pages a row may attend to; may be set between steps and takes effect at the next plan, those in
        captured graphs included. One with a table needs an artifact of ``--budget-table``. Setting it raises VX6002 for
        another type, VX6001 and VX1020 for a table that the artifact or a bound layer does not go with, VX6006 where a
        captured selection has no room for it, VX6011 while a graph is captured.
        """
        return self._steps.budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        self._steps.set_budget(budget)
        self._planned = None

    def capacity(self, columns: int) -> int:
        """The K that a selection over a page table of ``columns`` needs: the most pages kept of them, at least 1."""
        if self.budget is None:
            raise NOT_READY.at(call="capacity", needs="a budget")
        return self._steps.most(require_integer("columns", columns) * self.spec.page_blocks)

    def workspace_bytes(self, batch: int, columns: int, *, capacity: int | None = None) -> int:
        """Bytes of scratch for steps up to B = ``batch`` and Pmax = ``columns`` whose selections have up to
        ``capacity`` pages (those of the budget, unless given); VX6002 for what is no size, VX6003 before :meth:`bind`
        or without a budget.
        """
        return self._steps.scratch("workspace_bytes").bytes(self._steps.size(batch, columns, capacity))

    def reserve(self, batch: int, columns: int, *, capacity: int | None = None) -> None:
        """Make the scratch large enough for steps up to B = ``batch`` and Pmax = ``columns``. ``capacity`` leaves room
        for a larger budget later: pages of a selection, those of the budget unless given. Steps within these sizes
        then allocate nothing and find their scratch at the same addresses, whatever their own sizes are.

        Raises:
            VortexError: VX6002 for what is no size, or when a workspace of the caller's is too small, VX6003 before
                :meth:`bind` or without a budget, VX6010 when scratch would have to move under a CUDA graph.
        """
        self._steps.scratch("reserve")
        self._steps.reserve(self._steps.size(batch, columns, capacity))

    def set_workspace(self, workspace: torch.Tensor | None) -> None:
        """Use ``workspace``, a contiguous tensor of one axis that begins on a multiple of 16 bytes, as scratch; None
        for the decoder's own. Its contents are the decoder's until another is set.

        Raises:
            VortexError: VX6002 when it is no such tensor, at :meth:`plan` or :meth:`reserve` when it is too small;
                VX6010 when a captured CUDA graph uses the present one.
        """
        self._steps.set_block(workspace)
        self._planned = None

    # --- once -----------------------------------------------------------------------------------------------

    def bind(
        self,
        layer: int,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor | None,
        fields: Mapping[str, torch.Tensor] | None = None,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
        *,
        state: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Give ``layer`` its memory: pools ``[P, Hkv, page, D]`` with any strides but the last, which is 1 (an NHD
        pool comes as ``pool.transpose(1, 2)``), and every summary, ``[P, Hkv, *tile]``, contiguous (int4 and uint1
        as uint8 with the last axis in bytes, :attr:`FieldEntry.packed`). Under MLA
        ``k_pool`` is the pool of latent rows, ``[P, 1, page, D]``, and ``v_pool`` is None. A layer without ``fields``
        has :meth:`attend_all` and :meth:`attend` only; its engine stores K and V. A flow with state
        (:attr:`states`) has it in ``state``, contiguous: ``[slots, Hkv, columns, *tile]`` for state of pages, where
        ``columns`` are at least the page table's, and ``[slots, Hkv, *tile]`` for state of the request.

        Pools in fp8_e4m3 (as such, or uint8 of the same bits) hold multiples of ``k_scale`` and ``v_scale``: x is
        stored as x / scale. Under MLA ``k_scale`` is that of latent rows, and ``v_scale`` stays 1.

        Raises:
            VortexError: VX6001 for a page size, head dim or type that the artifact was not compiled for, VX6002 for
                anything else, VX6009 on a GPU that the library is not for, VX6020 for a layer or heads that the
                parameters do not have.
        """
        number = whole(layer)
        if number is None or not 0 <= number < 2**31:
            raise wrong("layer", f"is {layer!r}; an integer of at least 0 is needed")
        layer = number
        pools = parts(self.spec, "bind", k_pool, v_pool)
        device, pages, heads = check_pools(self.library, pools, self._steps.device)
        others = [n for n in self._steps.layers if n != layer]
        if others and heads != self.kv_heads:
            raise wrong(f"layer {layer}", f"has {heads} KV heads; layer {others[0]} has {self.kv_heads}")
        made: dict[str, object] = {**{n: as_kernel_sees(pool) for n, pool in pools.items()}, "layer": layer}
        made |= {"head_offset": self.head_offset, **self.parameters.of(layer, self.head_offset, heads, device)}
        made |= check_scales(self.spec, k_scale=k_scale, v_scale=v_scale)
        if self.spec.kv_lora_rank:
            made["latent_scale"] = made["k_scale"]
        if fields is not None:
            made |= check_fields(self.library, fields, pages, heads, device)
            made |= check_states(self.states, state or {}, heads, device)
        self._steps.bind(layer, made, device, heads)
        self._planned = None
        self._room = Room.of(self.library.manifest, self._steps.layers)
        self._arguments = CallArguments(self.library, heads, device)

    # --- each step ------------------------------------------------------------------------------------------

    def plan(
        self,
        lengths: torch.Tensor,
        page_table: torch.Tensor,
        slots: torch.Tensor | None = None,
        fresh: torch.Tensor | None = None,
        budgets: torch.Tensor | None = None,
    ) -> None:
        """Begin a step of requests with ``lengths`` i32 ``[B]`` tokens, the step's own included, whose pages are the
        rows of ``page_table`` i32 ``[B, Pmax]``. A request of length 0 is a padded row: nothing of it is read, and its
        outputs are zeros.

        ``slots`` i32 ``[B]`` is where each request keeps its state (:meth:`PagedCache.slots` gives it); a flow with
        state needs it, others do not look at it. A negative slot is a row without state, which reads ``init`` and
        writes nothing. The state of a slot begins anew at its request's first append: where the step's tokens are the
        request's first ones, or where ``fresh`` i32 ``[B]`` is not 0, because the pages before them were another
        request's (a cached prefix).

        ``budgets`` i32 ``[B, 5]`` are budgets of the requests' own, :meth:`Budget.numbers` of each; a row whose first
        number is negative has the decoder's. A request that asks for more pages than :meth:`capacity` gets the first
        of them, which ``debug`` refuses. Layers that decode with ``every`` go on with what they selected by another
        budget, unless :meth:`forget` is called. A table of budgets bounds the rows of such requests, too.

        Raises:
            VortexError: VX6001 for ``budgets`` that the artifact was not compiled for, VX6002, VX6003 without a layer
                or a budget, VX6010 when scratch would have to grow under a CUDA graph; with ``debug`` VX6004, VX6006.
        """
        self._planned = None  # a plan that fails leaves none
        requests = Requests(lengths, page_table, slots, fresh, budgets)
        kind = requests.kind
        step = self._steps.ready(kind)
        if step is None:
            self._steps.scratch("plan")
            manifest, device = self.library.manifest, self._steps.device
            requests.check(manifest, self._room, device, by_request=self._steps.by_request)
            size = self._steps.size(int(lengths.shape[0]), int(page_table.shape[1]))
            step = self._steps.prepare(kind, size)
        if self.debug and step.size.batch:
            self._look(check_tables, lengths, page_table, self.spec.page_size, self._room.pages)
        if self.debug and self.states and slots is not None:
            self._look(check_slots, slots, lengths, self._room.slots)
        planned = self._planned = Planned.of(self._steps, step, requests)
        self.pages, self.counts = step.pages, step.counts
        self._steps.run(planned.step, "plan", -1, {"lengths": lengths, "request_budget": planned.budgets})
        if self.debug and step.size.batch and budgets is not None:
            self._look(check_budgets, budgets, step.shared["plan"], step.pages.shape[2])
        if self._steps.dense:
            if "work" in step.dense:
                self._steps.run(planned.step, "plan", -1, {"lengths": lengths}, dense=True)
            counts = step.dense["counts"]
            counts.copy_(step.shared["plan"][0, :, None].expand_as(counts))

    def append(
        self,
        layer: int,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        loc: torch.Tensor | None,
        row_offsets: torch.Tensor,
    ) -> None:
        """Store the step's new ``k`` and ``v`` ``[T, Hkv, D]`` at ``loc`` i64 ``[T]`` (physical page * page size +
        offset), and summarise the pages that they fill. Request r's tokens are
        ``row_offsets[r]:row_offsets[r + 1]``, i32 ``[B + 1]``. A token of negative ``loc`` is not stored. Where an
        engine has stored all of them, ``k`` and ``v`` are None, and of ``loc``, which may be None, only the size is
        looked at: a GPU takes it as a hint of how much there is to do. Under MLA ``k`` are latent rows ``[T, 1, D]``
        and ``v`` is None.

        Raises:
            VortexError: VX6001, VX6002, VX6003 before :meth:`plan` or for a layer without fields.
        """
        planned = self._ready("append", layer, fields=True)
        self._steps.run(planned.step, "append", layer, self._new_tokens(planned, (k, v, loc, row_offsets)))

    def _new_tokens(self, planned: Planned, new: NewTokens) -> dict[str, object]:
        """The arguments of :meth:`append` as its kernel takes them, checked."""
        given, batch = self._arguments.of_append(planned, new), planned.step.size.batch
        k, _, loc, row_offsets = new
        if self.debug and batch:
            lengths, page_table = planned.requests.lengths, planned.requests.page_table
            slots = None if k is None else loc
            self._look(check_tokens, slots, row_offsets, lengths, page_table, self.spec.page_size)
        if self.keep and loc is not None and loc.shape[0] > batch:
            self.forget()  # a prompt: slots may be another's from here on
        return given

    def select(self, layer: int, q: torch.Tensor, *, pages: torch.Tensor, counts: torch.Tensor) -> None:
        """Write the logical pages that each row of ``q`` ``[B, Hq, D]`` attends to, ascending, to ``pages`` i32
        ``[B, Hkv, K]``, and how many they are to ``counts`` i32 ``[B, Hkv]``.

        Raises:
            VortexError: VX6001, VX6002, VX6003 before :meth:`plan` or for a layer without fields, VX6006 when K is
                less than :meth:`capacity`.
        """
        self._select(self._ready("select", layer, fields=True), layer, q, (pages, counts), self._arguments.nothing_new)

    def _select(
        self, planned: Planned, layer: int, q: torch.Tensor, selection: Selection, new: Mapping[str, object]
    ) -> None:
        """:meth:`select`, whose launch takes in the tokens of ``new``."""
        self._steps.run(planned.step, "select", layer, self._arguments.of_select(planned, q, *selection, new))

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        pages: torch.Tensor,
        counts: torch.Tensor,
        *,
        out: torch.Tensor,
        lse: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> None:
        """Write softmax(q k^T * scale) v over the tokens of the listed pages to ``out`` ``[B, Hq, D]``, and its natural
        log-sum-exp to ``lse`` f32 ``[B, Hq]`` if given; ``scale`` is 1/sqrt(D) unless given. A row may list no more
        pages than the budget keeps of its request. Under MLA ``out`` is ``[B, Hq, kv_lora_rank]`` and ``scale`` must be
        given: it is 1/sqrt(qk_nope_head_dim + qk_rope_head_dim) of the model, which absorbed queries do not show.

        Raises:
            VortexError: VX6001, VX6002, VX6003 before :meth:`plan`.
        """
        planned = self._ready("attend", layer)
        self._arguments.check_attend(planned.step, q, (pages, counts), out, lse)
        if self.debug and planned.step.size.batch:
            self._look(check_selection, pages, counts, planned.step.shared["plan"])
        given = self._arguments.of_attend(planned, q, out, lse, scale)
        self._steps.run(planned.step, "attend", layer, {**given, "pages": pages, "counts": counts})

    def attend_all(
        self,
        layer: int,
        q: torch.Tensor,
        *,
        out: torch.Tensor,
        lse: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> None:
        """:meth:`attend` to all pages of every request: dense attention, for layers that a flow skips. The lists of
        pages are made once a step, by :meth:`plan`, in a decoder of ``dense=True``.

        Raises:
            VortexError: VX6001, VX6002, VX6003 before :meth:`plan` or without ``dense=True``.
        """
        if not self._steps.dense:
            raise NOT_READY.at(call="attend_all", needs="a decoder of load(..., dense=True)")
        planned = self._ready("attend_all", layer)
        self._arguments.check_attend(planned.step, q, None, out, lse)
        given = self._arguments.of_attend(planned, q, out, lse, scale)
        self._steps.run(planned.step, "attend", layer, given, dense=True)

    def decode(
        self,
        layer: int,
        q: torch.Tensor,
        *,
        out: torch.Tensor,
        lse: torch.Tensor | None = None,
        scale: float | None = None,
        pages: torch.Tensor | None = None,
        counts: torch.Tensor | None = None,
        pages_of: int | None = None,
        heads: torch.Tensor | None = None,
        every: int = 1,
        new: NewTokens | None = None,
    ) -> None:
        """:meth:`select` and then :meth:`attend`, over ``pages`` and ``counts`` or, without them, tensors of the
        decoder's own (:attr:`pages`, :attr:`counts`).

        ``new`` are the tokens that the step adds, at most one to a request, as :meth:`append` takes them: ``(k, v, loc,
        row_offsets)``. They are appended as if by a call of it before; on a GPU ``select`` takes them in, which saves a
        launch, unless the flow has state.

        With ``pages_of`` nothing is selected: the layer, which needs no fields, attends to what layer ``pages_of``
        decoded with in this step, KV head h to what head ``heads[h]`` had where ``heads`` (i64 ``[Hkv]``, on the
        device) is given. That layer is in ``keep``, or the last one that selected (without ``heads``).

        With ``every=n`` a layer in ``keep`` selects in every n-th step alone, and in the n - 1 steps after it attends
        to what it selected then, with the last ``recent`` entries of each row moved to the last pages that the request
        has now; a page that leaves them is not attended to until the next selection, and a row that may keep all its
        pages does. It selects anew in any step whose requests are not those of its last step, in the same rows by
        :meth:`plan`'s ``slots``, each one token longer; after :meth:`forget`, after another budget, and after tokens of
        a prompt were appended (more of them than requests). All this is decided on the device, in a CUDA graph as well.

        Raises:
            VortexError: as :meth:`append`, :meth:`select` and :meth:`attend`; VX6002 for arguments that contradict
                each other, VX6003 where there is no such selection, or no ``slots``.
        """
        own = pages is None and counts is None
        if (pages is None) != (counts is None):
            raise wrong("decode", "has one of pages and counts; both or neither are needed")
        every = require_integer("every", every, 1)
        if (pages_of is not None) + (every > 1) + (not own) > 1:
            raise wrong("decode", "has more than one of pages, pages_of and every; they say where pages come from")
        if heads is not None and pages_of is None:
            raise wrong("decode", "has heads without pages_of, the layer whose heads they are")
        nothing = self._arguments.nothing_new
        taken = nothing if new is None else self._taken_in(layer, new, selects=pages_of is None)
        if pages_of is not None:
            pages, counts = self._ready("decode", layer).pages_of(layer, pages_of, heads)
        else:
            planned = self._ready("decode", layer, fields=True)
            if pages is None or counts is None:
                pages, counts = self._select_own(planned, layer, q, every, taken)
            else:
                self._select(planned, layer, q, (pages, counts), taken)
        if own:
            self.pages, self.counts = pages, counts
        self.attend(layer, q, pages, counts, out=out, lse=lse, scale=scale)

    def _select_own(
        self, planned: Planned, layer: int, q: torch.Tensor, every: int, new: Mapping[str, object]
    ) -> Selection:
        """Select into tensors of the decoder's own, or leave there what still stands, and take in ``new``."""
        selection, kept = planned.place_of(layer, every)
        if kept is not None and every > 1:
            planned.select_if_due(kept, every, partial(self._select, planned, layer, q, selection, new))
        else:
            if kept is not None:
                kept.forget()  # whoever asks for every=n later begins anew
            self._select(planned, layer, q, selection, new)
        planned.selected[layer] = selection
        return selection

    def _taken_in(self, layer: int, new: NewTokens, *, selects: bool) -> Mapping[str, object]:
        """What ``select`` is to take in of a step's new tokens: all, or nothing where they are appended here."""
        planned = self._ready("decode", layer, fields=True)
        listed = isinstance(new, tuple | list)
        if not listed or len(new) != 4:
            what = f"a {type(new).__name__} of {len(new)}" if listed else type(new).__name__
            raise wrong("new", f"is {what}; (k, v, loc, row_offsets), the arguments of append, are needed")
        given, batch = self._new_tokens(planned, new), planned.step.size.batch
        _, _, loc, row_offsets = new
        one_each = loc is None or loc.shape[0] <= batch
        if not (selects and one_each and self._takes_in_tokens):
            self._steps.run(planned.step, "append", layer, given)
            return self._arguments.nothing_new
        if self.debug and batch:
            self._look(check_one_each, row_offsets)
        return given

    def forget(self) -> None:
        """Let each layer that decodes with ``every`` select in its next step: for engines that give a slot to another
        request without this decoder having appended its prompt.
        """
        self._steps.forget()

    def launch(self, kind: str, layer: int, **given: object) -> None:
        """Launch the kernels of a kind that none of the calls above launches (``vortex.kinds.kind``); ``given`` has the
        arguments that its declaration says are the caller's, but for lengths and page table, which are the plan's.

        Raises:
            VortexError: VX6002 for another kind, and for arguments that are missing, unknown or of another type or
                shape than declared; VX6003 before :meth:`plan`.
        """
        planned = self._ready(f"launch of '{kind}'", layer)
        step = planned.step
        seen = tuple((n, *signature(x, n)) if isinstance(x, torch.Tensor) else (n, type(x)) for n, x in given.items())
        if step.seen.get(f"launch {kind}") != seen:
            sizes = self._steps.scratch("launch").layout.sizes(step.size, step.kernels)
            taken = {name for k in step.kernels if k.kind == kind for name in k.args} - planned.tables.keys()
            check_given(kind, taken, given, sizes, self._steps.device)
            step.seen[f"launch {kind}"] = seen
        self._steps.run(planned.step, kind, layer, {**given, **planned.tables})

    # --- inside ---------------------------------------------------------------------------------------------

    def _ready(self, call: str, layer: int, *, fields: bool = False) -> Planned:
        """The step that is planned, for a bound layer."""
        bound = self._steps.layers.get(layer)
        if bound is None:
            raise NOT_READY.at(call=f"{call} of layer {layer!r}", needs=f"bind({layer!r}, ...)")
        if fields and self.fields and f"field.{self.fields[0].name}" not in bound:
            raise NOT_READY.at(call=f"{call} of layer {layer!r}", needs=f"bind({layer!r}, ...) with the flow's fields")
        if self._planned is None:
            raise NOT_READY.at(call=call, needs="plan")
        return self._planned

    def _look(self, check: Callable[..., None], *arguments: object) -> None:
        """Where ``debug`` is on: look at numbers."""
        if self._steps.capturing:
            raise NO_CAPTURE.at(what="debug=True was to look at numbers", why="that waits for the device")
        check(*arguments)
