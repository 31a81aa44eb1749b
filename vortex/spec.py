"""The model shape a flow is compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from vortex.errors import BAD_SPEC
from vortex.ir.types import dtype

REQUIRED = ("page_size", "head_dim", "group", "dtype")
"""Module attributes that every model shape has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Constants of one compiled artifact; what ``create_cache`` is given.

    ``group`` is query heads per KV head; ``dtype`` is the element type of Q, K, V and, unless a field
    says otherwise, of summaries. With a ``kv_lora_rank`` the cache is that of multi-head latent attention (MLA): one
    latent row of ``head_dim`` numbers a token, compressed KV and then rotary key, for all ``group`` heads; the whole
    row is the key of absorbed queries, its first ``kv_lora_rank`` numbers are the value.

    Raises:
        VortexError: VX1021 when a number is not positive or the dtype unknown.
    """

    page_size: int = 16
    head_dim: int = 128
    group: int = 4
    dtype: str = "bf16"
    kv_lora_rank: int = 0

    def __post_init__(self) -> None:
        for name in ("page_size", "head_dim", "group"):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 1:
                raise BAD_SPEC.at(why=f"{name} is {number!r}, a positive integer is needed")
        rank = self.kv_lora_rank
        if not isinstance(rank, int) or not 0 <= rank <= self.head_dim:
            raise BAD_SPEC.at(why=f"kv_lora_rank is {rank!r}; 0 (no MLA) to head_dim, {self.head_dim}, is needed")
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

    @classmethod
    def of_latent(cls, latent: str = "512+64", heads: int | str = 128, **rest: object) -> Spec:
        """MLA from the parts of a latent row, compressed KV + rotary key, and the query heads that share it.

        Raises:
            VortexError: VX1021 when ``latent`` is not two numbers, or ``heads`` none (``20`` and ``20/1`` are 20).
        """
        rank, plus, rope = latent.partition("+")
        if not (plus and rank.isdecimal() and rope.isdecimal() and int(rank)):
            raise BAD_SPEC.at(why=f"latent '{latent}' is not compressed KV + rotary key, as in 512+64")
        q, slash, kv = str(heads).partition("/")
        if not q.isdecimal() or not int(q) or (slash and kv != "1"):
            raise BAD_SPEC.at(why=f"heads '{heads}' is not a number of query heads; all share one latent row, as in 20")
        dim = int(rank) + int(rope)
        return cls(head_dim=dim, group=int(q), kv_lora_rank=int(rank), **rest)  # type: ignore[arg-type]

    @classmethod
    def of_attrs(cls, attrs: Mapping[str, object]) -> Spec:
        """From module attributes; KeyError when one that has to be there is not."""
        optional = {"kv_lora_rank": attrs["kv_lora_rank"]} if "kv_lora_rank" in attrs else {}
        return cls(**{n: attrs[n] for n in REQUIRED}, **optional)  # type: ignore[arg-type]

    @property
    def v_dim(self) -> int:
        """Elements of a value, and of a head's output."""
        return self.kv_lora_rank or self.head_dim

    @property
    def qk_rope_head_dim(self) -> int:
        """Elements of the rotary key at the end of a latent row; 0 without MLA."""
        return self.head_dim - self.v_dim

    @property
    def pools(self) -> tuple[str, ...]:
        """What the cache holds of a page, as flows and kernels call it."""
        return ("latent",) if self.kv_lora_rank else ("k", "v")

    def __str__(self) -> str:
        if not self.kv_lora_rank:
            return f"head dim {self.head_dim}, {self.group} query heads per KV head"
        return f"latent {self.kv_lora_rank}+{self.qk_rope_head_dim}, {self.group} query heads"

    def attrs(self) -> dict[str, int | str]:
        """As module attributes; without ``kv_lora_rank`` where there is none."""
        made = asdict(self)
        if not self.kv_lora_rank:
            del made["kv_lora_rank"]
        return made
