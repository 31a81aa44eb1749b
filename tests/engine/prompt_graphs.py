"""Which CUDA graphs SGLang would make for prompts where there is a GPU; runs in the engine's environment.

Standard input: {"settings": {...}, "cases": {name: {"settings": {...}, "config": text}, ...}}, as JSON, a case's being
further settings. The last line of standard output: {name: "breakable", ...}.
"""

from __future__ import annotations

import json
import os
import sys

from refused import launched
from sglang.srt.model_executor import cuda_graph_config
from sglang.srt.plugins import load_plugins

from vortex.runtime.sglang.plugin import _seam

if __name__ == "__main__":
    cuda_graph_config.default_prefill_backend = lambda: "breakable"  # as where SGLang sees CUDA
    load_plugins()
    job, said = json.load(sys.stdin), {}
    for name, case in job["cases"].items():
        os.environ["VORTEX_CONFIG"] = case.get("config", "")
        resolved = _seam().settings(launched(job["settings"] | case.get("settings", {})))
        said[name] = str(resolved.cuda_graph_config.prefill.backend)
    print("\n" + json.dumps(said), flush=True)
