"""Latent attention (MLA) in SGLang: its models ask by the backend's name how to call it.

Decoding is always absorbed: queries meet latent rows, which is what the kernels read. A prompt goes the way that its
dense backend takes.
"""

from __future__ import annotations

from typing import Any


def read_latent_by(prefill: str) -> None:
    """Tell SGLang's MLA models that prompts under the backend vortex are read by ``prefill``, one of LATENT_PREFILL."""
    from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry

    decide = AttentionBackendRegistry.get_handler(prefill) if prefill == "triton" else _always_absorbed
    AttentionBackendRegistry.register("vortex", decide)


def _always_absorbed(attention: Any, forward_batch: Any) -> Any:
    """torch_native reads K and V from the pool, where only latent rows are."""
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import AttnForwardMethod

    return AttnForwardMethod.MLA
