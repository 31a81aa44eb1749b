"""Decoding steps of a compiled flow, over tensors that the caller owns."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch

from vortex.artifact import read_manifest
from vortex.budget import Budget
from vortex.errors import CAPACITY, NOT_READY, NOT_RUNNABLE, SHAPE_MISMATCH
from vortex.manifest import FieldEntry
from vortex.runtime.calls import Call, Signature, signature
from vortex.runtime.checks import check_selection, check_tables, check_tokens
from vortex.runtime.library import Library, open_library
from vortex.runtime.tensors import TORCH, as_kernel_sees, require, short, wrong

RUNS = "cpu"
"""The target whose kernels :class:`Decoder` can call."""


def load(
    path: str | Path,
    *,
    target: str = "cpu",
    budget: Budget | None = None,
    debug: bool = False,
    require_digest: str | None = None,
) -> Decoder:
    """A decoder on the library of ``target`` in the artifact at ``path``; loading runs its code.

    Raises:
        VortexError: VX5001 to VX5005, as :func:`vortex.runtime.library.open_library` says; VX6008 for a GPU's
            library, whose work lists the decoder does not own yet.
    """
    if target != RUNS and target in read_manifest(path).targets:
        raise NOT_RUNNABLE.at(path=path, target=target, runs=RUNS)
    return Decoder(open_library(path, target, require_digest), budget=budget, debug=debug)


class Decoder:
    """The kernels of one artifact, called step by step.

    Once: :meth:`bind` each layer. Each step: :meth:`plan`, then for each layer :meth:`append` and
    :meth:`decode` (or :meth:`select` and :meth:`attend`). Sizes below: B requests, Hq = Hkv * group query heads,
    D head dim, P pages in the pool, Pmax columns of the page table, T new tokens, K capacity of a selection.

    Tensors given to :meth:`bind` and :meth:`plan` are kept, not copied: the caller may write new numbers into
    them. After the first step of a size nothing is allocated. One decoder serves one thread at a time.

    Attributes:
        pages, counts: what the last :meth:`decode` selected, unless it was given tensors of the caller's.
    """

    def __init__(self, library: Library, *, budget: Budget | None = None, debug: bool = False) -> None:
        self.library, self.debug = library, debug
        self.spec = library.manifest.spec
        self.kv_heads = 0
        self.pages: torch.Tensor | None = None
        self.counts: torch.Tensor | None = None
        self._dtype = TORCH[self.spec.dtype]
        self._device = torch.device("cpu") if library.name == "cpu" else None
        self._scale = self.spec.head_dim**-0.5
        self._kernels = library.target.kernels
        self._layers: dict[int, dict[str, object]] = {}  # layer -> its arguments by name
        self._pool_pages = 0  # of the smallest layer
        self._step: dict[str, object] = {}  # arguments that all layers share, by name
        self._batch = self._columns = 0
        self._capacity = 0
        self._calls: dict[tuple[str, int], list[Call]] = {}
        self._seen: dict[str, Signature] = {}  # signature of the last checked arguments, by method
        self._scratch: dict[str, torch.Tensor] = {}  # flat, only ever replaced by larger ones
        self._workspace: torch.Tensor | None = None
        self._budget = budget

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def fields(self) -> tuple[FieldEntry, ...]:
        """The summaries to be bound: name, tile, storage type."""
        return self.library.manifest.fields

    @property
    def budget(self) -> Budget | None:
        """How many pages a row may attend to; may be set between steps and takes effect at the next plan."""
        return self._budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        self._budget = budget
        self._forget()

    def capacity(self, columns: int) -> int:
        """The K that a selection over a page table of ``columns`` needs: pages kept of that many, at least 1."""
        if self._budget is None:
            raise NOT_READY.at(call="capacity", needs="a budget")
        return max(1, min(columns, self._budget.total(columns)))

    def workspace_bytes(self, batch: int, columns: int) -> int:
        """Bytes of scratch for B = ``batch`` and Pmax = ``columns``; VX6003 before :meth:`bind`."""
        self._need_layers("workspace_bytes")
        return 4 * batch * self.kv_heads * self._row_words(columns)

    def set_workspace(self, workspace: torch.Tensor | None) -> None:
        """Use ``workspace``, f32 ``[words]``, as scratch; None for the decoder's own.

        Raises:
            VortexError: VX6002 when it is no such tensor, at :meth:`plan` when it is too small.
        """
        if workspace is not None:
            require("workspace", workspace, torch.float32, ("words",), self._device)
        self._workspace = workspace
        self._forget()

    def _row_words(self, columns: int) -> int:
        return max((k.page_words * columns + k.row_words for k in self._kernels), default=0)

    # --- once -----------------------------------------------------------------------------------------------

    def bind(
        self,
        layer: int,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor | None,
        fields: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Give ``layer`` its memory: pools ``[P, Hkv, page, D]`` with any strides but the last, which is 1 (an NHD
        pool comes as ``pool.transpose(1, 2)``), and every summary, ``[P, Hkv, *tile]``, contiguous. Under MLA
        ``k_pool`` is the pool of latent rows, ``[P, 1, page, D]``, and ``v_pool`` is None.

        Raises:
            VortexError: VX6001 for a page size, head dim or type that the artifact was not compiled for, VX6002 for
                anything else.
        """
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < 2**31:
            raise wrong("layer", f"is {layer!r}; an integer of at least 0 is needed")
        fields = fields or {}
        pools = self._parts("bind", k_pool, v_pool)
        for name, pool in pools.items():
            name = f"{name}_pool"
            self._compiled_for(name, pool, 4)
            if pool.shape[2] != self.spec.page_size:
                got, want = int(pool.shape[2]), f"page size {self.spec.page_size}"
                raise SHAPE_MISMATCH.at(what=f"the page size of {name}", got=got, want=want, flag=f"--page-size {got}")
        pages, heads = int(k_pool.shape[0]), int(k_pool.shape[1])
        device = self._device or k_pool.device
        shape = (pages, heads, self.spec.page_size, self.spec.head_dim)
        if self.spec.kv_lora_rank and heads != 1:
            raise wrong("latent_pool", f"has {heads} rows a token; all query heads share one, so [P, 1, page, D]")
        for name, pool in pools.items():
            require(f"{name}_pool", pool, self._dtype, shape, device, strided=True)
        others = [n for n in self._layers if n != layer]
        if others and heads != self.kv_heads:
            raise wrong(f"layer {layer}", f"has {heads} KV heads; layer {others[0]} has {self.kv_heads}")
        if odd := fields.keys() ^ {f.name for f in self.fields}:
            raise wrong("fields", f"of the flow are {[f.name for f in self.fields]}; missing or unknown: {sorted(odd)}")
        made: dict[str, object] = {**pools, "layer": layer}
        for f in self.fields:
            made[f"field.{f.name}"] = as_kernel_sees(
                require(f"field '{f.name}'", fields[f.name], TORCH[f.dtype], (pages, heads, *f.tile), device)
            )
        self._layers[layer] = made
        self._device, self.kv_heads = device, heads
        self._pool_pages = min(int(own[self.spec.pools[0]].shape[0]) for own in self._layers.values())  # type: ignore[attr-defined]
        self._forget()

    def _compiled_for(self, what: str, tensor: torch.Tensor, rank: int) -> None:
        """VX6001 when the head dim or type of ``tensor`` is another than the artifact's."""
        if not isinstance(tensor, torch.Tensor) or tensor.dim() != rank:
            got = f"shape {list(tensor.shape)}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise wrong(what, f"has {got}; a tensor of {rank} axes is needed")
        if tensor.dtype != self._dtype:
            got = short(tensor.dtype)
            raise SHAPE_MISMATCH.at(what=f"the type of {what}", got=got, want=self.spec.dtype, flag=f"--dtype {got}")
        if (dim := tensor.shape[-1]) != self.spec.head_dim:
            want = f"head dim {self.spec.head_dim}"
            flag = "--latent KV_LORA_RANK+ROPE" if self.spec.kv_lora_rank else f"--head-dim {dim}"
            raise SHAPE_MISMATCH.at(what=f"the head dim of {what}", got=dim, want=want, flag=flag)

    def _parts(self, call: str, k: torch.Tensor, v: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """K and V, or the latent rows alone, by the names that the kernels have for them."""
        if (v is None) != bool(self.spec.kv_lora_rank):
            what = "V, but there is none under MLA: None" if v is not None else "no V; K and V"
            raise wrong(call, f"has {what} are needed")
        return dict(zip(self.spec.pools, (k,) if v is None else (k, v), strict=True))

    # --- each step ------------------------------------------------------------------------------------------

    def plan(self, lengths: torch.Tensor, page_table: torch.Tensor, slots: torch.Tensor | None = None) -> None:
        """Begin a step of requests with ``lengths`` i32 ``[B]`` tokens, the step's own included, whose pages are the
        rows of ``page_table`` i32 ``[B, Pmax]``; ``slots`` i32 ``[B]`` numbers them for flows that keep state.

        Raises:
            VortexError: VX6002, VX6003 without a layer or a budget; with ``debug`` VX6004.
        """
        self._need_layers("plan")
        if self._budget is None:
            raise NOT_READY.at(call="plan", needs="a budget (load(..., budget=) or decoder.budget)")
        kind = (*signature(lengths, "lengths"), *signature(page_table, "page_table"), slots is None)
        if self._seen.get("plan") != kind:
            self._forget()
            require("lengths", lengths, torch.int32, ("B",), self._device)
            batch = lengths.shape[0]
            require("page_table", page_table, torch.int32, (batch, "Pmax"), self._device)
            if slots is not None:
                require("slots", slots, torch.int32, (batch,), self._device)
            if page_table.shape[1] < 1:
                raise wrong("page_table", "has no columns; at least 1 is needed")
            self._size_step(batch, page_table.shape[1])
            self._seen["plan"] = kind
        if self.debug:
            check_tables(lengths, page_table, self.spec.page_size, self._pool_pages)
        step = self._step
        if step.get("lengths") is not lengths or step.get("page_table") is not page_table:
            step["lengths"], step["page_table"] = lengths, page_table
            self._calls.clear()
        self._run("plan", -1, {})

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
        engine has stored all of them, ``k`` and ``v`` are None and ``loc`` is not looked at. Under MLA ``k`` are latent
        rows ``[T, 1, D]`` and ``v`` is None.

        Raises:
            VortexError: VX6001, VX6002, VX6003 before :meth:`plan`.
        """
        self._need_plan("append", layer)
        stored = k is None
        if (v is None) != stored and not (v is None and self.spec.kv_lora_rank):
            raise wrong("append", "has one of k and v; both or neither are needed")
        if k is None:
            new = dict.fromkeys(self.spec.pools, self._no_tokens)
            loc = self._no_loc
        elif loc is None:
            raise wrong("append", "has tokens but no loc")
        else:
            new = self._parts("append", k, v)
        kind = (*signature(loc, "loc"), *signature(row_offsets, "row_offsets"))
        for name, tokens in new.items():
            kind += signature(tokens, name)
        if self._seen.get("append") != kind:
            shape: tuple[int | str, ...] = ("T", self.kv_heads, self.spec.head_dim)
            for name, tokens in new.items():
                self._compiled_for(name, tokens, 3)
                shape = tuple(require(name, tokens, self._dtype, shape, self._device).shape)
            require("loc", loc, torch.int64, shape[:1], self._device)
            require("row_offsets", row_offsets, torch.int32, (self._batch + 1,), self._device)
            self._seen["append"] = kind
        if self.debug:
            lengths, table = self._step["lengths"], self._step["page_table"]
            assert isinstance(lengths, torch.Tensor)
            assert isinstance(table, torch.Tensor)
            check_tokens(None if stored else loc, row_offsets, lengths, table, self.spec.page_size)
        given: dict[str, object] = {f"{name}_new": tokens for name, tokens in new.items()}
        self._run("append", layer, {**given, "loc": loc, "row_offsets": row_offsets})

    def select(self, layer: int, q: torch.Tensor, *, pages: torch.Tensor, counts: torch.Tensor) -> None:
        """Write the logical pages that each row of ``q`` ``[B, Hq, D]`` attends to, ascending, to ``pages`` i32
        ``[B, Hkv, K]``, and how many they are to ``counts`` i32 ``[B, Hkv]``.

        Raises:
            VortexError: VX6001, VX6002, VX6003 before :meth:`plan`, VX6006 when K is less than :meth:`capacity`.
        """
        self._need_plan("select", layer)
        kind = (*signature(q, "q"), *signature(pages, "pages"), *signature(counts, "counts"))
        if self._seen.get("select") != kind:
            self._check_queries(q)
            self._check_selection(pages, counts)
            if pages.shape[2] < self._capacity:
                raise CAPACITY.at(need=self._capacity, capacity=pages.shape[2])
            self._seen["select"] = kind
        self._run("select", layer, {"q": q, "pages": pages, "counts": counts})

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
        log-sum-exp to ``lse`` f32 ``[B, Hq]`` if given; ``scale`` is 1/sqrt(D) unless given. Under MLA ``out`` is
        ``[B, Hq, kv_lora_rank]`` and ``scale`` must be given: it is 1/sqrt(qk_nope_head_dim + qk_rope_head_dim) of the
        model, which absorbed queries do not show.

        Raises:
            VortexError: VX6001, VX6002, VX6003 before :meth:`plan`.
        """
        self._need_plan("attend", layer)
        kind = (*signature(q, "q"), *signature(pages, "pages"), *signature(counts, "counts"), *signature(out, "out"))
        if lse is not None:
            kind += signature(lse, "lse")
        if self._seen.get("attend") != kind:
            self._check_queries(q)
            self._check_selection(pages, counts)
            require("out", out, self._dtype, (*q.shape[:2], self.spec.v_dim), self._device)
            if lse is not None:
                require("lse", lse, torch.float32, tuple(q.shape[:2]), self._device)
            self._seen["attend"] = kind
        if self.debug:
            lengths = self._step["lengths"]
            assert isinstance(lengths, torch.Tensor)
            check_selection(pages, counts, lengths, self.spec.page_size)
        given: dict[str, object] = {"q": q, "pages": pages, "counts": counts, "out": out}
        given["lse"] = self._no_lse if lse is None else lse
        if scale is None and self.spec.kv_lora_rank:
            raise wrong(
                "scale", "is not given; under MLA it is the model's 1/sqrt(qk_nope_head_dim + qk_rope_head_dim)"
            )
        given["scale"] = self._scale if scale is None else float(scale)
        self._run("attend", layer, given)

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
    ) -> None:
        """:meth:`select` and then :meth:`attend`, over ``pages`` and ``counts`` or, without them, tensors of the
        decoder's own (:attr:`pages`, :attr:`counts`).
        """
        if pages is None or counts is None:
            if pages is not counts:
                raise wrong("decode", "has one of pages and counts; both or neither are needed")
            self._need_plan("decode", layer)
            pages, counts = self.pages, self.counts
            assert pages is not None
            assert counts is not None
        self.select(layer, q, pages=pages, counts=counts)
        self.attend(layer, q, pages, counts, out=out, lse=lse, scale=scale)

    # --- inside ---------------------------------------------------------------------------------------------

    def _need_layers(self, call: str) -> None:
        if not self._layers:
            raise NOT_READY.at(call=call, needs="bind")

    def _need_plan(self, call: str, layer: int) -> None:
        if layer not in self._layers:
            raise NOT_READY.at(call=f"{call} of layer {layer}", needs=f"bind({layer}, ...)")
        if "lengths" not in self._step:
            raise NOT_READY.at(call=call, needs="plan")

    def _forget(self) -> None:
        """Drop what a plan prepared; the next step plans again."""
        self._calls.clear()
        self._seen.clear()
        self._step.clear()

    def _check_queries(self, q: torch.Tensor) -> None:
        self._compiled_for("q", q, 3)
        got, want = int(q.shape[1]), self.kv_heads * self.spec.group
        if got != want:
            heads = f"{self.spec.group} query heads to a KV head, so {want}"
            flag = f"--heads {got}/{self.kv_heads}" if got % self.kv_heads == 0 else "--heads QUERY/KV"
            what = f"the number of query heads over {self.kv_heads} KV heads"
            raise SHAPE_MISMATCH.at(what=what, got=got, want=heads, flag=flag)
        require("q", q, self._dtype, (self._batch, want, self.spec.head_dim), self._device)

    def _check_selection(self, pages: torch.Tensor, counts: torch.Tensor) -> None:
        require("pages", pages, torch.int32, (self._batch, self.kv_heads, "K"), self._device)
        require("counts", counts, torch.int32, (self._batch, self.kv_heads), self._device)

    def _size_step(self, batch: int, columns: int) -> None:
        """Scratch and small tensors for steps of this size."""
        assert self._budget is not None
        self._batch, self._columns = batch, columns
        self._capacity = self.capacity(columns)
        rows, words = batch * self.kv_heads, self._row_words(columns)
        if self._workspace is not None and self._workspace.numel() < rows * words:
            need = self.workspace_bytes(batch, columns)
            raise wrong("workspace", f"has {self._workspace.numel() * 4} bytes; this step needs {need}")
        own = self._workspace
        space = self._take("workspace", torch.float32, rows, words) if own is None else own[: rows * words]
        self.pages = self._take("pages", torch.int32, batch, self.kv_heads, self._capacity)
        self.counts = self._take("counts", torch.int32, batch, self.kv_heads)
        numbers = self._take("budget", torch.int32, 5)
        numbers.copy_(torch.tensor(self._budget.numbers(), dtype=torch.int32))
        self._step["plan"] = self._take("plan", torch.int32, 4, batch)
        self._step["budget"] = numbers
        self._step["workspace"] = space.view(rows, words)
        dim = self.spec.head_dim
        self._no_lse = torch.empty(0, self.kv_heads * self.spec.group, dtype=torch.float32, device=self._device)
        self._no_tokens = torch.empty(0, self.kv_heads, dim, dtype=self._dtype, device=self._device)
        self._no_loc = torch.empty(0, dtype=torch.int64, device=self._device)

    def _take(self, name: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        flat, size = self._scratch.get(name), prod(shape)
        if flat is None or flat.numel() < size:
            flat = self._scratch[name] = torch.empty(size, dtype=dtype, device=self._device)
        return flat[:size].view(shape)

    def _run(self, kind: str, layer: int, given: Mapping[str, object]) -> None:
        """Launch the kernels of one kind; ``given`` holds the arguments that differ from call to call."""
        if self._batch == 0:
            return
        calls = self._calls.get((kind, layer))
        if calls is None:
            known = {**self._step, **self._layers.get(layer, {})}
            known.update((f"const.{name}", value) for name, value in self.library.constants.items())
            functions = self.library.functions
            calls = [Call(k, functions[k.symbol], known) for k in self._kernels if k.kind == kind]
            self._calls[kind, layer] = calls
        for call in calls:
            call.run(given)
