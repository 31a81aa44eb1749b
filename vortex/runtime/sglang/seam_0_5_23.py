"""SGLang 0.5.23: a backend declares when it has read what it shares with the scheduler."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.attention.base_attn_backend import SharedReadEnds

from vortex.runtime.sglang.backend import VortexBackend

GRAPHED_PREFILL: tuple[str, ...] = ("triton",)
"""Dense backends whose prompts have run in SGLang's CUDA graphs under this one (``serve_checks_7.json`` and ``_9``)."""


class Backend(VortexBackend):
    """As the backend is, with its declaration."""

    def shared_read_ends(self, fm: Any) -> Any:
        """Decoding reads the copy that is made before a replay; what the prefill backend reads, nobody audited."""
        return SharedReadEnds.PRE_REPLAY if fm.is_decode() else SharedReadEnds.UNKNOWN

    @staticmethod
    def tokens_of(request: Any) -> int:
        """Those that have a slot in the cache."""
        return int(request.kv.kv_committed_len)


def settings(args: Any) -> Any:
    """SGLang's ServerArgs as they were resolved: the object itself keeps what was given."""
    from sglang.srt.arg_groups.model_override_base import resolving_view

    return resolving_view(args)


def model_of(args: Any) -> Any:
    """SGLang's ModelConfig of its ServerArgs."""
    from sglang.srt.arg_groups.model_override_base import model_config_of

    return model_config_of(args)


def drop_prompt_graphs(args: Any) -> bool:
    """Have no CUDA graphs for prompts; whether there would have been some."""
    from sglang.srt.arg_groups.overrides import declare_resolution
    from sglang.srt.model_executor.cuda_graph_config import with_phase

    before = settings(args).cuda_graph_config
    if before.prefill.backend == "disabled":
        return False
    declare_resolution(args, "vortex", cuda_graph_config=with_phase(before, "prefill", backend="disabled"))
    return True
