"""What ``manifest.json`` of an artifact says, as data, and the reading of it from JSON that nobody vouches for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import PurePosixPath
from typing import Annotated

from vortex.budget import I32_MAX, Cap
from vortex.errors import CORRUPT_ARTIFACT, NOT_ARTIFACT
from vortex.ir.core import Decl
from vortex.ir.dialects.flow import STATES
from vortex.ir.types import DTYPES, TensorType
from vortex.kinds.buckets import Bound, Bucket, buckets_of
from vortex.kinds.kind import KINDS, arguments
from vortex.spec import Spec
from vortex.untrusted_json import Check, Choice, JsonError, Length, Partial, Pattern, Range, parse, read, shown

FORMAT = "vortex-artifact"
VERSION = 4


def _inside(path: str) -> bool:
    """Whether a path stays inside the artifact: relative, forward slashes, no ``.`` or ``..``."""
    wrong = "\\" in path or ":" in path or not {"", ".", ".."}.isdisjoint(path.split("/"))
    return not wrong and not PurePosixPath(path).is_absolute() and path != "manifest.json"


Name = Annotated[str, Length(1, 128), Check(lambda x: not any(c in " /\\'\"" for c in x), "a name")]
Short = Annotated[str, Length(0, 64)]
Hash = Annotated[str, Length(0, 128)]
Sha256 = Annotated[str, Pattern("[0-9a-f]{64}", "a SHA-256 in hex")]
File = Annotated[str, Length(1, 1024), Check(_inside, "a path inside the artifact")]
Dtype = Annotated[str, Choice(DTYPES, "an element type")]
Kind = Annotated[str, Choice(KINDS)]
Words = Annotated[int, Range(0, I32_MAX)]
Side = Annotated[int, Range(1, I32_MAX)]
Buckets = Annotated[tuple[tuple[Bound, Bound, Bound], ...], Length(0, 256)]
"""Of rows, columns and kept pages."""


@dataclass(frozen=True, slots=True)
class _Line:
    """What the runtime reads of a line of a schedule's table."""

    serves: Buckets = ()


@dataclass(frozen=True, slots=True)
class _Serving:
    """What the runtime reads of a schedule."""

    serves: Buckets = ()
    variant_of: Name = "-"
    table: Annotated[tuple[Annotated[_Line, Partial(more=True)], ...], Length(0, 256)] = ()


def _serves(schedule: Mapping[str, object]) -> bool:
    """True; raises :class:`JsonError` where what the runtime reads of it is wrong."""
    read(Annotated[_Serving, Partial(more=True)], schedule)
    return True


Schedule = Annotated[Mapping[str, object], Check(_serves, "a schedule")]


@dataclass(frozen=True, slots=True)
class FieldEntry:
    """A summary that the cache keeps per page and KV head: ``tile`` elements of storage type ``dtype``, those of its
    blocks one after another where a page has several and the summary is not one of the whole page.

    Elements of less than a byte are packed along the last axis, the first in the lowest bits.
    """

    name: Name
    tile: Annotated[tuple[Side, ...], Length(0, 8)]
    dtype: Dtype

    @property
    def packed(self) -> tuple[int, ...]:
        """The shape of a tile in memory: the last axis in bytes where elements share bytes."""
        return TensorType(DTYPES[self.dtype], self.tile).packed

    @property
    def tile_bytes(self) -> int:
        """Bytes per page and KV head."""
        return TensorType(DTYPES[self.dtype], self.tile).tile_bytes


@dataclass(frozen=True, slots=True)
class StateEntry:
    """State that each request keeps from step to step, per KV head: ``tile`` elements of storage type ``dtype``, for
    each of its pages (``per`` is "page"; those of its blocks where a page has several) or once ("request"); ``init``
    until they are first written.
    """

    name: Name
    tile: Annotated[tuple[Side, ...], Length(0, 8)]
    dtype: Dtype
    per: Annotated[str, Choice(STATES)]
    init: Short = "0.0"
    """As text, for JSON has no infinity."""

    def bytes(self, kv_heads: int, columns: int) -> int:
        """Of one slot, in one layer, for requests of up to ``columns`` pages."""
        return kv_heads * (columns if self.per == "page" else 1) * prod(self.tile) * DTYPES[self.dtype].bytes


