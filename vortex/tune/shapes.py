"""The shapes that are tuned for: a batch, its KV heads, its tokens and the pages that are kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from vortex.budget import natural
from vortex.errors import BAD_SHAPES
from vortex.kinds.buckets import Bucket, bucket_of
from vortex.untrusted_json import JsonError, Range, parse, read


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """``batch`` requests of ``tokens`` tokens over ``kv_heads`` KV heads; ``kept`` pages a row, reserved ones too."""

    batch: Annotated[int, Range(1, 4096)]
    kv_heads: Annotated[int, Range(1, 1024)]
    tokens: Annotated[int, Range(1, 1 << 24)]
    kept: Annotated[int, Range(1, 1 << 20)]

    def __str__(self) -> str:
        return f"batch={self.batch},kv_heads={self.kv_heads},tokens={self.tokens},kept={self.kept}"

    def columns(self, page_size: int) -> int:
        """Pages of a row."""
        return -(-self.tokens // page_size)

    def within(self, page_size: int) -> Shape:
        """The same with no more pages kept than a row has."""
        return replace(self, kept=min(self.kept, self.columns(page_size)))

    def bucket(self, kind: str, page_size: int) -> Bucket:
        """The bucket of kernels of one kind."""
        return bucket_of(kind, self.batch * self.kv_heads, self.columns(page_size), self.kept)

    def to_json(self) -> dict[str, int]:
        return asdict(self)


PRESETS: dict[str, tuple[Shape, ...]] = {
    "tiny": (Shape(2, 2, 500, 12), Shape(4, 2, 1000, 20)),
    "bench": tuple(
        Shape(batch, 8, tokens, kept)
        for batch, tokens, kept in (
            (8, 32763, 30), (32, 32763, 30), (128, 8187, 30), (1, 32763, 30),
            (32, 8187, 30), (4, 32763, 64), (64, 32763, 64), (128, 32763, 64),
            (1, 131067, 30), (1, 131067, 256), (1, 131067, 1024), (8, 131067, 64),
            (1, 524283, 30), (1, 524283, 256), (1, 524283, 1024),
        )
    ),
}  # fmt: skip
"""``tiny`` is for tests; ``bench`` are the shapes that bench/ measures: 8 KV heads, page size 16, batches of 8K and 32K
tokens and a few long requests; those first that are spoken of most, for a session may be short."""


ONE = "batch=8,kv_heads=8,tokens=32768,kept=30"
NEEDS_ONE = f"one shape is needed, e.g. {ONE}"
TAKES_SEVERAL = (
    f"a preset ({', '.join(PRESETS)}), one shape such as {ONE}, or a file of JSON lines such as "
    '{"batch": 8, "kv_heads": 8, "tokens": 32768, "kept": 30}'
)
"""The ways out of VX8007."""


def read_shapes(what: str, hint: str = TAKES_SEVERAL) -> tuple[Shape, ...]:
    """The shapes of a preset, of a file of JSON lines, or of one ``batch=8,kv_heads=8,tokens=32768,kept=30``.

    Raises:
        VortexError: VX8007 when it is none of these.
    """
    if what in PRESETS:
        return PRESETS[what]
    path = Path(what)
    if not path.is_file():
        if "=" not in what:
            raise _bad(what, "is not a preset and no file", hint)
        pairs = dict(part.partition("=")[::2] for part in what.split(","))
        return (
            _shape({k.strip(): v if (n := natural(v.strip())) is None else n for k, v in pairs.items()}, what, hint),
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [_shape(parse(x), f"{what}:{i}", hint) for i, x in enumerate(lines, 1) if x.strip()]
    except (OSError, ValueError) as e:
        raise _bad(what, f"cannot be read: {str(e)[:100]}", hint) from None
    if not found:
        raise _bad(what, "holds no shape", hint)
    return tuple(dict.fromkeys(found))


def read_shape(text: str) -> Shape:
    """One shape, such as :data:`ONE`; raises as :func:`read_shapes`."""
    found = read_shapes(text, NEEDS_ONE)
    if len(found) != 1:
        raise _bad(text, f"are {len(found)} shapes; one is needed", NEEDS_ONE)
    return found[0]


def _shape(value: object, where: str, hint: str) -> Shape:
    try:
        return read(Shape, value)
    except JsonError as e:
        raise _bad(where, str(e), hint) from None


def _bad(where: str, why: str, hint: str) -> Exception:
    return BAD_SHAPES.at(where=where, why=why, hint=hint)
