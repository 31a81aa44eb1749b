"""Flows over MLA's latent rows: traced is eager, one pool, rows read once; a flow for K and V is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vortex
from tests.batches import batch, copy
from tests.flow.evaluate import run
from vortex.errors import VortexError
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.dialects import flow, page
from vortex.ir.interpret_page import run_program
from vortex.ir.numerics import narrow
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.passes.manager import DEFAULT_PIPELINE, PassContext, run_pipeline
from vortex.schedules.traffic import bytes_per_page
from vortex.spec import Spec

SPEC = Spec.of_latent("24+8", 5, page_size=8)


class Split(vortex.vFlow):
    """Compressed and rotary parts weighed apart (arXiv 2606.06453)."""

    def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
        self.rank = spec.kv_lora_rank
        assert (spec.head_dim, spec.kv_lora_rank, spec.qk_rope_head_dim, spec.v_dim) == (32, 24, 8, 24)
        return {"c": vortex.Field(spec.kv_lora_rank), "r": vortex.Field(spec.qk_rope_head_dim, dtype="fp8_e4m3")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        mean = page.latent.mean(0)
        return {"c": mean[: self.rank], "r": mean[self.rank :]}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        q = q.mean(0)
        return vortex.topk(0.75 * (cache.c @ q[: self.rank]) + 0.25 * (cache.r @ q[self.rank :]))


class Range(vortex.vFlow):
    """Quest's bound on the latent row."""

    def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
        return {"lo": vortex.Field(spec.head_dim), "hi": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.latent.amin(0), "hi": page.latent.amax(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1).amax(-1))


