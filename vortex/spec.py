"""The model shape a flow is compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from vortex.budget import integer, natural
from vortex.errors import BAD_SPEC
from vortex.untrusted_json import Range

REQUIRED = ("page_size", "head_dim", "group", "dtype")
"""Module attributes that every model shape has."""

MOST = 1 << 16
"""The most tokens of a page, numbers of a head and heads of a group; no model has as many by far."""

Count = Annotated[int, Range(0, MOST)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Constants of one compiled artifact; what ``create_cache`` is given.

    ``group`` is query heads per KV head; ``dtype`` is the element type of Q, K, V and, unless a field
    says otherwise, of summaries. ``kv_dtype`` is that of K and V in the cache where it is another: with "fp8_e4m3" a
    number is kept as x / scale in one byte, clamped to +-448 and rounded to nearest even, and read as byte * scale,
    where K and V of each layer have a scale.

    ``block_size`` is the tokens of what is summarised and selected, where that is a part of a page. A flow knows its
    blocks alone, and calls them pages (:attr:`in_blocks`); so do budgets and selections.

    With a ``kv_lora_rank`` the cache is that of multi-head latent attention (MLA): one latent row of ``head_dim``
    numbers a token, compressed KV and then rotary key, for all ``group`` heads; the whole row is the key of absorbed
    queries, its first ``kv_lora_rank`` numbers are the value. ``kv_dtype`` is that of the rows, with one scale a layer.

    Raises:
        VortexError: VX1021 when a number is not positive or larger than 65536, or a dtype unknown.
    """

    page_size: Count = 16
    head_dim: Count = 128
    group: Count = 4
    dtype: str = "bf16"
    kv_lora_rank: Count = 0
    kv_dtype: str = ""
    """As ``dtype`` unless given."""
    budget_table: bool = False
    """Whether rows have budgets of their own, by layer and KV head: ``Budget(table=...)``."""
    block_size: Count = 0
    """As ``page_size`` unless given."""
    request_budgets: bool = False
    """Whether requests of a step may have budgets of their own: ``Decoder.plan(..., budgets=)``."""

    def __post_init__(self) -> None:
        for name in ("page_size", "head_dim", "group"):
            number = integer(getattr(self, name))
            if number is None or not 1 <= number <= MOST:
                why = f"{name} is {getattr(self, name)!r}, a positive integer of at most {MOST} is needed"
                raise BAD_SPEC.at(why=why)
            object.__setattr__(self, name, number)
        block = integer(self.block_size)
        if block is None or not 0 <= block <= self.page_size or (block and self.page_size % block):
            why = f"block_size is {self.block_size!r}; a divisor of the page size, {self.page_size}, is needed"
            raise BAD_SPEC.at(why=why)
        object.__setattr__(self, "block_size", block or self.page_size)
        rank = integer(self.kv_lora_rank)
        if rank is None or not 0 <= rank <= self.head_dim:
            raise BAD_SPEC.at(
                why=f"kv_lora_rank is {self.kv_lora_rank!r}; 0 (no MLA) to head_dim, {self.head_dim}, is needed"
            )
        object.__setattr__(self, "kv_lora_rank", rank)
        if self.dtype not in ("bf16", "f16", "f32"):
            raise BAD_SPEC.at(why=f"queries in {self.dtype} are not supported; use bf16, f16 or f32")
        if not self.kv_dtype:
            object.__setattr__(self, "kv_dtype", self.dtype)
        if self.kv_dtype not in (self.dtype, "fp8_e4m3") or (self.scaled and self.dtype == "f32"):
            may = "f32" if self.dtype == "f32" else f"{self.dtype} or fp8_e4m3"
            raise BAD_SPEC.at(why=f"K and V in {self.kv_dtype} under queries in {self.dtype}: {may} is supported")
        for name in ("budget_table", "request_budgets"):
            object.__setattr__(self, name, bool(getattr(self, name)))

    @classmethod
    def of_heads(cls, heads: str, **rest: object) -> Spec:
        """From query and KV heads, ``"32/8"``; VX1021 when they do not divide."""
        q, kv = map(natural, heads.partition("/")[::2])
        if not q or not kv:
            raise BAD_SPEC.at(why=f"heads '{heads}' is not query/KV, as in 32/8")
        if q % kv:
            raise BAD_SPEC.at(why=f"{q} query heads do not divide into {kv} KV heads")
        return cls(group=q // kv, **rest)  # type: ignore[arg-type]

    @classmethod
    def of_latent(cls, latent: str = "512+64", heads: int | str = 128, **rest: object) -> Spec:
        """MLA from the parts of a latent row, compressed KV + rotary key, and the query heads that share it.

        Raises:
            VortexError: VX1021 when ``latent`` is not two numbers, or ``heads`` none (``20`` and ``20/1`` are 20).
        """
        rank, rope = map(natural, latent.partition("+")[::2])
        if not rank or rope is None:
            raise BAD_SPEC.at(why=f"latent '{latent}' is not compressed KV + rotary key, as in 512+64")
        all_heads, slash, kv = str(heads).partition("/")
        q = natural(all_heads)
        if not q or (slash and kv != "1"):
            raise BAD_SPEC.at(why=f"heads '{heads}' is not a number of query heads; all share one latent row, as in 20")
        return cls(head_dim=rank + rope, group=q, kv_lora_rank=rank, **rest)  # type: ignore[arg-type]

    @classmethod
    def of_attrs(cls, attrs: Mapping[str, object]) -> Spec:
        """From module attributes; KeyError when one that has to be there is not."""
        names = ("kv_lora_rank", "kv_dtype", "budget_table", "block_size", "request_budgets")
        optional = {n: attrs[n] for n in names if n in attrs}
        return cls(**{n: attrs[n] for n in REQUIRED}, **optional)  # type: ignore[arg-type]

    @property
    def page_blocks(self) -> int:
        """Blocks of a page."""
        return self.page_size // self.block_size

    @property
    def in_blocks(self) -> Spec:
        """The same with blocks for pages: what a flow is given."""
        return replace(self, page_size=self.block_size)

    @property
    def scaled(self) -> bool:
        """Whether K and V, or latent rows, are kept as multiples of a scale."""
        return self.kv_dtype == "fp8_e4m3"

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
        """As module attributes; without what is left out or follows from the others."""
        made = asdict(self)
        if not self.kv_lora_rank:
            del made["kv_lora_rank"]
        if self.kv_dtype == self.dtype:
            del made["kv_dtype"]
        for name in ("budget_table", "request_budgets"):
            if not made[name]:
                del made[name]
        if self.block_size == self.page_size:
            del made["block_size"]
        return made
