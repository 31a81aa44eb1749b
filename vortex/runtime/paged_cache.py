"""Pools of K, V and summaries, for programs that have no engine to own them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from vortex.artifact.manifest import FieldEntry, StateEntry
from vortex.errors import OUT_OF_MEMORY, OUT_OF_PAGES, UNKNOWN_REQUEST, nearest
from vortex.runtime.tensors import TORCH, require_integer, whole, wrong
from vortex.spec import Spec


@dataclass(slots=True)
class _Request:
    slot: int
    length: int = 0
    pages: list[int] = field(default_factory=list)


class PagedCache:
    """K, V and summaries of ``num_pages`` pages a layer, and which request has which page.

    ``k[layer]`` and ``v[layer]`` are ``[P, Hkv, page, D]``; their memory is that (``HND``) or
    ``[P, page, Hkv, D]`` (``NHD``). Under MLA ``k[layer]`` has the latent rows, and ``v[layer]`` is None.
    ``fields[layer][name]`` is ``[P, Hkv, *tile]`` in its storage type; int4 and uint1 are uint8 with the last axis in
    bytes (:attr:`FieldEntry.packed`). Of a flow with ``states``, ``slots`` requests of
    up to ``columns`` pages have state at a time: ``state[layer][name]`` is ``[slots, Hkv, columns, *tile]``, or
    ``[slots, Hkv, *tile]`` where it belongs to the request; :attr:`state_bytes` says what that takes.
    Pools start with whatever is in memory; pages are reused as they are.

    Args:
        num_pages: pages of each layer's pools, which all requests share.
        kv_heads: KV heads of a layer; 1 under MLA.
        spec: the model's shape, :attr:`Decoder.spec`.
        fields: the summaries to keep, :attr:`Decoder.fields`.
        layers: how many layers have pools.
        layout: how pools lie in memory, ``HND`` (heads before tokens) or ``NHD``.
        device: where they lie.
        states: the state to keep, :attr:`Decoder.states`.
        slots: of a flow with state, how many requests there may be at a time.
        columns: of a flow with state, the pages of the longest request.

    Raises:
        VortexError: VX6002 for an argument that fits none, VX6040 when the device has no memory for it.
    """

    def __init__(
        self,
        num_pages: int,
        kv_heads: int,
        spec: Spec,
        fields: Sequence[FieldEntry] = (),
        *,
        layers: int = 1,
        layout: Literal["HND", "NHD"] = "HND",
        device: torch.device | str = "cpu",
        states: Sequence[StateEntry] = (),
        slots: int = 0,
        columns: int = 0,
    ) -> None:
        sizes = {"num_pages": num_pages, "kv_heads": kv_heads, "layers": layers}
        for name, number in sizes.items():
            if (whole(number) or 0) < 1:
                raise wrong(name, f"is {number!r}; a positive integer is needed")
        num_pages, kv_heads, layers = map(int, sizes.values())
        if layout not in ("HND", "NHD"):
            raise wrong("layout", f"is {layout!r}; HND or NHD is needed")
        self.num_pages, self.kv_heads, self.spec, self.layers = num_pages, kv_heads, spec, layers
        self.device = torch.device(device)

        def pool() -> torch.Tensor:
            inner = (kv_heads, spec.page_size) if layout == "HND" else (spec.page_size, kv_heads)
            made = torch.empty(num_pages, *inner, spec.head_dim, dtype=TORCH[spec.kv_dtype], device=self.device)
            return made if layout == "HND" else made.transpose(1, 2)

        def summary(entry: FieldEntry) -> torch.Tensor:
            return torch.empty(num_pages, kv_heads, *entry.packed, dtype=TORCH[entry.dtype], device=self.device)

        self.num_slots, self.columns = slots, columns
        if states and (min(whole(slots) or 0, whole(columns) or 0) < 1):
            why = f"{slots!r} of {columns!r} pages; a flow with state needs slots= (requests at a time) and columns="
            raise wrong("slots", f"are {why} (pages of the longest)")

        def kept(s: StateEntry) -> torch.Tensor:
            pages = (columns,) if s.per == "page" else ()
            return torch.empty(slots, kv_heads, *pages, *s.tile, dtype=TORCH[s.dtype], device=self.device)

        try:
            self.k = [pool() for _ in range(layers)]
            self.v = [None if spec.kv_lora_rank else pool() for _ in range(layers)]
            self.fields = [{f.name: summary(f) for f in fields} for _ in range(layers)]
            self.state = [{s.name: kept(s) for s in states} for _ in range(layers)]
        except RuntimeError as e:
            each = num_pages * kv_heads * layers
            rows = len(spec.pools) * spec.page_size * spec.head_dim * TORCH[spec.kv_dtype].itemsize
            sizes = {" and ".join(spec.pools): rows * each}
            sizes |= {f"field '{f.name}'": f.tile_bytes * each for f in fields}
            sizes |= {f"state '{s.name}'": s.bytes(kv_heads, columns) * slots * layers for s in states}
            what = ", ".join(f"{name} {n} bytes" for name, n in sizes.items())
            raise OUT_OF_MEMORY.at(what=what, tiles=each, device=self.device) from e
        self._requests: dict[Hashable, _Request] = {}
        self._free = list(range(num_pages - 1, -1, -1))  # the last one is handed out next
        self._free_slots: list[int] = []

    @property
    def state_bytes(self) -> int:
        """What state takes, over all layers."""
        return sum(x.numel() * x.element_size() for layer in self.state for x in layer.values())

    @property
    def free_pages(self) -> int:
        """Pages that no request has."""
        return len(self._free)

    @property
    def requests(self) -> tuple[Hashable, ...]:
        """Ids of the requests, in the order they were added."""
        return tuple(self._requests)

    def add(self, request: Hashable) -> None:
        """Begin a request without tokens; VX6002 when there is one of this id, or no slot for its state."""
        if request in self._requests:
            raise wrong("add", f"request '{request}' is in this cache already")
        slot = self._free_slots.pop() if self._free_slots else len(self._requests)
        if self.state[0] and slot >= self.num_slots:
            raise wrong(
                "add", f"request '{request}' is one more than the {self.num_slots} slots that state has room for"
            )
        self._requests[request] = _Request(slot)

    def extend(self, request: Hashable, tokens: int) -> torch.Tensor:
        """Room for ``tokens`` more tokens of a request: their ``loc``, i64 ``[tokens]``.

        Raises:
            VortexError: VX6005 when pages run out, VX6007 for an unknown request; nothing changed then.
        """
        return self.extend_batch([request], [tokens])[0]

    def extend_batch(self, requests: Sequence[Hashable], tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`extend` for several requests, all or none: ``loc`` i64 ``[T]``, ``row_offsets`` i32 ``[B + 1]``."""
        found = [self._find(r) for r in requests]
        if len(set(requests)) != len(found) or len(tokens) != len(found):
            raise wrong("extend_batch", f"{len(tokens)} token counts for {len(set(requests))} different requests")
        page = self.spec.page_size
        needs = []
        for count in tokens:
            if (number := whole(count)) is None or number < 0:
                raise wrong("tokens", f"is {count!r}; an integer of at least 0 is needed")
        tokens = [int(count) for count in tokens]
        for request, count in zip(found, tokens, strict=True):
            needs.append(-(-(request.length + count) // page) - len(request.pages))
        if sum(needs) > len(self._free):
            raise OUT_OF_PAGES.at(need=sum(needs), free=len(self._free), total=self.num_pages)
        parts = []
        for request, count, need in zip(found, tokens, needs, strict=True):
            request.pages += [self._free.pop() for _ in range(need)]
            at = np.arange(request.length, request.length + count)
            first = request.length // page
            pages = np.asarray(request.pages[first:], dtype=np.int64)
            parts.append(pages[at // page - first] * page + at % page if count else at)
            request.length += count
        loc = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        offsets = np.cumsum([0, *tokens]).astype(np.int32)
        return torch.from_numpy(loc).to(self.device), torch.from_numpy(offsets).to(self.device)

    def free(self, request: Hashable) -> None:
        """Give a request's pages back; VX6007 when there is none of this id."""
        found = self._find(request)
        del self._requests[request]
        self._free += reversed(found.pages)
        self._free_slots.append(found.slot)

    def lengths(self, requests: Sequence[Hashable]) -> torch.Tensor:
        """Tokens of each request: i32 ``[B]``."""
        return self._i32([self._find(r).length for r in requests])

    def slots(self, requests: Sequence[Hashable]) -> torch.Tensor:
        """A small number of each request's own while it lives: i32 ``[B]``."""
        return self._i32([self._find(r).slot for r in requests])

    def pages(self, request: Hashable) -> tuple[int, ...]:
        """Physical pages of a request, in logical order."""
        return tuple(self._find(request).pages)

    def page_table(self, requests: Sequence[Hashable], width: int | None = None) -> torch.Tensor:
        """Physical pages: i32 ``[B, Pmax]``, rows padded with 0; ``width`` is Pmax, else the longest row's, at least 1.

        Raises:
            VortexError: VX6002 when ``width`` is no integer or a row does not fit it, VX6007 for an unknown request.
        """
        rows = [self._find(r).pages for r in requests]
        longest = max((len(r) for r in rows), default=0)
        width = None if width is None else require_integer("width", width)
        if width is not None and width < longest:
            raise wrong("width", f"is {width}; a request has {longest} pages")
        table = np.zeros((len(rows), max(1, longest) if width is None else width), np.int32)
        for i, row in enumerate(rows):
            table[i, : len(row)] = row
        return torch.from_numpy(table).to(self.device)

    def _i32(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)

    def _find(self, request: Hashable) -> _Request:
        found = self._requests.get(request)
        if found is None:
            raise UNKNOWN_REQUEST.at(name=request, nearest=nearest(str(request), map(str, self._requests)))
        return found
