"""Parameters, the head and tables on the kernels of a CPU: against the flow run by torch, and files that do not fit."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vortex
from tests.flow.everywhere import Everywhere
from tests.kernels.test_flows import check_step
from vortex.artifact.manifest import ParameterEntry
from vortex.budget import Budget
from vortex.check.verdict import judge
from vortex.check.weights import random_parameters
from vortex.cli.main import main
from vortex.cli.run import traced_flow
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.parameters import Parameters
from vortex.runtime.safetensors import read_safetensors, write_safetensors
from vortex.spec import Spec

SPEC = Spec(page_size=8, head_dim=64, group=2)
LAYERS, HEADS = 3, 4


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = compile_flow(Everywhere, spec=SPEC, out=tmp_path_factory.mktemp("param") / "everywhere.vxa")
    assert made.artifact is not None
    return made.artifact


@pytest.fixture(scope="module")
def entries(artifact: Path) -> tuple[ParameterEntry, ...]:
    from vortex.artifact.folder import read_manifest

    return read_manifest(artifact).parameters


@pytest.fixture(scope="module")
def weights(entries: tuple[ParameterEntry, ...]) -> dict[str, torch.Tensor]:
    return random_parameters(entries, LAYERS, HEADS, seed=3)


def test_a_step_is_that_of_the_oracle(artifact: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    decoder = load(artifact, budget=Budget(3), parameters=weights, head_offset=1, debug=True)
    check_step("everywhere", decoder, Budget(3), "HND", integers=False)
    check_step("everywhere", decoder, Budget(2, "1/4"), "NHD", integers=False)


@pytest.mark.parametrize("offset", [0, 2])
def test_every_layer_has_its_set(artifact: Path, weights: dict[str, torch.Tensor], tmp_path: Path, offset: int) -> None:
    file = tmp_path / "w.safetensors"
    write_safetensors(file, weights)
    decoder = load(artifact, budget=Budget(3), parameters=file, head_offset=offset)
    found, _ = judge(decoder, traced_flow(str(artifact)), [3, 70, 300], steps=2)
    assert all(v.good("bf16") for v in found.values()), found


@pytest.mark.parametrize("what", ["layer", "head"])
def test_the_set_of_another_place_is_noticed(
    artifact: Path, weights: dict[str, torch.Tensor], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load(artifact, budget=Budget(3), parameters=weights)
    right = decoder.parameters._set

    def wrong(e: Any, layer: int, head_offset: int, *rest: Any) -> Any:
        return right(e, layer + (what == "layer"), head_offset + (what == "head"), *rest)

    monkeypatch.setattr(decoder.parameters, "_set", wrong)
    found, _ = judge(decoder, traced_flow(str(artifact)), [300], steps=1)
    assert not all(v.good("bf16") for v in found.values())


def test_safetensors_are_those_of_the_format(tmp_path: Path) -> None:
    """A file written byte by byte, with metadata and an odd header, and what write_safetensors makes."""
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [5, 9]},
        "a": {"dtype": "U8", "shape": [5], "data_offsets": [0, 5]},
    }
    text = json.dumps(header).encode() + b" "
    data = bytes([1, 2, 3, 4, 5]) + np.array([1.5, -2.0], np.float32).view(np.uint16)[1::2].tobytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    found = read_safetensors(path)
    assert found["a"].tolist() == [1, 2, 3, 4, 5]
    assert found["b"].tolist() == [[1.5], [-2.0]] and found["b"].dtype == torch.bfloat16
    tensors = {"f": torch.randn(3, 4), "h": torch.randn(5).half(), "e": torch.zeros(2).to(torch.float8_e4m3fn)}
    write_safetensors(path, {**tensors, "none": torch.zeros(0, 3), "one": torch.tensor(2.0)})
    again = read_safetensors(path)
    assert all(torch.equal(again[n].float(), x.float()) and again[n].dtype == x.dtype for n, x in tensors.items())
    assert again["none"].shape == (0, 3) and again["one"].item() == 2


@pytest.mark.parametrize(
    "content", [b"", b"\x01", struct.pack("<Q", 2**40), struct.pack("<Q", 4) + b"nope", struct.pack("<Q", 2) + b"[]"]
)
def test_another_format_is_refused(artifact: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(content)
    assert refusal(artifact, file).code == "VX6020"


def test_a_header_that_leaves_the_file_is_refused(artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    for offsets, shape in (([0, 400], [100]), ([4, 0], [1]), ([0, 4], [2]), ([0, -4], [-1])):
        text = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + b"abcd")
        assert refusal(artifact, file).code == "VX6020"


def refusal(artifact: Path, given: Any, **options: Any) -> VortexError:
    with pytest.raises(VortexError) as e:
        load(artifact, budget=Budget(3), parameters=given, **options)
    return e.value


def test_what_does_not_fit_is_named(artifact: Path, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """One error each, with the tensor's name, what is needed, and where the numbers came from."""
    assert refusal(artifact, tmp_path / "none.safetensors").code == "VX7002"
    said = refusal(artifact, None).render()
    assert "none are given" in said and "mix1: bf16[layers, KV heads, 64, 64]" in said
    for change, says in (
        ({"mix0": None}, "there is no tensor 'mix0' (bf16[layers, 64, 64])"),
        ({"mixes": weights["mix0"]}, "tensor 'mixes' is none of flow 'everywhere'"),
        ({"mix0": weights["mix0"].float()}, "'mix0' is f32; bf16 is needed"),
        ({"mix0": weights["mix0"][..., :32]}, "'mix0' has shape [3, 64, 32]; bf16[layers, 64, 64] is needed"),
        ({"mix0": weights["mix0"][0]}, "'mix0' has shape [64, 64]"),
        ({"mix1": weights["mix1"][:2]}, "'mix1' has 2 layers and 'mix0' has 3"),
        ({"gain": weights["gain"][:, :2]}, "'gain' has 2 KV heads and 'mix1' has 4"),
        ({"shift": [1.0, 2.0]}, "'shift' is list"),
    ):
        given = {n: x for n, x in {**weights, **change}.items() if x is not None}
        error = refusal(artifact, given)
        assert error.code == "VX6020" and says in error.render(), error.render()
        assert error.fields["hint"]
    assert refusal(artifact, weights, head_offset=-1).code == "VX6002"


