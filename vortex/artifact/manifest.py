"""What ``manifest.json`` of an artifact says, as data, and the reading of it from JSON that nobody vouches for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite, prod
from pathlib import PurePosixPath
from typing import NoReturn, TypeVar

from vortex.budget import I32_MAX
from vortex.errors import CORRUPT_ARTIFACT, NOT_ARTIFACT, VortexError
from vortex.ir.types import DTYPES
from vortex.kinds.buckets import LIMIT, Bucket
from vortex.kinds.kind import KINDS, arguments
from vortex.spec import Spec

FORMAT = "vortex-artifact"
VERSION = 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FieldEntry:
    """A summary that the cache keeps per page and KV head: ``tile`` elements of storage type ``dtype``."""

    name: str
    tile: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class ConstantEntry:
    """A tensor that the flow captured, as little-endian bytes in ``file``."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """One function of a library.

    ``args`` are names of the calling convention in order; the workspace of a row has
    ``page_words * Pmax + row_words`` f32 words; ``digest`` is the structural hash of what it was made from.
    """

    name: str
    kind: str
    symbol: str
    args: tuple[str, ...]
    page_words: int = 0
    row_words: int = 0
    schedule: Mapping[str, object] = field(default_factory=dict)
    digest: str = ""
    resources: Mapping[str, object] = field(default_factory=dict)
    """On a GPU: registers, spills, shared memory, CTAs an SM holds, predicted limiter."""

    @property
    def variant_of(self) -> str:
        """The kernel that this one may be called instead of; its own name for one that is no variant."""
        return str(self.schedule.get("variant_of", self.name))

    @property
    def serves(self) -> tuple[Bucket, ...]:
        """The buckets of shapes that this kernel was chosen for; none where it was chosen for all."""
        return _buckets(self.schedule)

    @property
    def table(self) -> tuple[tuple[str, tuple[Bucket, ...]], ...]:
        """Of a kernel that looks its knobs up: where each line came from, and the buckets it is for."""
        lines = self.schedule.get("table", ())
        found = lines if isinstance(lines, list | tuple) else ()
        return tuple((str(x.get("from", "")), _buckets(x)) for x in found if isinstance(x, dict))


def _buckets(schedule: Mapping[str, object]) -> tuple[Bucket, ...]:
    found = schedule.get("serves", ())
    return tuple(Bucket(*numbers) for numbers in found) if isinstance(found, list | tuple) else ()


@dataclass(frozen=True, slots=True)
class TargetEntry:
    """What one target has: its library, the processor it is for, and its kernels in launch order."""

    library: str
    kernels: tuple[KernelEntry, ...]
    mcpu: str = ""
    machine: str = ""
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file beside the manifest: size in bytes and SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of ``manifest.json``; ``files`` is filled in when the artifact is written.

    ``provenance`` says how and when the artifact was made; nothing else in it depends on that, and
    :attr:`digest` leaves it out.
    """

    flow: str
    source: str
    spec: Spec
    fields: tuple[FieldEntry, ...]
    constants: tuple[ConstantEntry, ...]
    targets: Mapping[str, TargetEntry]
    toolchain: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)

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
        data = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise NOT_ARTIFACT.at(path=path, why=f"manifest.json is no JSON ({_short(error)})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise NOT_ARTIFACT.at(path=path, why="manifest.json is of another program")
    if data.get("version") != VERSION or isinstance(data["version"], bool):
        got = _short(data.get("version"))
        raise NOT_ARTIFACT.at(path=path, why=f"it has format version {got}; this vortex reads version {VERSION}")
    return _Reader(path).manifest(data)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _short(value: object) -> str:
    try:
        text = ascii(str(value) if isinstance(value, Exception) else value)
    except (ValueError, RecursionError):  # an integer of thousands of digits has no text
        return f"some {type(value).__name__}"
    text = text.strip("'") if isinstance(value, Exception) else text
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True, slots=True)
class _Reader:
    """Takes JSON apart; ``where`` is the way to a value, as in ``targets.cpu.kernels[0].args``."""

    path: str

    def fail(self, where: str, needed: str, got: object) -> VortexError:
        return CORRUPT_ARTIFACT.at(path=self.path, why=f"manifest.json: {where} is {_short(got)}; {needed} is needed")

    def record(self, value: object, where: str, keys: tuple[str, ...]) -> dict[str, object]:
        if not isinstance(value, dict):
            raise self.fail(where, "an object", value)
        if value.keys() != set(keys):
            odd = sorted(value.keys() ^ set(keys))
            raise CORRUPT_ARTIFACT.at(
                path=self.path, why=f"manifest.json: {where} has missing or unknown keys: {_short(odd)}"
            )
        return value

    def text(self, value: object, where: str, limit: int = 4096) -> str:
        if not isinstance(value, str) or len(value) > limit or not value.isprintable():
            raise self.fail(where, "a printable string", value)
        return value

    def name(self, value: object, where: str) -> str:
        text = self.text(value, where, 128)
        if not text or any(c in text for c in " /\\'\""):
            raise self.fail(where, "a name", value)
        return text

    def hex(self, value: object, where: str) -> str:
        text = self.text(value, where, 64)
        if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
            raise self.fail(where, "a SHA-256 in hex", value)
        return text

    def file(self, value: object, where: str) -> str:
        """A path inside the artifact: relative, forward slashes, no ``.`` or ``..``."""
        text = self.text(value, where, 1024)
        parts = text.split("/")
        if not text or "\\" in text or ":" in text or not {"", ".", ".."}.isdisjoint(parts):
            raise self.fail(where, "a path inside the artifact", value)
        if PurePosixPath(text).is_absolute() or text == "manifest.json":
            raise self.fail(where, "a path inside the artifact", value)
        return text

    def integer(self, value: object, where: str, least: int = 0, most: int = I32_MAX) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.fail(where, f"an integer from {least} to {most}", value)
        return value

    def dtype(self, value: object, where: str) -> str:
        text = self.text(value, where, 32)
        if text not in DTYPES:
            raise self.fail(where, "an element type", value)
        return text

    def items(self, value: object, where: str, item: Callable[[object, str], T], most: int = 4096) -> tuple[T, ...]:
        if not isinstance(value, list) or len(value) > most:
            raise self.fail(where, f"a list of at most {most} entries", value)
        return tuple(item(x, f"{where}[{i}]") for i, x in enumerate(value))

    def entries(
        self, value: object, where: str, key: Callable[[object, str], str], item: Callable[[object, str], T]
    ) -> dict[str, T]:
        if not isinstance(value, dict):
            raise self.fail(where, "an object", value)
        return {key(k, f"a key of {where}"): item(x, f"{where}.{_short(k)}") for k, x in value.items()}

    def json(self, value: object, where: str) -> object:
        """Any JSON whose strings are printable and whose numbers are finite."""
        if isinstance(value, list):
            return list(self.items(value, where, self.json))
        if isinstance(value, dict):
            return self.entries(value, where, self.text, self.json)
        if isinstance(value, str):
            return self.text(value, where, 1 << 16)
        if isinstance(value, float) and not isfinite(value):
            raise self.fail(where, "a finite number", value)
        if isinstance(value, int):
            return value if isinstance(value, bool) else self.integer(value, where, -(2**63), 2**63 - 1)
        return value

    def shape(self, value: object, where: str) -> tuple[int, ...]:
        return self.items(value, where, self.integer, 8)

    def tile(self, value: object, where: str) -> tuple[int, ...]:
        return self.items(value, where, lambda x, w: self.integer(x, w, 1), 8)

    def spec(self, value: object, where: str) -> Spec:
        d = self.record(value, where, ("page_size", "head_dim", "group", "dtype", "kv_lora_rank", "kv_dtype"))
        sizes = {k: self.integer(d[k], f"{where}.{k}", 1) for k in ("page_size", "head_dim", "group")}
        sizes["kv_lora_rank"] = self.integer(d["kv_lora_rank"], f"{where}.kv_lora_rank")
        try:
            dtype, kv_dtype = (self.dtype(d[k], f"{where}.{k}") for k in ("dtype", "kv_dtype"))
            return Spec(**sizes, dtype=dtype, kv_dtype=kv_dtype)
        except VortexError:
            raise self.fail(where, "a model shape", value) from None

    def field(self, value: object, where: str) -> FieldEntry:
        d = self.record(value, where, ("name", "tile", "dtype"))
        return FieldEntry(
            self.name(d["name"], f"{where}.name"),
            self.tile(d["tile"], f"{where}.tile"),
            self.dtype(d["dtype"], f"{where}.dtype"),
        )

    def constant(self, value: object, where: str) -> ConstantEntry:
        d = self.record(value, where, ("name", "file", "dtype", "shape"))
        return ConstantEntry(
            self.name(d["name"], f"{where}.name"),
            self.file(d["file"], f"{where}.file"),
            self.dtype(d["dtype"], f"{where}.dtype"),
            self.shape(d["shape"], f"{where}.shape"),
        )

    def bucket(self, value: object, where: str) -> Bucket:
        found = self.items(value, where, lambda x, w: self.integer(x, w, 0, LIMIT), 3)
        if len(found) != 3:
            raise self.fail(where, "a bucket (rows, columns, kept pages)", value)
        return Bucket(*found)

    def serving(self, value: object, where: str) -> None:
        """What a schedule, or a line of its table, says of the shapes that it is for."""
        if not isinstance(value, dict):
            raise self.fail(where, "an object", value)
        self.items(value.get("serves", []), f"{where}.serves", self.bucket, 256)

    def kernel(self, value: object, where: str) -> KernelEntry:
        d = self.record(
            value,
            where,
            ("name", "kind", "symbol", "args", "page_words", "row_words", "schedule", "digest", "resources"),
        )
        if str(d["kind"]) not in KINDS:
            raise self.fail(f"{where}.kind", f"one of {', '.join(KINDS)}", d["kind"])
        if isinstance(d["schedule"], dict):
            self.serving(d["schedule"], f"{where}.schedule")
            self.items(d["schedule"].get("table", []), f"{where}.schedule.table", self.serving, 256)
            self.name(d["schedule"].get("variant_of", "-"), f"{where}.schedule.variant_of")
        return KernelEntry(
            self.name(d["name"], f"{where}.name"),
            str(d["kind"]),
            self.name(d["symbol"], f"{where}.symbol"),
            self.items(d["args"], f"{where}.args", self.name),
            self.integer(d["page_words"], f"{where}.page_words"),
            self.integer(d["row_words"], f"{where}.row_words"),
            self.entries(d["schedule"], f"{where}.schedule", self.text, self.json),
            self.text(d["digest"], f"{where}.digest", 128),
            self.entries(d["resources"], f"{where}.resources", self.text, self.json),
        )

    def target(self, value: object, where: str) -> TargetEntry:
        d = self.record(value, where, ("library", "kernels", "mcpu", "machine", "features"))
        return TargetEntry(
            self.file(d["library"], f"{where}.library"),
            self.items(d["kernels"], f"{where}.kernels", self.kernel),
            self.text(d["mcpu"], f"{where}.mcpu", 64),
            self.text(d["machine"], f"{where}.machine", 64),
            self.items(d["features"], f"{where}.features", self.name),
        )

    def file_entry(self, value: object, where: str) -> FileEntry:
        d = self.record(value, where, ("size", "sha256"))
        return FileEntry(self.integer(d["size"], f"{where}.size", 0, 2**48), self.hex(d["sha256"], f"{where}.sha256"))

    def manifest(self, data: dict[str, object]) -> Manifest:
        keys = "format version digest flow source spec fields constants targets toolchain provenance files"
        d = self.record(data, "the manifest", tuple(keys.split()))
        try:
            made = Manifest(
                flow=self.name(d["flow"], "flow"),
                source=self.text(d["source"], "source", 128),
                spec=self.spec(d["spec"], "spec"),
                fields=self.items(d["fields"], "fields", self.field),
                constants=self.items(d["constants"], "constants", self.constant),
                targets=self.entries(d["targets"], "targets", self.name, self.target),
                toolchain=self.entries(d["toolchain"], "toolchain", self.text, self.text),
                provenance=self.entries(d["provenance"], "provenance", self.text, self.json),
                files=self.entries(d["files"], "files", self.file, self.file_entry),
            )
            digest = made.digest
        except RecursionError:
            raise CORRUPT_ARTIFACT.at(path=self.path, why="manifest.json is nested too deeply") from None
        self.cross_check(made)
        if d["digest"] != digest:
            raise CORRUPT_ARTIFACT.at(path=self.path, why="manifest.json was changed: its digest does not match")
        return made

    def cross_check(self, made: Manifest) -> None:
        """Names mean something and files are listed."""
        known = set(arguments())
        for prefix, entries in (("field", made.fields), ("const", made.constants)):
            for entry in entries:
                arg = f"{prefix}.{entry.name}"
                if arg in known:
                    raise self.fail(f"a {prefix}", "a name of its own", entry.name)
                known.add(arg)
        for c in made.constants:
            size = made.files[c.file].size if c.file in made.files else -1
            if size != prod(c.shape) * DTYPES[c.dtype].bytes:
                raise self.fail(f"constants: {c.name}", f"a file of {c.dtype}{list(c.shape)}", c.file)
        for name, target in made.targets.items():
            if target.library not in made.files:
                raise self.fail(f"targets.{name}.library", "a listed file", target.library)
            kinds = {k.name: k.kind for k in target.kernels if k.variant_of == k.name}
            for kernel in target.kernels:
                if kinds.get(kernel.variant_of) != kernel.kind:
                    where = f"targets.{name}: kernel {kernel.name}: variant_of"
                    raise self.fail(where, f"the name of another {kernel.kind} kernel", kernel.variant_of)
                if unknown := [a for a in kernel.args if a not in known]:
                    raise self.fail(f"targets.{name}: kernel {kernel.name}", "an argument of the convention", unknown)
