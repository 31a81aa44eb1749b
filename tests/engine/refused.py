"""Starts that are refused, in one process with SGLang; runs in the engine's environment.

Standard input: {"settings": {...}, "cases": {name: {"settings": {...}, "config": text, "environment": {...}}, ...}}, as
JSON. The last line of standard output: {name: [seconds, error]}; the error is "" where a start would go on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs


def launched(settings: dict[str, Any]) -> ServerArgs:
    """What ``sglang.Engine`` does before it starts a process."""
    args = ServerArgs(**settings)
    getattr(args, "resolve_once", lambda: None)()
    args.check_server_args()
    return args


if __name__ == "__main__":
    load_plugins()
    job, plain = json.load(sys.stdin), dict(os.environ)
    launched(job["settings"] | {"attention_backend": "torch_native"})  # SGLang's imports
    said = {}
    for name, case in job["cases"].items():
        os.environ.clear()
        os.environ.update(plain | {"VORTEX_CONFIG": case.get("config", "")} | case.get("environment", {}))
        began, error = time.monotonic(), ""
        try:
            launched(job["settings"] | case.get("settings", {}))
        except Exception as e:
            error = str(e) if type(e).__name__ == "VortexError" else f"{type(e).__name__}: {e}"
        said[name] = [time.monotonic() - began, error]
    print("\n" + json.dumps(said), flush=True)
