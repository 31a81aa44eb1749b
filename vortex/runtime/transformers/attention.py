"""The function that transformers calls in each attention layer, and what it remembers of caches.

It is handed tensors and no cache. So each attention module gets a hook, which looks before a forward at the cache that
the module is called with: whose it is, and whether its tensors are the very ones that the last forward left there.
Whatever else was done to them, by reordering beams, cropping, resetting or hand, makes other tensors, or another
version of these, and what was kept of them is made anew. (Tensors of ``torch.inference_mode`` count no versions:
writing into those in place goes unseen.)
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from transformers.cache_utils import Cache, DummyLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vortex.errors import HF_SETTINGS
from vortex.flow.flow import find_flow, vFlow
from vortex.runtime.compiled import ModelShape, artifact_for, target_of
from vortex.runtime.library import open_library
from vortex.runtime.parameters import Parameters
from vortex.runtime.safetensors import read_safetensors
from vortex.runtime.tensors import short
from vortex.runtime.transformers.compiled import CompiledPages
from vortex.runtime.transformers.eager import EagerPages
from vortex.runtime.transformers.masks import first_tokens
from vortex.runtime.transformers.pages import Pages
from vortex.runtime.transformers.refusals import (
    OTHER,
    refuse,
    refuse_assisted,
    refuse_cache,
    refuse_call,
    refuse_gradient,
    refuse_shape,
)
from vortex.runtime.transformers.settings import Settings
from vortex.spec import Spec


@dataclass(frozen=True, slots=True)
class _Left:
    """The tensors that a forward left in a layer of a cache, and their versions."""

    keys: ref[torch.Tensor]
    values: ref[torch.Tensor]
    versions: tuple[int, int]

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor) -> _Left:
        return cls(ref(keys), ref(values), (_version(keys), _version(values)))

    def still(self, layer: Any) -> bool:
        """Whether they lie in the layer of the cache as they were."""
        keys, values = layer.keys, layer.values
        same = keys is not None and keys is self.keys() and values is self.values()
        return same and (_version(keys), _version(values)) == self.versions


def _version(x: torch.Tensor) -> int:
    return -1 if x.is_inference() else x._version


@dataclass(slots=True)
class _Kept:
    """Of one cache: what the last forward left in each layer, and the pages made of it, by what decides those."""

    left: dict[int, _Left] = field(default_factory=dict)
    pages: dict[Hashable, Pages] = field(default_factory=dict)


_KEPT: WeakKeyDictionary[Cache, _Kept] = WeakKeyDictionary()


@dataclass(eq=False)
class Layer:
    """What is known of one attention module.

    Attributes:
        settings: those that it was last called with.
        dense: why it attends to everything; empty where a flow selects.
        prompts: forwards of several tokens, which are dense.
        steps: forwards of one token that the flow served, and ``dense_steps`` that it did not.
        pages, pages_read: over these steps, requests and KV heads: pages that were there, and the most that were read.
        rebuilt: steps whose pages were made anew because the cache was not as the last forward had left it.
    """

    number: int
    settings: Settings
    dense: str = ""
    prompts: int = 0
    steps: int = 0
    dense_steps: int = 0
    pages: int = 0
    pages_read: int = 0
    rebuilt: int = 0
    called: bool = False
    """Whether the hook has seen the forward that is running."""
    cache: ref[Cache] | None = None
    intact: bool = False


LAYERS: WeakKeyDictionary[nn.Module, Layer] = WeakKeyDictionary()
"""Every attention module that was called."""


def _look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a forward of an attention module."""
    layer = LAYERS.get(module)
    if layer is None:
        return
    cache = next((x for x in (*kwargs.values(), *args) if isinstance(x, Cache)), None)
    layer.called, layer.intact = True, False
    layer.cache = None if cache is None else ref(cache)
    if cache is None:
        return
    refuse_cache(module, cache, layer.number)
    kept = _KEPT.get(cache)
    left = kept.left.get(layer.number) if kept else None
    layer.intact = left is not None and layer.number < len(cache.layers) and left.still(cache.layers[layer.number])


