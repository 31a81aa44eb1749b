"""Learned constants, whose numbers a flow has when it is made: by layer, as bf16.

What fits into a constant of the artifact becomes one. Larger ones are parameters, which an artifact is given when it is
loaded: :func:`weights` has their tensors.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from vortex.compat.vortex_torch import calls
from vortex.compat.vortex_torch.operators import bad, constant, number, vOp
from vortex.flow.leaves import layer, place
from vortex.flow.methods import RESERVED, declared_fields, instantiate
from vortex.flow.parameter import Parameter as Native
from vortex.flow.tracer import CONSTANT_LIMIT, current
from vortex.spec import Spec

LOOKUP = "a list or tensor of integers, the row of each layer"


def _rows(op: str, lookup: Any) -> list[int]:
    """The row of each layer that a lookup knows."""
    try:
        return [int(i) for i in torch.as_tensor(lookup).reshape(-1).tolist()]
    except (TypeError, ValueError, RuntimeError):
        raise bad(op, f"layer_lookup is {lookup!r}", LOOKUP) from None


class Table:
    """One tensor for each layer, ``values[rows[layer]]``; layers beyond the list have the last of it."""

    def __init__(self, values: torch.Tensor, rows: list[int]) -> None:
        self.values = values.detach().to("cpu", torch.bfloat16)
        self.rows = rows if len(set(rows)) > 1 else rows[:1]
        self.native: Native | None = None
        """The parameter that it becomes, where it is too large for a constant."""

    @property
    def small(self) -> bool:
        """Whether it can be a constant."""
        return len(self.rows) * self.values[0].numel() * self.values.element_size() <= CONSTANT_LIMIT

    def of(self, at: int) -> torch.Tensor:
        """That of a layer."""
        return self.values[self.rows[min(at, len(self.rows) - 1)]]

    def here(self) -> Any:
        """That of the layer that decodes: traced, or fp32 numbers in an eager step."""
        step = place()
        if self.native is not None and (current() is not None or (step and self.native.name in step.parameters)):
            return self.native.here()
        if current() is None and step is not None:
            return self.of(step.layer).float()
        if len(self.rows) == 1:
            return constant(self.of(0))
        return constant(self.values[self.rows])[layer().clamp(max=len(self.rows) - 1)]


class Parameter:
    """A constant ``[N, K]``, or one for each layer, ``[L, N, K]``: the second operand of GeMM."""

    def __init__(self, value: Any, layer_lookup: Any = None) -> None:
        if not isinstance(value, torch.Tensor) or value.ndim not in (2, 3):
            got = f"of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
            raise bad("Parameter", f"its value is {got}", "a tensor [N, K], or [L, N, K] for each layer")
        self.value = value if value.ndim == 3 else value[None]
        sets = len(self.value)
        listed = list(range(sets)) if layer_lookup is None else _rows("Parameter", layer_lookup)
        # a layer that the list does not know has the row of its own number, or the nearest that there is
        listed += range(len(listed), max(sets, len(listed) + 1))
        self.table = Table(self.value, [min(max(i, 0), sets - 1) for i in listed])
        self.shape = (0, *self.value.shape[1:])
        self.layer_lookup = layer_lookup

    def dim(self) -> int:
        return 3

    def here(self) -> Any:
        """``[1, N, K]`` of the layer that decodes."""
        return self.table.here()[None]


class LearnedQuery(vOp):
    """scaling * the sum over heads of Wk[h] Wq[h]^T q[h], ``[1, 1, d]``, of ``[L, H, d, r]`` weights.

    A layer that the lookup does not know, and every layer without weights, has the sum of the queries instead.
    """

    def __init__(self, Wq: Any = None, Wk: Any = None, layer_lookup: Any = None, scaling: float = 1.0) -> None:
        super().__init__()
        self.scaling = number(self.op, "scaling", scaling)
        self.wq: Table | None = None
        self.wk: Table | None = None
        if Wq is None:
            return
        shapes = [list(w.shape) if isinstance(w, torch.Tensor) else type(w).__name__ for w in (Wq, Wk)]
        if not isinstance(Wq, torch.Tensor) or not isinstance(Wk, torch.Tensor) or Wq.ndim != 4 or Wq.shape != Wk.shape:
            raise bad(self.op, f"Wq and Wk are {shapes[0]} and {shapes[1]}", "two tensors [L, H, d, r]")
        sets = len(Wq)
        listed = list(range(sets)) if layer_lookup is None else _rows(self.op, layer_lookup)
        self.known = torch.tensor([0 <= i < sets for i in listed] + [False])
        rows = [i if 0 <= i < sets else 0 for i in listed]
        self.wq, self.wk = Table(Wq, rows), Table(Wk, rows)

    def __call__(self, q: Any, ctx: Any = None) -> Any:
        call = calls.current(self.op)
        q = calls.tensor(self.op, q)
        if call.method != "forward_indexer" or calls.is_per_page(q):
            raise calls.refuse(self.op, f"it is given {calls.shape_of(q)}", "the queries of forward_indexer, [1, H, d]")
        mixed = plain = q.sum(1, keepdim=True)
        if self.wq is not None and self.wk is not None:
            if tuple(q.shape[1:]) != tuple(self.wq.values.shape[1:3]):
                why = f"q is {calls.shape_of(q)} and Wq is {list(self.wq.values.shape)}"
                raise calls.refuse(self.op, why, "as many heads, and numbers of a head, as the weights [L, H, d, r]")
            inner = torch.einsum("hd,hdr->hr", q[0], self.wq.here())
            mixed = torch.einsum("hdr,hr->d", self.wk.here(), inner)[None, None]
            if not bool(self.known[:-1].all()) or len(self.known) > 2:
                known = constant(self.known)[layer().clamp(max=len(self.known) - 1)]
                mixed = torch.where(known, mixed, plain)
        return mixed if self.scaling == 1 else mixed * self.scaling


def _tables(value: Any, name: str) -> dict[str, Table]:
    """The tables in an attribute of a flow, by the names that their parameters have."""
    if isinstance(value, Parameter):
        return {name: value.table}
    if isinstance(value, LearnedQuery):
        return {f"{name}_{n}": t for n, t in (("wq", value.wq), ("wk", value.wk)) if t is not None}
    if isinstance(value, list | tuple):
        value = {str(i): x for i, x in enumerate(value)}
    if not isinstance(value, dict) or name.startswith("_"):
        return {}
    return {n: t for k, x in value.items() for n, t in _tables(x, f"{name}_{k}").items()}


def declare(flow: Any, taken: Collection[str]) -> None:
    """Make parameters of the tables of a flow that are too large for constants; ``taken`` are names of fields."""
    natives: dict[str, Native] = {}
    for attribute, value in list(vars(flow).items()):
        for name, table in _tables(value, attribute).items():
            if table.small:
                continue
            while name in taken or name in RESERVED or name in natives:
                name += "_"
            shape, per = tuple(table.values.shape[1:]), "layer" if len(table.rows) > 1 else None
            natives[name] = table.native = Native(name, shape, "bf16", per)
    flow.__dict__["_parameters"] = natives


def weights(flow: Any, spec: Spec, layers: int) -> dict[str, torch.Tensor]:
    """The tensors of a flow's parameters for a model of ``layers``, as ``vortex.load`` takes them."""
    made: Any = instantiate(flow)
    declared_fields(made, spec)
    found = {}
    for attribute, value in list(vars(made).items()):
        for table in _tables(value, attribute).values():
            if table.native is not None:
                every = range(layers if len(table.rows) > 1 else 1)
                tensors = torch.stack([table.of(i) for i in every])
                found[table.native.name] = tensors if len(table.rows) > 1 else tensors[0]
    return found
