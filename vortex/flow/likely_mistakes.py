"""What a traced flow says and most likely does not mean: rows of all pages, a softmax of logits without their scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vortex.errors import NO_SCALE, ROWS_OF_ALL, warn
from vortex.ir.core import Function, Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.rewrite import behind
from vortex.ir.types import TensorType, dtype
from vortex.spec import Spec


def warn_of_rows(module: Module, spec: Spec) -> None:
    """VX1092 for each pool whose rows are read at more than the pages of shortlists."""
    index = module.functions["index"]
    users = index.users()

    def of_all(v: Value) -> Op | None:
        """The first op that makes anything of all pages' rows."""
        for o in users[v]:
            if isinstance(o, flow.Pick):
                continue
            if o.result is None or o.crosses_pages() or isinstance(o, flow.Ranking) or of_all(o.result) is not None:
                return o
        return None

    for a in index.args:
        if a.name in spec.pools and (o := of_all(a)) is not None:
            assert isinstance(a.type, TensorType)
            size = a.type.numel * dtype(spec.kv_dtype).bytes
            warn(ROWS_OF_ALL.at(o.loc, name=a.name, bytes=size))


def warn_of_scale(index: Function, stored: Mapping[str, Value]) -> None:
    """VX1095 for the first softmax, or exponential, of products of q with a field that nothing has scaled.

    ``stored`` are the values that ``forward_cache`` gave, by field and before they are stored: a scale that is folded
    into a field counts. So does any factor that no field or query is part of, a quotient, and weights.
    """
    q = index.args[0]
    for o in index.ops:
        if not isinstance(o, flow.Exp | flow.Softmax):
            continue
        made_from = behind(*o.operands)
        products = [p for p in _owners(made_from) if isinstance(p, flow.Dot) and _of_query_and_field(p, q)]
        fields = [stored[v.name] for v in made_from if v.owner is None and v.name in stored]
        if products and not any(map(_scales, _owners(made_from | behind(*fields)))):
            warn(NO_SCALE.at(o.loc, what=o.name.removeprefix("flow.")))
            return


def _owners(values: set[Value]) -> Iterator[Op]:
    return (v.owner for v in values if v.owner is not None)


def _of_query_and_field(o: flow.Dot, q: Value) -> bool:
    """Whether one operand is made from the query, and the other from something of the pages and not from it."""
    from_query = [q in behind(x) for x in (o.a, o.b)]
    other = o.b if from_query[0] else o.a
    return from_query[0] != from_query[1] and isinstance(other.type, TensorType) and other.type.pages is not None


def _scales(o: Op) -> bool:
    """Whether an op may bring logits to the scale of attention."""
    if isinstance(o, flow.Mul):
        return any(_is_known(x) for x in o.operands)
    return isinstance(o, flow.Div | flow.Sqrt | flow.Rsqrt | flow.Param)


def _is_known(x: Value) -> bool:
    """Whether a value is made of numbers alone, and of no argument."""
    return all(v.owner is not None for v in behind(x))