@dataclass(frozen=True, slots=True)
class ConstantEntry:
    """A tensor that the flow captured, as little-endian bytes in ``file``."""

    name: Name
    file: File
    dtype: Dtype
    shape: Annotated[tuple[Words, ...], Length(0, 8)]


LEADING = {"model": (), "layer": ("layers",), "head": ("layers", "KV heads")}
"""The axes in front of a set of a parameter, by what there is one for."""


@dataclass(frozen=True, slots=True)
class ParameterEntry:
    """Numbers that are given at load: a set of this ``shape`` for the model, for each layer, or for each layer and KV
    head.
    """

    name: Name
    shape: Annotated[tuple[Side, ...], Length(0, 8)]
    dtype: Dtype
    per: Annotated[str, Choice(LEADING)]

    @classmethod
    def of(cls, d: Decl) -> ParameterEntry:
        """What a module declares as ``param``."""
        assert isinstance(d.type, TensorType)
        return cls(d.name, d.type.tile, str(d.type.dtype), str(d.attrs["per"]))

    def bytes(self, layers: int, kv_heads: int) -> int:
        """Of the sets that so many layers and KV heads take."""
        return prod(self.all_sets(layers, kv_heads)) * DTYPES[self.dtype].bytes

    def all_sets(self, layers: int, kv_heads: int) -> tuple[int, ...]:
        """The shape of the sets of so many layers and KV heads together."""
        sizes = {"layers": layers, "KV heads": kv_heads}
        return (*(sizes[axis] for axis in LEADING[self.per]), *self.shape)


def expected(entry: ParameterEntry) -> str:
    """The tensor that a file of weights must hold, in words."""
    return f"{entry.dtype}[{', '.join([*LEADING[entry.per], *map(str, entry.shape)])}]"


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """One function of a library.

    ``args`` are names of the calling convention in order; the workspace of a row has
    ``page_words * Pmax + row_words`` f32 words; ``digest`` is the structural hash of what it was made from.
    """

    name: Name
    kind: Kind
    symbol: Name
    args: tuple[Name, ...]
    page_words: Words = 0
    row_words: Words = 0
    schedule: Schedule = field(default_factory=dict)
    digest: Hash = ""
    resources: Mapping[str, object] = field(default_factory=dict)
    """On a GPU: registers, spills, shared memory, CTAs an SM holds, predicted limiter."""

    @property
    def variant_of(self) -> str:
        """The kernel that this one may be called instead of; its own name for one that is not a variant."""
        return str(self.schedule.get("variant_of", self.name))

    @property
    def serves(self) -> tuple[Bucket, ...]:
        """The buckets of shapes that this kernel was chosen for; none where it was chosen for all."""
        return buckets_of(self.schedule)

    @property
    def table(self) -> tuple[tuple[str, tuple[Bucket, ...]], ...]:
        """Of a kernel that looks its knobs up: where each line came from, and the buckets it is for."""
        lines = self.schedule.get("table", ())
        found = lines if isinstance(lines, list | tuple) else ()
        return tuple((str(x.get("from", "")), buckets_of(x)) for x in found if isinstance(x, dict))


