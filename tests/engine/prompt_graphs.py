"""Which CUDA graphs SGLang would make for prompts where there is a GPU; runs in the engine's environment.

Standard input: {"settings": {...}, "cases": {name: {...}, ...}}, as JSON, the cases being further settings. The last
line of standard output: {name: "breakable", ...}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from sglang.srt.model_executor import cuda_graph_config
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs


def resolved(settings: dict[str, Any]) -> str:
    """What ``sglang.Engine`` makes of these settings."""
    args = ServerArgs(**settings)
    getattr(args, "resolve_once", lambda: None)()
    try:
        from sglang.srt.arg_groups.model_override_base import resolving_view
    except ImportError:  # 0.5.16 resolves into the object itself
        return str(args.cuda_graph_config.prefill.backend)
    return str(resolving_view(args).cuda_graph_config.prefill.backend)


if __name__ == "__main__":
    cuda_graph_config.default_prefill_backend = lambda: "breakable"  # as where SGLang sees CUDA
    load_plugins()
    job = json.load(sys.stdin)
    said = {name: resolved(job["settings"] | changes) for name, changes in job["cases"].items()}
    print("\n" + json.dumps(said), flush=True)
