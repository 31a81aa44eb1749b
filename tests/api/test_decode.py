"""``vortex.decode``: against torch where all pages are kept, and its kernels against the flow's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vortex
from vortex.api.decode import _target
from vortex.runtime import compiled
from vortex.runtime.safetensors import write_safetensors

LENGTHS = [300, 77, 16, 1]


class Weighted(vortex.vFlow):
    """Mean keys under learned weights of each KV head, and a score that state would move."""

    def create_cache(self, spec):
        self.w = vortex.Parameter("w", (spec.head_dim,), "f32", per="head")
        return {"mean": vortex.Field(spec.head_dim), "score": vortex.Field(dtype="f32", state="page", init=1.0)}

    def forward_cache(self, page):
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q, cache):
        score = cache.score * (cache.mean @ (q.mean(0) * self.w))
        return vortex.topk(score), {"score": score}


def tensors(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    shapes = ((4, 8, 64), (4, 300, 2, 64), (4, 300, 2, 64))
    q, k, v = (torch.randn(*shape, generator=made).to(dtype) for shape in shapes)
    return q, k, v


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """torch's own attention of the newest tokens, fp32; padding is masked out."""
    q, k, v = (x.float() for x in (q[:, :, None], k.transpose(1, 2), v.transpose(1, 2)))
    mask = torch.arange(300) < torch.tensor(LENGTHS)[:, None]
    found = F.scaled_dot_product_attention(q, k, v, mask[:, None, None], enable_gqa=True, scale=scale)
    return found[:, :, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_all_pages_are_dense_attention(dtype: torch.dtype, scale: float | None) -> None:
    q, k, v = tensors(dtype)
    for row, n in enumerate(LENGTHS):
        k[row, n:], v[row, n:] = float("nan"), float("nan")  # nobody looks at padding
    out = vortex.decode("quest", q, k, v, budget=100, lengths=LENGTHS, scale=scale)
    assert out.dtype == dtype
    want = dense(q, k.nan_to_num(0), v.nan_to_num(0), scale)
    torch.testing.assert_close(out.float(), want, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("named", [False, True], ids=["a class", "by name"])
def test_kernels_select_and_attend_as_the_flow_does(
    named: bool, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tvm")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "decode"))
    flow = "block_topk" if named else vortex.find_flow("block_topk")
    q, k, v = tensors(seed=1)
    for budget in (vortex.Budget(3), vortex.Budget(1, "1/4", sink=0, recent=1)):
        given: dict[str, Any] = {"budget": budget, "lengths": torch.tensor(LENGTHS), "details": True}
        eager = vortex.decode(flow, q, k, v, **given)
        kernels = vortex.decode(flow, q, k.requires_grad_(), v, **given, compiled=True)
        assert kernels.pages == eager.pages
        torch.testing.assert_close(kernels.out, eager.out, rtol=0, atol=1e-5)
        torch.testing.assert_close(kernels.lse, eager.lse, rtol=0, atol=1e-5)
        assert [len(heads[0]) for heads in eager.pages] == [
            min(budget.total(-(-n // 16)), -(-n // 16)) for n in LENGTHS
        ]
    out = vortex.decode(flow, q, k, v, budget=100, lengths=LENGTHS, compiled=True)
    torch.testing.assert_close(out, dense(q, k, v), rtol=0, atol=1e-5)
    [artifact] = compiled.entries()  # one flow and shape is compiled once, whoever names it
    assert torch.equal(vortex.decode(artifact, q, k, v, budget=100, lengths=LENGTHS, compiled=True), out)
    with pytest.raises(vortex.VortexError, match="page_size 16 and not 32"):
        vortex.decode(artifact, q, k, v, budget=100, page_size=32, compiled=True)


def test_a_class_is_compiled_where_no_name_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compiles is a stand-in: kernels are the test's above."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[Any] = []

    def compile(flow: Any, path: Path, **rest: Any) -> None:
        asked.append((flow, rest["spec"], rest["targets"]))
        raise KeyboardInterrupt

    monkeypatch.setattr("vortex.api.decode.compile", compile)
    with pytest.raises(KeyboardInterrupt):
        vortex.decode(Weighted, *tensors(), budget=3, compiled=True)
    assert asked == [(Weighted, vortex.Spec(page_size=16, head_dim=64, group=4, dtype="f32"), "cpu")]
    assert list(tmp_path.rglob("*.*")) == [], "a compilation that failed leaves nothing"


def test_weights_come_from_a_mapping_or_a_file(tmp_path: Path) -> None:
    tensors_of = {"w": torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(3))}
    write_safetensors(tmp_path / "w.safetensors", tensors_of)
    mapped, filed, other = (
        vortex.decode(Weighted, *tensors(), budget=3, parameters=given, details=True).pages
        for given in (tensors_of, tmp_path / "w.safetensors", {"w": -tensors_of["w"]})
    )
    assert mapped == filed != other
    with pytest.raises(vortex.VortexError, match="parameter 'w' has no numbers here"):
        vortex.decode(Weighted, *tensors(), budget=3)
    for wrong, said in ((tensors_of | {"ww": tensors_of["w"]}, "tensor 'ww' is none of flow"),
                        ({"w": tensors_of["w"].double()}, "'w' is float64; f32 is needed")):  # fmt: skip
        with pytest.raises(vortex.VortexError, match=said):
            vortex.decode(Weighted, *tensors(), budget=3, parameters=wrong)


@pytest.mark.full
def test_kernels_have_weights_and_state_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = {"budget": 3, "lengths": LENGTHS, "details": True, "parameters": {"w": torch.rand(1, 2, 64)}}
    first, again, eager = (vortex.decode(Weighted, *tensors(), compiled=c, **given) for c in (True, True, False))
    assert first.pages == again.pages == eager.pages, "each call begins with init"
    torch.testing.assert_close(first.out, eager.out, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("capability", "target"), [((9, 0), "sm_90a"), ((10, 0), "sm_100a"), ((8, 0), "")])
def test_kernels_are_those_of_the_device(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], target: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda:1")
    if target:
        assert _target(device) == target
    else:
        with pytest.raises(vortex.VortexError, match="q: is on cuda:1; kernels are made for cpu, sm_90a"):
            _target(device)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"q": torch.zeros(4, 8, 64, device="meta")}, "q: is on meta, where tensors have no numbers"),
        ({"q": None}, "q: is NoneType; a torch tensor [B, Hq, D] is needed"),
        (
            {"q": torch.zeros(4, 7, 64)},
            "k: has 2 KV heads, into which the 7 query heads of q do not divide; [B, T, Hkv, D] is needed",
        ),
        (
            {"k": torch.zeros(4, 2, 300, 64), "v": torch.zeros(4, 2, 300, 64)},
            "k: has 300 KV heads, into which the 8 query heads of q do not divide; [B, T, Hkv, D] is needed, and this "
            "looks like [B, Hkv, T, D]: give k.transpose(1, 2) and v.transpose(1, 2)",
        ),
        ({"q": torch.zeros(4, 8, 64).double()}, "q: is float64; bf16, f16, f32 can be decoded"),
        ({"k": torch.zeros(300, 2, 64)}, "k: has shape [300, 2, 64]; [B, T, Hkv, D] is needed, no size of which is 0"),
        ({"k": torch.zeros(4, 300, 2, 64).half()}, "k: is f16; f32 is needed"),
        ({"v": torch.zeros(4, 9, 2, 64)}, "v: has shape [4, 9, 2, 64]; [4, 300, 2, 64] is needed"),
        ({"lengths": [3]}, "lengths: has 1 numbers; q has 4 requests"),
        ({"lengths": [1, 2, 3, 301]}, "lengths[3]: is 301; k has 300 tokens"),
        ({"lengths": [0, 2, 3, 4]}, "lengths[0]: is 0; an integer of at least 1 is needed"),
        ({"lengths": 5}, "lengths: is int; a number for each request is needed"),
        ({"budget": "all"}, "budget: is 'all'; an integer of at least 0 is needed"),
        ({"page_size": 0}, "page_size: is 0; an integer of at least 1 is needed"),
        ({"scale": "x"}, "scale: is 'x'; a finite number is needed"),
        ({"scale": float("nan")}, "scale: is nan; a finite number is needed"),
        ({"parameters": 4}, "parameters: is int; a file, or tensors by name, are needed"),
    ],
)
def test_mistakes_name_the_argument(given: dict[str, Any], message: str) -> None:
    q, k, v = tensors()
    arguments = {"q": q, "k": k, "v": v, "budget": 3, **given}
    with pytest.raises(vortex.VortexError) as caught:
        vortex.decode("quest", **arguments)
    assert str(caught.value).splitlines()[0] == f"error[VX6002]: {message}"
