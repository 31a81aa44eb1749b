"""The scales by which SGLang stores K and V in fp8, layer by layer: x / scale, as e4m3."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.radix_attention import RadixAttention


def scales_of(model: Any) -> dict[int, tuple[float, float]]:
    """Of K and of V for each attention layer of ``model`` whose checkpoint has some, by its number.

    ``--quantization-param-path`` gives a layer its scales, and not the floats beside them by which SGLang's own kernels
    read what was stored; they are added here.
    """
    found: dict[int, tuple[float, float]] = {}
    for layer in (m for m in model.modules() if isinstance(m, RadixAttention)):
        if layer.k_scale is not None and layer.v_scale is not None:
            scales = float(layer.k_scale), float(layer.v_scale)
            layer.k_scale_float, layer.v_scale_float = found[layer.layer_id] = scales
    return found
