"""Environments without apache-tvm: links to everything installed here but TVM, and a chosen apache-tvm-ffi."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLDEST = "0.1.11"
"""What SGLang pins; the compiler's own version is the other one that counts."""

HIDDEN = ("tvm", "tvm_ffi", "apache_tvm", "apache_tvm_ffi")


def make_environment(ffi: str, folder: Path) -> Path:
    """A folder for ``PYTHONPATH`` with tvm-ffi of version ``ffi``; skips the test where pip cannot get it."""
    sites = [Path(p) for p in sys.path if Path(p).name in ("site-packages", "dist-packages") and Path(p).is_dir()]
    here = version("apache-tvm-ffi") == ffi
    for site in sites:
        for entry in site.iterdir():
            package = entry.name.split("-")[0].split(".")[0]
            keep = package not in HIDDEN or (here and package in ("tvm_ffi", "apache_tvm_ffi"))
            if keep and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    if not here:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "ffi")]
        done = subprocess.run([*command, f"apache-tvm-ffi=={ffi}"], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"pip cannot install apache-tvm-ffi {ffi}: {done.stderr.strip().splitlines()[-1]}")
    return folder


def run_in(environment: Path, program: str, *args: object, **variables: str) -> str:
    """What ``program`` prints in an environment; ``-S`` keeps this interpreter's own packages out."""
    path = os.pathsep.join(map(str, (environment / "ffi", environment, ROOT)))
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, *map(str, args)],
        env={**os.environ, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
        cwd=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
