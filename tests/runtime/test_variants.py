"""Which variant of a kernel a step runs, and that scratch fits whichever it is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.runtime.fake import fake_library
from vortex.artifact.manifest import FileEntry, KernelEntry, parse_manifest
from vortex.budget import Budget
from vortex.errors import VortexError
from vortex.kinds.buckets import Bucket
from vortex.runtime.decoder import Decoder
from vortex.runtime.library import Library
from vortex.runtime.paged_cache import PagedCache
from vortex.runtime.scratch import Layout, Size
from vortex.runtime.variants import Variants
from vortex.spec import Spec

SPEC = Spec(page_size=4, head_dim=8, group=2, dtype="f32")


def entry(name: str, *serves: tuple[int, int, int], kind: str = "attend", **more: Any) -> KernelEntry:
    schedule: dict[str, Any] = {"serves": [list(b) for b in serves]} if serves else {}
    if name != kind:
        schedule["variant_of"] = kind
    return KernelEntry(name, kind, name, (), schedule={**schedule, **more})


@pytest.mark.parametrize(
    ("rows", "columns", "kept", "name"),
    [
        (8, 100, 30, "small"),
        (5, 9999, 17, "small"),  # the columns are none of attend's business
        (16, 100, 30, "small"),
        (256, 100, 30, "attend"),
        (1, 100, 30, "small"),
        (4096, 100, 30, "large"),
        (512, 100, 30, "large"),  # as far from one as from the other: that of more rows
        (1 << 20, 100, 30, "attend"),  # near none
        (8, 2000, 1000, "attend"),
    ],
)
def test_the_nearest_bucket_decides(rows: int, columns: int, kept: int, name: str) -> None:
    kernels = [entry("large", (1024, 0, 32)), entry("attend", (256, 0, 32)), entry("small", (8, 0, 32))]
    [found] = Variants.of(kernels).pick(rows, columns, kept)
    assert found.name == name


def test_one_of_each_in_launch_order() -> None:
    kernels = [
        entry("plan", kind="plan"),
        entry("select", (8, 64, 32), kind="select"),
        entry("select_v1", (64, 64, 32), kind="select"),
        entry("attend", (64, 0, 32)),
        entry("attend_v1", (8, 0, 32)),
    ]
    for rows, names in ((8, ["plan", "select", "attend_v1"]), (64, ["plan", "select_v1", "attend"])):
        assert [k.name for k in Variants.of(kernels).pick(rows, 64, 32)] == names


def test_scratch_for_all_fits_each() -> None:
    words = {"partial_words": 8, "row_counters": 2, "item_ctas": 2}
    few = KernelEntry("attend", "attend", "a", ("work", "partials", "arrivals"), schedule=words, resources={"ctas": 1})
    many = replace(few, name="attend_v1", schedule={"partial_words": 12}, resources={"ctas": 4})
    layout = Layout.of([few, many], 2, 100, dense=False)
    size = Size(8, 64, 16)
    own = {k.name: layout.buffers(size, size, [k]) for k in (few, many)}
    assert own["attend"]["work"][1] == (2, 2 + 8 + 25)
    assert own["attend_v1"]["work"][1] == (2, 2 + 8 + 200)
    assert own["attend"]["partials"][1] == (8 + 25, 2, 8)
    block = layout.buffers(size, size)
    for made in own.values():
        for name, (_, shape) in made.items():
            assert torch.Size(shape).numel() <= torch.Size(block[name][1]).numel(), name
    assert block["arrivals"][1] == (8 * 2 * 2,)


def doubled(library: Library, called: list[str]) -> Library:
    """``library`` with a second kernel of each kind for more than two rows, all of them overheard."""
    kernels, functions = [], {}
    for k in library.target.kernels:
        for name, rows in ((k.name, 2), (f"{k.name}_v1", 8)):
            bucket = [rows, 0, 0] if k.kind == "append" else [rows, 0, 4] if k.kind == "attend" else [rows, 16, 4]
            schedule = {"serves": [bucket]} | ({} if name == k.name else {"variant_of": k.name})
            kernels.append(replace(k, name=name, symbol=name, schedule=schedule))

            def function(*arguments: object, name: str = name, symbol: str = k.symbol) -> None:
                called.append(name)
                library.functions[symbol](*arguments)

            functions[name] = function
    targets = {library.name: replace(library.target, kernels=tuple(kernels))}
    return replace(library, manifest=replace(library.manifest, targets=targets), functions=functions)


def test_a_decoder_picks_once_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    asked: list[int] = []
    pick = Variants.pick

    def heard(self: Variants, rows: int, columns: int, kept: int) -> tuple[KernelEntry, ...]:
        asked.append(rows)
        return pick(self, rows, columns, kept)

    monkeypatch.setattr(Variants, "pick", heard)
    decoder = Decoder(doubled(fake_library(SPEC), called), budget=Budget(1))
    cache = PagedCache(64, 1, SPEC, decoder.fields)
    for pool in (cache.k[0], cache.v[0], *cache.fields[0].values()):
        assert pool is not None
        pool.normal_()
    decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0])
    decoder.reserve(6, 10)
    for rows, suffix in ((1, ""), (6, "_v1"), (2, ""), (6, "_v1"), (1, "")):
        called.clear()
        table = torch.arange(rows * 10, dtype=torch.int32).view(rows, 10)
        decoder.plan(torch.full((rows,), 30, dtype=torch.int32), table)
        q = torch.randn(rows, 2, 8)
        decoder.decode(0, q, out=torch.empty_like(q))
        assert called == [f"plan{suffix}", f"select{suffix}", f"attend{suffix}"]
    assert asked == [1, 6, 2], "not once a step"


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ({"serves": [[1, 2]]}, "serves[0]"),
        ({"serves": [[1, 2, -3]]}, "serves[0][2]"),
        ({"serves": 7}, "serves"),
        ({"serves": [[1, 2, 1 << 30]]}, "serves[0][2]"),
        ({"table": 3}, "table"),
        ({"table": [3]}, "table[0]"),
        ({"table": [{"serves": [[1]]}]}, "table[0].serves[0]"),
        ({"variant_of": 3}, "variant_of"),
        ({"variant_of": "append"}, "variant_of"),
        ({"variant_of": "nothing"}, "variant_of"),
    ],
)
def test_manifests_of_odd_variants_are_refused(schedule: dict[str, object], says: str) -> None:
    made = fake_library(SPEC).manifest
    kernels = tuple(k for k in made.targets["cpu"].kernels if k.name != "select")
    odd = replace(kernels[-1], name="attend_v1", schedule=schedule)
    files = {"lib.cpu.so": FileEntry(1, "0" * 64)}

    def text(*kernels: KernelEntry) -> bytes:
        targets = {"cpu": replace(made.targets["cpu"], kernels=kernels)}
        return json.dumps(replace(made, targets=targets, files=files).to_json()).encode()

    good = replace(odd, schedule={"variant_of": "attend", "serves": [[1, 2, 3]]})
    assert parse_manifest(text(*kernels, good), "x.vxa").targets["cpu"].kernels[-1].serves == (Bucket(1, 2, 3),)
    with pytest.raises(VortexError, match="VX5002") as caught:
        parse_manifest(text(*kernels, odd), "x.vxa")
    assert says in caught.value.render()
