"""What a flow's methods are given: the parts of a page, and the fields of all candidate pages."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any, NoReturn

from vortex.errors import FIELD_UNDECLARED, FLOW_RAISED, OTHER_CACHE, nearest
from vortex.flow import purity
from vortex.flow.tracer import fail
from vortex.spec import Spec


class Page:
    """What forward_cache is given: ``page.k`` and ``page.v`` of one full page, or under MLA ``page.latent``, and the
    same of one of its blocks in ``page.block``, which is the page itself where it has one.
    """

    def __init__(self, spec: Spec, parts: Sequence[Any], block: Page | None = None) -> None:
        self.__dict__["_spec"] = spec
        self.__dict__["_parts"] = dict(zip(spec.pools, parts, strict=True))
        self.__dict__["block"] = self if block is None else block

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._parts:
            return self._parts[name]
        if name in ("k", "v", "latent"):
            raise fail(OTHER_CACHE, read=f"page.{name}", **what_there_is(self._spec, "page"))
        has = " and ".join(self._spec.pools)
        uses = " and ".join(f"page.{p}" for p in self._spec.pools)
        text = f"a page has {has}, and block, no '{name}'"
        raise fail(FLOW_RAISED, type="AttributeError", text=text, hint=f"summaries are made from {uses}")

    def __getitem__(self, key: object) -> NoReturn:
        uses = " and ".join(f"page.{p}" for p in self._spec.pools)
        text = "a page is no mapping and no tensor"
        raise fail(FLOW_RAISED, type="TypeError", text=text, hint=f"its tensors are {uses}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise purity.written_argument("page", name)

    __delattr__ = __setattr__  # type: ignore[assignment]


def what_there_is(spec: Spec, of: str) -> dict[str, str]:
    """For VX1022: what the cache of this shape holds, and what would do."""
    shape = f"[{'S, ' if of == 'cache' else ''}{spec.block_size}, {spec.head_dim}]"
    if spec.kv_lora_rank:
        use = f"{of}.latent, {shape}: keys are whole rows, values their first {spec.kv_lora_rank} numbers"
        return {"cache": f"MLA ({spec})", "hint": f"use {use}; or compile for a model with K and V: --heads 32/8"}
    hint = f"use {of}.k and {of}.v, {shape}; or compile for MLA: --latent 512+64 --heads 20"
    return {"cache": f"K and V ({spec})", "hint": hint}


class Cache:
    """What forward_indexer is given: the fields of all candidate pages, ``cache.<field>`` or ``cache["<field>"]``.

    ``cache.k``, ``cache.v`` and under MLA ``cache.latent`` are the pages' own rows, ``[S, page_size, head_dim]``. Of
    fields it is a mapping as well; a field called ``keys`` or ``items`` hides the mapping's method of that name.
    """

    def __init__(self, spec: Spec, fields: Mapping[str, Any], rows: Callable[[str], Any]) -> None:
        # attributes of an object come before the methods of its class
        self.__dict__.update(fields)
        object.__setattr__(self, "_of_pages", (spec, rows))

    __slots__ = ("__dict__", "_of_pages")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._other(name)

    def __getitem__(self, name: str) -> Any:
        try:
            return self.__dict__[name]
        except (KeyError, TypeError):
            return self._other(str(name))

    def _other(self, name: str) -> Any:
        """The pages' own rows of that name; the error that there is nothing of it."""
        spec, rows = self._of_pages
        if name in spec.pools:
            return rows(name)
        if name in ("k", "v", "latent"):
            raise fail(OTHER_CACHE, read=f"cache.{name}", **what_there_is(spec, "cache"))
        raise fail(FIELD_UNDECLARED, name=name, nearest=nearest(name, self.__dict__))

    def __setattr__(self, name: str, value: object) -> None:
        raise purity.written_argument("cache", name)

    def __setitem__(self, name: str, value: object) -> None:
        raise purity.written_argument("cache", name)

    def __delattr__(self, name: str) -> None:
        raise purity.written_argument("cache", name)

    def __delitem__(self, name: str) -> None:
        raise purity.written_argument("cache", name)

    def __contains__(self, name: object) -> bool:
        return name in self.__dict__

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        return len(self.__dict__)

    def keys(self) -> KeysView[str]:
        return self.__dict__.keys()

    def values(self) -> ValuesView[Any]:
        return self.__dict__.values()

    def items(self) -> ItemsView[str, Any]:
        return self.__dict__.items()

    def get(self, name: str, default: Any = None) -> Any:
        return self.__dict__.get(name, default)
