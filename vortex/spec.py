"""The model shape a flow is compiled for."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vortex.errors import BAD_SPEC
from vortex.ir.types import dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Constants of one compiled artifact; what ``create_cache`` is given.

    ``group`` is query heads per KV head; ``dtype`` is the element type of Q, K, V and, unless a field
    says otherwise, of summaries.

    Raises:
        VortexError: VX1021 when a number is not positive or the dtype unknown.
    """

    page_size: int = 16
    head_dim: int = 128
    group: int = 4
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        for name in ("page_size", "head_dim", "group"):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 1:
                raise BAD_SPEC.at(why=f"{name} is {number!r}, a positive integer is needed")
        if self.dtype not in ("bf16", "f16", "f32"):
            dtype(self.dtype)
            raise BAD_SPEC.at(why=f"K and V in {self.dtype} are not supported; use bf16, f16 or f32")

    @classmethod
    def of_heads(cls, heads: str, **rest: object) -> Spec:
        """From query and KV heads, ``"32/8"``; VX1021 when they do not divide."""
        q, _, kv = heads.partition("/")
        if not (q.isdecimal() and kv.isdecimal() and int(q) and int(kv)):
            raise BAD_SPEC.at(why=f"heads '{heads}' is not query/KV, as in 32/8")
        if int(q) % int(kv):
            raise BAD_SPEC.at(why=f"{q} query heads do not divide into {kv} KV heads")
        return cls(group=int(q) // int(kv), **rest)  # type: ignore[arg-type]

    def attrs(self) -> dict[str, int | str]:
        """As module attributes."""
        return asdict(self)