@dataclass(frozen=True, slots=True)
class TargetEntry:
    """What one target has: its library, the processor it is for, and its kernels in launch order."""

    library: File
    kernels: tuple[KernelEntry, ...]
    mcpu: Short = ""
    machine: Short = ""
    features: tuple[Name, ...] = ()


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file beside the manifest: size in bytes and SHA-256."""

    size: Annotated[int, Range(0, 2**48)]
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of ``manifest.json``; ``files`` is filled in when the artifact is written.

    ``provenance`` says how and when the artifact was made; nothing else in it depends on that, and
    :attr:`digest` leaves it out.
    """

    flow: Name
    source: Hash
    spec: Spec
    fields: tuple[FieldEntry, ...]
    constants: tuple[ConstantEntry, ...]
    targets: Mapping[Name, TargetEntry]
    states: tuple[StateEntry, ...] = ()
    parameters: tuple[ParameterEntry, ...] = ()
    cap: Cap = field(default_factory=Cap)
    """What bounds the pages of a selection."""
    shortlist: Words = 0
    """The pages among which the budget chooses, where they are those of a shortlist; else 0."""
    toolchain: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[File, FileEntry] = field(default_factory=dict)

    def facts(self) -> dict[str, str]:
        """What an artifact is, for people: shape, summaries and kernels in a line or several each."""
        s = self.spec
        kernels = [f"{name}: {', '.join(k.name for k in target.kernels)}" for name, target in self.targets.items()]
        return {
            "shape": f"page size {s.page_size}, {s}, {s.dtype}",
            "fields": "\n".join(f"{f.name}: {f.dtype}{list(f.tile)}" for f in self.fields),
            "state": "\n".join(f"{x.name}: {x.dtype}{list(x.tile)} per {x.per}" for x in self.states),
            "parameters": ", ".join(p.name for p in self.parameters),
            "kernels": "\n".join(kernels),
            "digest": self.digest[:16],
        }

    def to_json(self) -> dict[str, object]:
        """As ``manifest.json`` has it, digest included."""
        return {"format": FORMAT, "version": VERSION, "digest": self.digest, **asdict(self)}

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest without its provenance, and so of every file, whose hashes it holds."""
        body = asdict(self)
        del body["provenance"]
        text = json.dumps([VERSION, body], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def parse_manifest(text: bytes, path: str) -> Manifest:
    """The manifest that ``text`` holds; ``path`` is the artifact's, for messages.

    Raises:
        VortexError: VX5001 when it is none of this format and version, VX5002 when it is damaged.
    """
    try:
        data = parse(text)
    except JsonError as error:
        raise NOT_ARTIFACT.at(path=path, why=f"manifest.json: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise NOT_ARTIFACT.at(path=path, why="manifest.json is of another program")
    if data.get("version") != VERSION or isinstance(data["version"], bool):
        got = shown(data.get("version"))
        raise NOT_ARTIFACT.at(path=path, why=f"it has format version {got}; this vortex reads version {VERSION}")
    try:
        made = read(Manifest, {k: v for k, v in data.items() if k not in ("format", "version", "digest")})
        digest = made.digest
        _cross_check(made)
    except JsonError as error:
        raise CORRUPT_ARTIFACT.at(path=path, why=f"manifest.json: {error}") from None
    except RecursionError:
        raise CORRUPT_ARTIFACT.at(path=path, why="manifest.json is nested too deeply") from None
    if data.get("digest") != digest:
        raise CORRUPT_ARTIFACT.at(path=path, why="manifest.json was changed: its digest does not match")
    return made


def _cross_check(made: Manifest) -> None:
    """Names mean something and files are listed."""
    known = set(arguments())
    kept = (("field", made.fields), ("state", made.states))
    for prefix, entries in (*kept, ("const", made.constants), ("param", made.parameters)):
        for entry in entries:
            arg = f"{prefix}.{entry.name}"
            if arg in known:
                raise _wrong(f"a {prefix}", "a name of its own", entry.name)
            known.add(arg)
    for f in made.fields:
        if (per := DTYPES[f.dtype].per_byte) > 1 and (not f.tile or f.tile[-1] % per):
            raise _wrong(f"fields: {f.name}", f"a last axis that packs {per} of {f.dtype} a byte", list(f.tile))
    for c in made.constants:
        size = made.files[c.file].size if c.file in made.files else -1
        if size != prod(c.shape) * DTYPES[c.dtype].bytes:
            raise _wrong(f"constants: {c.name}", f"a file of {c.dtype}{list(c.shape)}", c.file)
    for name, target in made.targets.items():
        if target.library not in made.files:
            raise _wrong(f"targets.{name}.library", "a listed file", target.library)
        kinds = {k.name: k.kind for k in target.kernels if k.variant_of == k.name}
        for kernel in target.kernels:
            if kinds.get(kernel.variant_of) != kernel.kind:
                where = f"targets.{name}: kernel {kernel.name}: variant_of"
                raise _wrong(where, f"the name of another {kernel.kind} kernel", kernel.variant_of)
            if unknown := [a for a in kernel.args if a not in known]:
                raise _wrong(f"targets.{name}: kernel {kernel.name}", "an argument of the convention", unknown[0])


def _wrong(where: str, needed: str, got: object) -> JsonError:
    return JsonError(needed, got).within(where)
