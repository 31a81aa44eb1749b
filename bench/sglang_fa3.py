"""FlashAttention 3 of sglang-kernel for one shape, 1.1 GB cut to what fits beside the bundle.

    python3 bench/sglang_fa3.py STAGE/wheels/sglang_kernel-0.4.5-*.whl OUT/fa3.txz

The wheel's ``flash_ops`` has machine code of every head dim, type and generation. CUDA loads a translation unit's code
when a kernel of it is called first, so what others have is overwritten with zeros, which take no room when packed:
what stays is sm_90's for heads of 128 in bf16, without soft caps, and what all shapes share. Sizes and headers stay as
they are, so that the file's own tables hold.

    python3 bench/sglang_fa3.py --try SITE/sgl_kernel        # on the GPU machine: loads there, and attends rightly
"""

from __future__ import annotations

import argparse
import importlib.util
import mmap
import re
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

NAME = "sgl_kernel/flash_ops.abi3.so"
KEPT = re.compile(r"flash_fwd_hdim128_bf16_(?!.*softcap).*sm90|flash_fwd_combine|flash_prepare_scheduler")
SOURCE = re.compile(rb"_INTERNAL_[0-9a-f]{8}_\d+_([a-z0-9_]+?)_cu_[0-9a-f]{8}")
"""How names of a translation unit's own tell its file."""
ARCHITECTURE = 90
FATBIN = 0xBA55ED50


def section(data: mmap.mmap, name: bytes) -> tuple[int, int]:
    """Offset and size of a section of a 64-bit ELF file."""
    table, size, count, names = struct.unpack_from("<Q10xHHH", data, 40)
    headers = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count)]
    words = headers[names][4]
    for label, _, _, _, offset, length in headers:
        if data[words + label : words + label + len(name) + 1] == name + b"\0":
            return offset, length
    raise SystemExit(f"no section {name.decode()}")


def units(data: mmap.mmap, begin: int, size: int) -> Iterator[tuple[str, list[tuple[int, int, int]]]]:
    """Of each translation unit its file, and architecture, offset and size of each of its images."""
    at = begin
    while at < begin + size - 16:
        magic, _, header, length = struct.unpack_from("<IHHQ", data, at)
        if magic != FATBIN:
            at += 8  # they are aligned
            continue
        entry, end, images = at + header, at + header + length, []
        while entry < end:
            skip, taken, architecture = struct.unpack_from("<4xIQ12xI", data, entry)
            images.append((architecture, entry + skip, taken))
            entry += skip + taken
        found = SOURCE.search(data, at, end)
        yield found.group(1).decode() if found else "", images
        at = end


def slim(path: Path) -> int:
    """Overwrites what is not needed; the bytes that stay."""
    kept = 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for source, images in units(data, *section(data, b".nv_fatbin")):
            for architecture, offset, size in images:
                if architecture == ARCHITECTURE and KEPT.fullmatch(source):
                    kept += size
                else:
                    data[offset : offset + size] = bytes(size)
    return kept


def attempt(package: Path) -> None:
    """A paged decode step and a prompt beside torch's own attention."""
    import torch

    spec = importlib.util.spec_from_file_location("flash_ops", package / Path(NAME).name)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    torch.manual_seed(0)
    batch, length, page, heads, dim = 2, 1000, 16, 8, 128
    pages = -(-length // page)
    cache = torch.randn(2, batch * pages, page, heads, dim, device="cuda", dtype=torch.bfloat16)
    table = torch.randperm(batch * pages, device="cuda").int().view(batch, pages)
    lengths = torch.full((batch,), length, device="cuda", dtype=torch.int32)
    k, v = (x[table.long()].flatten(1, 2)[:, :length].transpose(1, 2).float() for x in cache)
    for new in (1, 300):
        q = torch.randn(batch * new, 2 * heads, dim, device="cuda", dtype=torch.bfloat16)
        starts = torch.arange(batch + 1, device="cuda", dtype=torch.int32) * new
        words = [
            q, cache[0], cache[1], None, None, None, None, starts, None, None, None, lengths, new, None, table, None,
            None, None, None, None, None, None, None, dim**-0.5, True, -1, -1, 0, 0.0, True, None, 0, None, 0, None,
            None, False,
        ]  # fmt: skip
        got = torch.ops.sgl_kernel.fwd.default(*words)[0].float()
        hidden = torch.ones(new, length, device="cuda", dtype=torch.bool).triu(length - new + 1)
        wide = q.float().view(batch, new, 2 * heads, dim).transpose(1, 2)
        scores = (wide @ k.repeat_interleave(2, 1).mT) * dim**-0.5
        want = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)
        off = float((got.view(batch, new, 2 * heads, dim).transpose(1, 2) - want).abs().max())
        print(f"FlashAttention 3, {new} new tokens: off by at most {off:.4f}")
        if not off < 0.02:
            raise SystemExit("FlashAttention 3 is wrong")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--try", dest="package", type=Path, help="folder of the package, with flash_ops in it")
    parser.add_argument("wheel", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    args = parser.parse_args()
    if args.package:
        attempt(args.package)
        return 0
    if not args.wheel or not args.out:
        parser.error("a wheel and the file to write are needed")
    with tempfile.TemporaryDirectory(dir=args.out.parent) as scratch:
        path = Path(zipfile.ZipFile(args.wheel).extract(NAME, scratch))
        print(f"{slim(path) / 1e6:.0f} MB of machine code stay of {path.stat().st_size / 1e6:.0f} MB")
        with tarfile.open(args.out, "w:xz") as archive:
            archive.add(path, NAME)
    return 0


if __name__ == "__main__":
    sys.exit(main())