class Parts(vortex.vFlow):
    """The best mean of four tokens, rotary part ignored."""

    def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
        self.rank = spec.kv_lora_rank
        return {"mean": vortex.Field(spec.page_size // 4, self.rank)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.latent[:, : self.rank].unflatten(0, (-1, 4)).mean(1)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(torch.einsum("spd,d->sp", cache.mean, q.mean(0)[: self.rank]).amax(-1))


FLOWS = {"latent_topk": find_flow("latent_topk"), "latent_slim": find_flow("latent_slim")}
FLOWS |= {"split": Split, "range": Range, "parts": Parts}


def lowered(name: str, passes: str) -> tuple[Module, Module]:
    traced = trace(FLOWS[name], SPEC)
    return traced, run_pipeline(traced, passes, PassContext())


@pytest.mark.parametrize("name", FLOWS)
def test_traced_is_eager(name: str) -> None:
    made = torch.Generator().manual_seed(3)
    q = torch.randn(5, 32, generator=made).bfloat16()
    rows = torch.randn(33, 8, 32, generator=made).bfloat16()
    module = parse_module(print_module(trace(FLOWS[name], SPEC)))
    assert [str(a.type) for a in (*module.functions["cache"].args, module.functions["index"].args[0])] == [
        "bf16[8, 32]",
        "bf16[5, 32]",
    ]
    end = module.functions["cache"].ops[-1]
    assert isinstance(end, flow.Return)
    made_rows: dict[str, list[Any]] = {n: [] for n in end.names}
    for p in range(len(rows)):
        for n, x in zip(end.names, run(module, {"latent": rows[p]}, 0, "cache"), strict=True):
            made_rows[n].append(narrow(x, module.decls[n].type.dtype))  # type: ignore[union-attr]
    fields = {n: torch.as_tensor(np.stack(x)) for n, x in made_rows.items()}
    eager = oracle.summaries(FLOWS[name], SPEC, rows)
    for n, f in fields.items():
        torch.testing.assert_close(f.float(), eager[n].float(), rtol=2**-7, atol=1e-6)
    got = run(module, {"q": q, **fields}, len(rows))[0]
    torch.testing.assert_close(torch.as_tensor(got).float(), oracle.score(FLOWS[name], SPEC, q, fields))


@pytest.mark.parametrize("passes", ["outline", ",".join(DEFAULT_PIPELINE.values())], ids=["outlined", "default"])
@pytest.mark.parametrize("name", FLOWS)
def test_page_program_is_the_oracle_and_reads_rows_once(name: str, passes: str) -> None:
    traced, program = lowered(name, passes)
    b = batch(traced, [1, 7, 8, 9, 70, 333], heads=1, seed=2, integers=False)
    given = copy(b)
    counts = run_program(program, b)
    pools = [d.name for d in program.declared("buffer") if d.attrs["role"] == "pool"]
    assert pools == ["latent"]
    tokens = 0
    for r, length in enumerate(b.lengths):
        rows = given.tokens["latent_new"][sum(given.lengths[:r]) :][:length]
        stored = {n: b.paged[n][b.page_table[r, : length // 8], 0] for n in FLOWS[name]().create_cache(SPEC)}
        fields = [{n: torch.from_numpy(x) for n, x in stored.items()}]
        q = torch.from_numpy(b.q[r])
        budget = vortex.Budget(2)
        want = oracle.step(FLOWS[name], SPEC, q, torch.from_numpy(rows), None, budget, b.scale, fields=fields)
        assert b.pages[r, 0, : b.counts[r, 0]].tolist() == want.pages[0]
        torch.testing.assert_close(torch.from_numpy(b.out[r]), want.out, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(torch.from_numpy(b.lse[r]), want.lse)
        tokens += sum(min(8, length - 8 * p) for p in want.pages[0])
    assert counts.of("attend", "latent").read == tokens * 32 * 2
    assert counts.of("attend", "out").written == len(b.lengths) * 5 * 24 * 2


def test_work_is_balanced_by_rows_read_once() -> None:
    _, program = lowered("latent_topk", ",".join(DEFAULT_PIPELINE.values()))
    assert bytes_per_page(program, program.functions["attend"]) == 8 * 32 * 2


@pytest.mark.parametrize("dim", [24, 25, 32, 33])
def test_values_are_no_longer_than_rows(dim: int) -> None:
    """page.attend may use all or the beginning of a row as value, and the verifier says what it may not."""
    _, program = lowered("latent_topk", "outline")
    text = (
        print_module(program)
        .replace("f32[5, 24]", f"f32[5, {dim}]")
        .replace("@out : bf16[5, 24]", f"@out : bf16[5, {dim}]")
    )
    if dim <= 32:
        parsed = parse_module(text)
        assert any(isinstance(o, page.Attend) for o in parsed.functions["attend"].ops)
        return
    with pytest.raises(VortexError, match="VX2008"):
        parse_module(text)


WRONG = """
import vortex

@vortex.register("wrong_NAME_EAGER")
class Wrong(vortex.vFlow):
    def create_cache(self, spec):
        return {"a": vortex.Field(spec.head_dim)}

    def forward_cache(self, page):
        return {"a": page.NAME.mean(0)}

    def forward_indexer(self, q, cache):
        return vortex.topk(cache.a @ q.mean(0))
"""


@pytest.mark.parametrize(
    ("name", "spec", "hint"),
    [
        ("k", SPEC, "use page.latent, [8, 32]: keys are whole rows, values their first 24 numbers"),
        ("v", SPEC, "use page.latent"),
        ("latent", Spec(page_size=8, head_dim=16), "use page.k and page.v, [8, 16]"),
    ],
)
@pytest.mark.parametrize("eager", [False, True])
def test_a_flow_for_another_cache(name: str, spec: Spec, hint: str, eager: bool, tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG.replace("EAGER", str(eager)).replace("NAME", name))
    made = find_flow(str(file))
    rows = [torch.zeros(1, spec.page_size, spec.head_dim) for _ in spec.pools]
    with pytest.raises(VortexError) as caught:
        oracle.summaries(made, spec, *rows) if eager else trace(made, spec)
    assert caught.value.code == "VX1022"
    text = caught.value.render()
    assert hint in text
    assert f'return {{"a": page.{name}.mean(0)}}' in text
    assert "wrong.py:10" in text


@pytest.mark.parametrize("size", ["spec.kv_lora_rank", "spec.qk_rope_head_dim"])
def test_a_flow_for_latent_rows_whose_fields_have_no_size(size: str, tmp_path: Path) -> None:
    """Without MLA there are 0 numbers: the mistake is the model shape, unless the flow has another one as well."""
    file = tmp_path / "sized.py"
    text = WRONG.replace("NAME", "latent").replace("EAGER", size[5:]).replace("spec.head_dim", size)
    file.write_text(text)
    with pytest.raises(VortexError) as caught:
        trace(find_flow(str(file)), Spec(page_size=8, head_dim=16))
    assert caught.value.code == "VX1022"
    assert "compile for MLA: --latent 512+64 --heads 20" in caught.value.help
    assert "sized.py:7" in caught.value.render()
    file.write_text(text.replace(f"Field({size})", f"Field({size}, 0)"))
    with pytest.raises(VortexError, match=r"VX1016.*size 0"):
        trace(find_flow(str(file)), Spec(page_size=8, head_dim=16))


def test_shapes() -> None:
    assert Spec.of_latent("512+64", "20/1") == Spec(head_dim=576, group=20, kv_lora_rank=512)
    assert Spec.of_attrs(SPEC.attrs()) == SPEC
    assert "kv_lora_rank" not in Spec().attrs()
    for latent, heads in (("512", 20), ("x+64", 20), ("0+64", 20), ("512+64", "20/2"), ("512+64", 0)):
        with pytest.raises(VortexError, match="VX1021"):
            Spec.of_latent(latent, heads)
    for rank in (-1, 129, "8"):
        with pytest.raises(VortexError, match="VX1021"):
            Spec(kv_lora_rank=rank)  # type: ignore[arg-type]
