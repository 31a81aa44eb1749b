"""The modules of vortex_torch by their names, in every generation of it, and what each of them has."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from vortex.compat.vortex_torch import abs as abstract
from vortex.compat.vortex_torch import algorithms, algorithms_mla, cache, flows, indexer, operators

PACKAGE = "vortex_torch"


def _public(module: types.ModuleType, *names: str) -> dict[str, Any]:
    """What a module of ours defines, and ``names`` that it imports."""
    own = {n: x for n, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__ and n[0] != "_"}
    return {**own, **{n: getattr(module, n) for n in names}}


_FLOW = {n: getattr(flows, n) for n in ("vFlow", "vFlowMLA", "register", "build_vflow")}
_REGISTRY = {"register": flows.register, "_REGISTRY": flows.Registered()}
_ABS = _public(abstract, "ContextBase", "vOp", "vTensor", "Parameter")
_INDEXER = {n: x for n, x in _public(indexer, "LearnedQuery", "Parameter").items() if n != "Part"}
_CACHE = _public(cache)


def _in(package: str, names: Mapping[str, Any], *modules: str) -> dict[str, Mapping[str, Any]]:
    """A package's names, found in every module of it as well: generations differ in which one has what."""
    return {package: names, **{f"{package}.{m}": {**names, "vOp": operators.vOp} for m in modules}}


_BOTH = ("context", "elementwise", "elementwise_binary", "mask", "matmul", "reduce", "reshape")
_INDEXER_ONLY = (
    "multiply",
    "learned_query",
    "parameter",
    "kron",
    "output_func",
    "save_load",
    "scan",
    "select",
    "transpose",
)

CONTENTS: Mapping[str, Mapping[str, Any]] = {
    "": {"__version__": "0", "is_hopper": lambda: False, "is_hopper_or_newer": lambda: False},
    **dict.fromkeys(("context_base", "op", "tensor"), _ABS),  # the oldest generation has them at the top
    **_in("abs", _ABS, "context_base", "op", "parameter", "tensor"),
    **_in("flow", _FLOW, "flow", "flow_mla", "loader"),
    "flow.registry": _REGISTRY,
    "flow.algorithms": _public(algorithms),
    "flow.external_algorithms": _public(algorithms),
    "flow.algorithms_mla": _public(algorithms_mla),
    "flow.algorithms_learned_mla": _public(algorithms_mla),
    **_in("indexer", _INDEXER, *_BOTH, *_INDEXER_ONLY),
    **_in("cache", _CACHE, *_BOTH, "fill", "reduce_interleave"),
}
"""By the part of the name after the package's."""


def modules() -> dict[str, types.ModuleType]:
    """The package and its modules, as ``sys.modules`` has them once they are imported."""
    made: dict[str, types.ModuleType] = {}
    for part, names in CONTENTS.items():
        whole = f"{PACKAGE}.{part}" if part else PACKAGE
        module = types.ModuleType(whole, f"vortex's reading of {whole}.")
        module.__dict__.update(names, __path__=[], __all__=[n for n in names if n[0] != "_"])
        made[whole] = module
    for whole, module in made.items():
        outer, _, name = whole.rpartition(".")
        if outer:
            setattr(made[outer], name, module)
    return made