@pytest.mark.parametrize(
    ("layer", "offset", "says"), [(3, 0, "3 layers, and layer 3"), (0, 3, "heads 3 to 4 are bound")]
)
def test_a_model_of_more_layers_or_heads_is_refused_at_bind(
    artifact: Path, weights: dict[str, torch.Tensor], layer: int, offset: int, says: str
) -> None:
    decoder = load(artifact, budget=Budget(3), parameters=weights, head_offset=offset)
    k = torch.zeros(4, 2, 8, 64, dtype=torch.bfloat16)
    fields = {"c": torch.zeros(4, 2, 64, dtype=torch.bfloat16), "one": torch.zeros(4, 2)}
    with pytest.raises(VortexError, match=says) as e:
        decoder.bind(layer, k, k.clone(), fields)
    assert e.value.code == "VX6020"


def test_decoders_share_numbers(artifact: Path, weights: dict[str, torch.Tensor]) -> None:
    first = load(artifact, budget=Budget(3), parameters=weights)
    assert isinstance(first.parameters, Parameters)
    other = Decoder(first.library, budget=Budget(3), parameters=first.parameters)
    cpu = torch.device("cpu")
    mine, its = (d.parameters.of(1, 0, 2, cpu)["param.mix1"] for d in (first, other))
    assert mine.data_ptr() == its.data_ptr() and mine.shape == (2, 64, 64)


def test_the_command_line_takes_and_shows_them(
    artifact: Path, weights: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "w.safetensors"
    write_safetensors(file, weights)
    small = ["--tokens", "100", "--steps", "1"]
    assert main(["run", str(artifact), *small]) == 0
    assert main(["run", str(artifact), *small, "--parameters", str(file), "--kv-heads", "3"]) == 0
    assert main(["run", str(artifact), *small, "--parameters", str(file), "--kv-heads", "5"]) == 2
    assert "KV heads" in capsys.readouterr().err
    assert main(["info", str(artifact)]) == 0
    assert "parameter mix1: bf16[layers, KV heads, 64, 64]" in capsys.readouterr().out


def test_a_flow_without_parameters_refuses_some(tmp_path: Path) -> None:
    made = compile_flow("quest", spec=vortex.Spec(page_size=8, head_dim=64, group=2), out=tmp_path / "q.vxa", to="lib")
    assert made.artifact is not None
    assert "flow 'quest'" in refusal(made.artifact, {"w": torch.zeros(1)}).render()


def test_a_value_may_be_called_as_a_word_of_python(tmp_path: Path) -> None:
    """The text of a kernel is read as Python, and the result of flow.and is called so unless a variable names it."""

    class Words(vortex.vFlow):
        def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
            return {"c": vortex.Field(spec.head_dim)}

        def forward_cache(self, page: Any) -> dict[str, Any]:
            return {"c": page.k.amax(0) * ((page.v.sum() > 0) & (page.k.sum() > 0))}

        def forward_indexer(self, q: Any, cache: Any) -> Any:
            return vortex.topk((cache.c @ q.T).amax(-1) * ((q.sum() > 0) & (q.amax() > 0)))

    made = compile_flow(Words, spec=SPEC, out=tmp_path / "words.vxa")
    assert made.artifact is not None
    found, _ = judge(load(made.artifact, budget=Budget(3)), traced_flow(str(made.artifact)), [100], steps=1)
    assert all(v.good("bf16") for v in found.values()), found