class Attention:
    """An attention of transformers': prompts by sdpa, decode steps by a flow. ``flow`` is a flow object, for the eager
    backend, instead of the one that ``settings`` name.
    """

    def __init__(self, settings: Settings, flow: vFlow | type[vFlow] | None = None) -> None:
        self._settings, self._flow = settings, flow
        self._resolved: tuple[object, Settings] = (None, settings)
        self._opened: dict[Hashable, Any] = {}

    # a graph of torch.compile ends before it and begins anew behind it
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``query`` ``[B, Hq, T, D]``, ``key`` and ``value`` ``[B, Hkv, places, D]``: ``[B, T, Hq, D]`` and no weights.

        Raises:
            VortexError: VX9021 for what is not served, VX9022 for a wrong ``config.vortex``, VX9004 and VX9005 when
                the flow cannot be compiled, and what the flow itself raises.
        """

        def dense() -> tuple[torch.Tensor, torch.Tensor | None]:
            more = {"dropout": dropout, "scaling": scaling, **kwargs}
            done: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
            return done

        if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
            return dense()  # an encoder's layers: nothing is decoded there
        refuse_call(module, kwargs)
        layer = self._layer(module)
        cache, hooked, layer.called = layer.cache and layer.cache(), layer.called, False
        layer.dense = _why_dense(layer, cache, module, kwargs)
        tokens, places = int(query.shape[2]), int(key.shape[2])
        if layer.dense:
            layer.prompts += tokens > 1
            layer.dense_steps += tokens == 1
            return dense()
        refuse_shape(module, query, key, value)
        kept = _KEPT.setdefault(cache, _Kept()) if cache is not None else _Kept()
        intact = layer.intact and cache is not None
        if cache is not None:
            self._note(module, layer.number, cache, kept, key, value)
        for pages in kept.pages.values():
            pages.trim(layer.number, places - tokens if intact else 0)
        if tokens > 1:
            refuse_assisted(module)
            for pages in kept.pages.values():
                pages.prompted(layer.number)
            layer.prompts += 1
            return dense()
        if places == 1:  # nothing is cached yet
            layer.dense_steps += 1
            return dense()
        if hooked and cache is None:
            refuse(module.config, "a cache of another kind", "it is no Cache of transformers'", "use DynamicCache")
        refuse_gradient(module, query)
        starts = first_tokens(attention_mask, int(query.shape[0]), places, module.config)
        pages = self._pages(layer.settings, kept, query, key)
        if cache is None and pages.stateful:
            why = "which cache its state belongs to is known from the second forward of a model on"
            refuse(module.config, "a flow with state in a model's first forward", why, "read a prompt first")
        layer.rebuilt += layer.steps > 0 and not intact
        out = pages.attend(layer.number, query[:, :, 0].contiguous(), key, value, starts, scaling)
        there, read = pages.read(layer.number, int(key.shape[1]), places)
        layer.steps, layer.pages, layer.pages_read = layer.steps + 1, layer.pages + there, layer.pages_read + read
        return out[:, None], None

    def _layer(self, module: nn.Module) -> Layer:
        """What is known of the module; its hook is made at its first call."""
        settings = self._settings_of(module.config)
        layer = LAYERS.get(module)
        if layer is None:
            number = getattr(module, "layer_idx", None)
            if number is None:
                refuse(module.config, f"{type(module).__name__} without a layer_idx", "it says no layer", OTHER)
            layer = LAYERS[module] = Layer(int(number), settings)
            module.register_forward_pre_hook(_look, with_kwargs=True)
        layer.settings = settings
        return layer

    def _settings_of(self, config: Any) -> Settings:
        given = getattr(config, "vortex", None)
        if given is None:
            return self._settings
        if given != self._resolved[0]:
            settings = self._settings.changed(given, "config.vortex")
            self._resolved = (dict(given), settings)
        return self._resolved[1]

    def _note(
        self, module: nn.Module, number: int, cache: Cache, kept: _Kept, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        held = cache.layers[number]
        if held.keys is not key or held.values is not value:
            why = "attention is given other tensors than the cache keeps of the layer, so that its pages cannot be told"
            refuse(module.config, f"{type(module).__name__} (layer {number})", why, OTHER)
        kept.left[number] = _Left.of(key, value)

    def _pages(self, settings: Settings, kept: _Kept, query: torch.Tensor, key: torch.Tensor) -> Pages:
        """Those of layers like this one over the cache."""
        heads, dim, device = int(key.shape[1]), int(key.shape[3]), query.device
        spec = Spec(
            page_size=settings.page_size,
            head_dim=dim,
            group=int(query.shape[1]) // heads,
            dtype=short(query.dtype),
            budget_table=bool(settings.budget.table),
        )
        which = (id(self), settings, spec, heads, device)
        if which not in kept.pages:
            make = self._eager if settings.backend == "eager" else self._compiled
            kept.pages[which] = make(settings, spec, heads, device)
        return kept.pages[which]

    def _eager(self, settings: Settings, spec: Spec, heads: int, device: torch.device) -> Pages:
        named = self._flow if settings.flow == self._settings.flow else None
        key = (settings.flow, settings.parameters)
        if key not in self._opened:
            weights = read_safetensors(settings.parameters) if settings.parameters else None
            self._opened[key] = named or find_flow(settings.flow), weights
        flow, weights = self._opened[key]
        return EagerPages(flow, spec, settings.budget, weights, heads)

    def _compiled(self, settings: Settings, spec: Spec, heads: int, device: torch.device) -> Pages:
        if self._flow is not None and settings.flow == self._settings.flow:
            why = "a flow object is compiled by its file, and no other interpreter can import this one"
            raise HF_SETTINGS.at(why=f"{why}: flow='file.py:name', or backend='eager'")
        target = target_of(device.type)
        key = (settings.flow, settings.parameters, spec, heads, target)
        if key not in self._opened:
            library = open_library(artifact_for(settings.flow, ModelShape(spec, heads), target), target)
            manifest = library.manifest
            self._opened[key] = library, Parameters(manifest.flow, manifest.parameters, settings.parameters or None)
        library, weights = self._opened[key]
        return CompiledPages(library, settings.budget, weights, heads, device)


def _why_dense(layer: Layer, cache: Cache | None, module: nn.Module, kwargs: dict[str, Any]) -> str:
    """Why a layer attends to everything that its mask leaves; empty where it does not."""
    if layer.number in layer.settings.dense_layers:
        return "one of dense_layers"
    window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
    held = cache.layers[layer.number] if cache is not None and layer.number < len(cache.layers) else None
    if window or getattr(held, "is_sliding", False):
        return f"sliding window of {window} tokens" if window else "sliding window, or chunks"
    if isinstance(held, DummyLayer) or getattr(module, "is_kv_shared_layer", False):
        return "its keys and values are another layer's"
    return ""
