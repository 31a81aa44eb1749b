"""Files of tensors in the format of safetensors: a header in JSON, then bytes. Read without copying, written whole.

u64 length of the header | {"name": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [0, 16]}, ..} | data
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated

import torch

from vortex.errors import NO_SUCH_FILE, WRONG_PARAMETERS, writing
from vortex.untrusted_json import Choice, JsonError, Length, Range, parse, read

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_HEADER = 16 << 20
"""Bytes of a header that are read; that of a model's whole weights has fewer."""
Bytes = Annotated[int, Range(0, 2**60)]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the header says of one tensor."""

    dtype: Annotated[str, Choice(DTYPES)]
    shape: Annotated[tuple[Annotated[int, Range(0, 2**40)], ...], Length(0, 8)]
    data_offsets: tuple[Bytes, Bytes]


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, on the CPU; their memory is the file's, mapped privately.

    Raises:
        VortexError: VX7002 for a file that cannot be read, VX6020 for one of another format.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))[0]
            if length > min(MOST_HEADER, size - 8):
                raise _bad(path, "it does not begin with a header of safetensors")
            header = file.read(length)
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[8 + length :]
    except OSError as error:
        raise NO_SUCH_FILE.at(path=path, why=f"cannot be read: {error.strerror or error}") from None
    try:
        listed = parse(header)
        if not isinstance(listed, dict):
            raise JsonError("an object", listed)
        listed.pop("__metadata__", None)
        return {name: _tensor(data, read(_Entry, entry), name) for name, entry in listed.items()}
    except JsonError as error:
        raise _bad(path, f"its header: {error}") from None


def _tensor(data: torch.Tensor, entry: _Entry, name: str) -> torch.Tensor:
    dtype, (begin, end) = DTYPES[entry.dtype], entry.data_offsets
    if end > data.numel() or end - begin != prod(entry.shape) * dtype.itemsize:
        raise JsonError(f"{prod(entry.shape) * dtype.itemsize} bytes inside the file", [begin, end]).within(name)
    mine = data[begin:end]
    if mine.data_ptr() % dtype.itemsize:
        mine = mine.clone()  # a view of another type begins on a multiple of its size
    return mine.view(dtype).reshape(entry.shape)


def write_safetensors(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write ``tensors`` as a file that ``safetensors`` reads; VX7004 when the disk refuses."""
    header, parts, at = {}, [], 0
    for name, x in tensors.items():
        raw = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""
        header[name] = {"dtype": NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [at, at + len(raw)]}
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data begins on a multiple of 8
    with writing(path):
        Path(path).write_bytes(b"".join([struct.pack("<Q", len(text)), text, *parts]))


def _bad(path: Path, why: str) -> Exception:
    hint = "write it with safetensors.torch.save_file({name: tensor, ...}, path)"
    return WRONG_PARAMETERS.at(where=f"'{path}'", why=why, hint=hint)
