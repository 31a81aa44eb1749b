"""A plug-in of SGLang's under which its torch_native reads prompts of MLA models: absorbed, from the pool.

SGLang has torch_native make K and V of each head and then read them from the pool, where only latent rows are.
"""

from __future__ import annotations

from typing import Any


def absorb() -> None:
    from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import AttnForwardMethod

    def always(attention: Any, forward_batch: Any) -> Any:
        return AttnForwardMethod.MLA

    AttentionBackendRegistry.register("torch_native", always)
