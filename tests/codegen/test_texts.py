"""What is compiled is what the text says: TVM reads from each kernel's text the function that it was written from."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tvm_ffi import structural_equal

from vortex.codegen.build.library import build_target
from vortex.codegen.emit import parse_tir
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.flow.flow import library_names
from vortex.spec import Spec
from vortex.targets.target import TARGETS

FEW = ("quest", "latent_topk")
LATENT = Spec.of_latent("64+64", 12)


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        *((name, arch) for name in FEW for arch in ("cpu", "sm_90a")),
        *(
            pytest.param(name, ("cpu", "sm_90a")[i % 2], marks=pytest.mark.full)
            for i, name in enumerate(sorted({*library_names()} - {*FEW}))
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::vortex.errors.VortexWarning")
def test_texts_are_the_functions_that_they_were_written_from(name: str, arch: str) -> None:
    spec = LATENT if name.startswith("latent_") else Spec(head_dim=64)
    made = compile_flow(name, spec=spec, targets=[TARGETS[arch]], to="tir")
    assert len(made.lowered[0].kernels) >= 3
    for kernel in made.lowered[0].kernels.values():
        assert structural_equal(parse_tir(kernel.text, kernel.name), kernel.function), kernel.name
        assert not re.search(r"\bT_\d", kernel.text), f"a name of {kernel.name} is TVM's own"


def test_a_variable_of_the_flow_called_as_tvm_is(tmp_path: Path) -> None:
    flow = tmp_path / "transposed.py"
    flow.write_text(
        "import vortex\n\n\n@vortex.register('transposed')\nclass Transposed(vortex.vFlow):\n"
        "    def create_cache(self, spec):\n        return {'mean': vortex.Field(spec.head_dim)}\n\n"
        "    def forward_cache(self, page):\n        return {'mean': page.k.mean(0)}\n\n"
        "    def forward_indexer(self, q, cache):\n        T = (cache.mean * q.mean(0)).sum(-1)\n"
        "        return vortex.topk(T.exp() - T)\n"
    )
    text = compile_flow(str(flow), spec=Spec(head_dim=64), to="tir").lowered[0].kernels["select"].text
    assert re.search(r"\bT_ = ", text) and "T_1" not in text


def test_a_text_without_its_function_is_read(tmp_path: Path) -> None:
    low = compile_flow("quest", spec=Spec(head_dim=64), to="tir").lowered[0]
    texts = {name: replace(k, written=None) for name, k in low.kernels.items()}
    assert "define" in build_target(low.target, texts, tmp_path / "fine.so").source
    texts["plan"] = replace(texts["plan"], text="no TensorIR")
    with pytest.raises(VortexError, match="VX4004"):
        build_target(low.target, texts, tmp_path / "x.so")


def test_an_edited_text_is_read(tmp_path: Path) -> None:
    low = compile_flow("quest", spec=Spec(head_dim=64), to="tir").lowered[0]
    edited = low.kernels | {"plan": replace(low.kernels["plan"], text="no TensorIR")}
    with pytest.raises(VortexError, match="VX4004"):
        build_target(low.target, edited, tmp_path / "x.so")
