"""These tests need transformers, of the extra ``vortex[eval]``; compiled flows are kept for the run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

collect_ignore_glob: list[str] = []
try:
    import transformers  # noqa: F401
except ImportError:
    collect_ignore_glob.append("test_*.py")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "hf"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder
