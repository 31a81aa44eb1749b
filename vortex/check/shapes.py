"""Model shapes that a flow is tried at: every two settings meet in some shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

from vortex.spec import Spec

PAGES = (8, 16, 32, 64, 128)
TARGETS = ("cpu", "sm_90a", "sm_100a")
DENSE: Mapping[str, Sequence[object]] = {
    "page_size": PAGES,
    "head_dim": (64, 80, 96, 128, 256),
    "group": (1, 4, 5, 7, 8, 16),
    "stored": ("bf16", "f16", "f32", "bf16/fp8_e4m3"),
    "target": TARGETS,
}
LATENT: Mapping[str, Sequence[object]] = {
    "page_size": PAGES,
    "latent": ("512+64", "256+64", "128+64", "512+0", "256+128"),
    "group": (1, 8, 16, 20, 64, 128),
    "stored": ("bf16", "f16", "f32", "bf16/fp8_e4m3"),
    "target": TARGETS,
}
"""Settings by name; ``stored`` is the type of K, V and Q, and after a slash that of K and V alone."""
BLOCKS = (
    {"page_size": 64, "block_size": 16, "target": "cpu"},
    {"page_size": 128, "block_size": 32, "target": "sm_90a"},
    {"page_size": 24, "block_size": 8, "target": "sm_100a"},
)
"""What takes the place of these settings, for flows that tell pages from their blocks."""


def pairwise(settings: Mapping[str, Sequence[object]]) -> list[dict[str, object]]:
    """Few choices of one value for each setting, among which any two values of two settings meet.

    The same each time: in every round the choice that brings most new pairs together, the first of equals.
    """
    names = list(settings)
    missing = {(a, x, b, y) for a, b in combinations(names, 2) for x, y in product(settings[a], settings[b])}
    made: list[dict[str, object]] = []
    wide = sorted(names, key=lambda n: -len(settings[n]))[:2]
    rest = [n for n in names if n not in wide]
    for first in product(*(settings[n] for n in wide)):
        fixed = dict(zip(wide, first, strict=True))
        every = [{**fixed, **dict(zip(rest, x, strict=True))} for x in product(*(settings[n] for n in rest))]
        made.append(max(every, key=lambda c: len(_pairs(c, names) & missing)))
        missing -= _pairs(made[-1], names)
    while missing:
        a, x, b, y = min(missing, key=str)
        made.append({**made[0], a: x, b: y})
        missing -= _pairs(made[-1], names)
    return made


def _pairs(choice: Mapping[str, object], names: Sequence[str]) -> set[tuple[str, object, str, object]]:
    known = [n for n in names if n in choice]
    return {(a, choice[a], b, choice[b]) for a, b in combinations(known, 2)}


def spec_of(choice: Mapping[str, object]) -> Spec:
    """The model shape of a choice."""
    dtype, _, kv_dtype = str(choice["stored"]).partition("/")
    page, block = int(str(choice["page_size"])), int(str(choice.get("block_size", 0)))
    if "latent" in choice:
        heads = str(choice["group"])
        return Spec.of_latent(
            str(choice["latent"]), heads, page_size=page, block_size=block, dtype=dtype, kv_dtype=kv_dtype
        )
    dim, group = int(str(choice["head_dim"])), int(str(choice["group"]))
    return Spec(page_size=page, block_size=block, head_dim=dim, group=group, dtype=dtype, kv_dtype=kv_dtype)


def shown(spec: Spec) -> str:
    """A model shape in the words of a choice."""
    width = f"latent={spec.v_dim}+{spec.qk_rope_head_dim}" if spec.kv_lora_rank else f"head_dim={spec.head_dim}"
    stored = spec.dtype if spec.kv_dtype == spec.dtype else f"{spec.dtype}/{spec.kv_dtype}"
    blocks = f" block_size={spec.block_size}" if spec.page_blocks > 1 else ""
    return f"group={spec.group} page_size={spec.page_size}{blocks} {width} stored={stored}"
