"""vortex: sparse-attention flows, traced and compiled to kernels; programs and flows import it.

The names below load their module on first use: ``import vortex`` costs nothing, torch comes with the first flow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vortex.api.compile import compile as compile
    from vortex.api.decode import Decoded as Decoded
    from vortex.api.decode import decode as decode
    from vortex.budget import Budget as Budget
    from vortex.driver import Compilation as Compilation
    from vortex.errors import VortexError as VortexError
    from vortex.flow.bits import same_bits as same_bits
    from vortex.flow.flow import Field as Field
    from vortex.flow.flow import find_flow as find_flow
    from vortex.flow.flow import register as register
    from vortex.flow.flow import vFlow as vFlow
    from vortex.flow.leaves import block_index as block_index
    from vortex.flow.leaves import head as head
    from vortex.flow.leaves import layer as layer
    from vortex.flow.leaves import page_count as page_count
    from vortex.flow.leaves import page_index as page_index
    from vortex.flow.parameter import Parameter as Parameter
    from vortex.flow.selection import topk as topk
    from vortex.flow.selection import topp as topp
    from vortex.flow.selection import union as union
    from vortex.flow.shortlist import shortlist as shortlist
    from vortex.runtime.decoder import Decoder as Decoder
    from vortex.runtime.decoder import load as load
    from vortex.runtime.paged_cache import PagedCache as PagedCache
    from vortex.spec import Spec as Spec

__version__ = "0.1.0"

_PUBLIC = {
    "Budget": "vortex.budget",
    "Compilation": "vortex.driver",
    "Decoded": "vortex.api.decode",
    "Decoder": "vortex.runtime.decoder",
    "Field": "vortex.flow.flow",
    "PagedCache": "vortex.runtime.paged_cache",
    "Parameter": "vortex.flow.parameter",
    "Spec": "vortex.spec",
    "VortexError": "vortex.errors",
    "block_index": "vortex.flow.leaves",
    "compile": "vortex.api.compile",
    "decode": "vortex.api.decode",
    "find_flow": "vortex.flow.flow",
    "head": "vortex.flow.leaves",
    "layer": "vortex.flow.leaves",
    "load": "vortex.runtime.decoder",
    "page_count": "vortex.flow.leaves",
    "page_index": "vortex.flow.leaves",
    "register": "vortex.flow.flow",
    "same_bits": "vortex.flow.bits",
    "shortlist": "vortex.flow.shortlist",
    "topk": "vortex.flow.selection",
    "topp": "vortex.flow.selection",
    "union": "vortex.flow.selection",
    "vFlow": "vortex.flow.flow",
}
"""The module of each public name; docs/api.md lists them."""


def __getattr__(name: str) -> Any:
    where = _PUBLIC.get(name)
    if where is None:
        raise AttributeError(f"module 'vortex' has no attribute '{name}'")
    found = getattr(import_module(where), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, "__version__"])
