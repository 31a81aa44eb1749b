"""Measured times beside predicted ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import SHAPE
from vortex.compilation.stored import Stored
from vortex.errors import VortexError
from vortex.report.compilation import Request, describe
from vortex.report.measured import read_results
from vortex.tune.layers import Layers

ROW = {
    "flow": "mass8", "requests": 4, "tokens": 1019, "MB": [16.5, 63.1], "kernels": ["select"], "select_us": 12.5,
    "layer_us": 20.0, "select_of_copy": 0.3,
}  # fmt: skip


def written(folder: Path, device: str = "NVIDIA H200", rows: Any = (ROW,)) -> Path:
    file = folder / "results.json"
    file.write_text(json.dumps({"device": device, "rows": rows, "commit": "x"}))
    return file


def test_times_of_a_shape_stand_beside_the_prediction(stored: Stored, tmp_path: Path) -> None:
    other = ROW | {"requests": 64, "select_us": 99.0}
    rows = read_results(written(tmp_path, rows=[ROW, other, {"flow": "another"}, 3]), ["cpu", "sm_90a"], {"mass8"})
    told = describe(stored, Request(SHAPE, Layers({}), rows))
    asked, not_asked = next(k.measured for k in told.kernels if k.name == "select" and k.target == "sm_90a")
    assert (asked.microseconds, asked.megabytes, asked.of_copy, asked.asked) == (12.5, 16.5, 0.3, True)
    assert (not_asked.microseconds, not_asked.asked) == (99.0, False)
    assert not [k for k in told.kernels if k.target == "cpu" and k.measured]
    further = describe(stored, Request(replace(SHAPE, tokens=2048), Layers({}), rows))
    assert not any(m.asked for k in further.kernels for m in k.measured)


def test_results_that_do_not_fit_are_refused_with_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(VortexError, match="measured on 'NVIDIA H100 80GB HBM3', and the compilation is for H200"):
        read_results(written(tmp_path, "NVIDIA H100 80GB HBM3"), ["sm_90a"], {"mass8"})
    with pytest.raises(VortexError, match="the compilation is for no GPU"):
        read_results(written(tmp_path), ["cpu"], {"mass8"})
    with pytest.raises(VortexError, match="no row of quest") as found:
        read_results(written(tmp_path), ["sm_90a"], {"quest"})
    assert "it has mass8" in found.value.help
    for text in ("", "[1]", '{"rows": []}', '{"device": 3}', '{"device": "NVIDIA H200", "rows": 3}'):
        file = tmp_path / "broken.json"
        file.write_text(text)
        with pytest.raises(VortexError, match="is not a results file of bench/"):
            read_results(file, ["sm_90a"], {"mass8"})
    with pytest.raises(VortexError, match="cannot be read"):
        read_results(tmp_path / "nothing.json", ["sm_90a"], {"mass8"})
