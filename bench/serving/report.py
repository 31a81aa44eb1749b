"""Rows of a measurement, as they come."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving import ROOT


class Report:
    """Rows as they come, in a file that is whole at any time."""

    def __init__(self, args: argparse.Namespace) -> None:
        from sglang_decode import about

        said = about(args.device, args.dtype)
        words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
        said["command"] = " ".join(["bench/sglang_serve.py", *words])
        self.path: Path = args.out
        self.found: dict[str, Any] = {"about": said, "rows": []}
        self.lock, self.began = threading.Lock(), time.monotonic()

    def add(self, part: str, **row: Any) -> None:
        with self.lock:
            self.found["rows"].append({"part": part, "at_s": round(time.monotonic() - self.began, 1)} | row)
            print(json.dumps(self.found["rows"][-1])[:1500], flush=True)
            self.path.write_text(json.dumps(self.found, indent=1) + "\n")

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    @contextlib.contextmanager
    def attempt(self, part: str, name: str = "") -> Iterator[None]:
        """What goes wrong within is a row, and the next thing is tried."""
        self.say(f"{part}: {name}")
        try:
            yield
        except Exception as error:
            where = [line.replace(f"{ROOT}/", "") for line in traceback.format_exc().splitlines()[-6:]]
            self.add(part, name=name, failed=f"{type(error).__name__}: {error}"[:600], where=where)
