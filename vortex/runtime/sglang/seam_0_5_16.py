"""SGLang 0.5.16: the scheduler takes a decode graph's reads to be over before its replay, and asks nobody.

The backend keeps to that by copying the page table before the replay; there is nothing to declare.
"""

from __future__ import annotations

from typing import Any

from vortex.runtime.sglang.backend import VortexBackend

GRAPHED_PREFILL: tuple[str, ...] = ()
"""Dense backends whose prompts have run in SGLang's CUDA graphs under this one."""


class Backend(VortexBackend):
    """As the backend is."""

    @staticmethod
    def tokens_of(request: Any) -> int:
        """Those that have a slot in the cache."""
        return int(request.kv_committed_len)


def settings(args: Any) -> Any:
    """SGLang's ServerArgs as they were resolved, which here is where they were given."""
    return args


def model_of(args: Any) -> Any:
    """SGLang's ModelConfig of its ServerArgs."""
    return args.get_model_config()


def drop_prompt_graphs(args: Any) -> bool:
    """Have no CUDA graphs for prompts; whether there would have been some."""
    before, args.cuda_graph_config.prefill.backend = args.cuda_graph_config.prefill.backend, "disabled"
    return bool(before != "disabled")
