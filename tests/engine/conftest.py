"""An environment with SGLang, a small model, and a cache of compiled flows, each made once a run."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.harness import HERE, ROOT, VERSIONS, Lab, python


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave what needs the oldest SGLang to ``make test-full``: ``make test`` installs the newest alone."""
    for item in items:
        if isinstance(item, pytest.Function) and item.path.is_relative_to(HERE) and needs_oldest(item):
            item.add_marker(pytest.mark.full)


def needs_oldest(item: pytest.Function) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    wanted = parameters.get("version", VERSIONS[0])
    return wanted in ("oldest", VERSIONS[-1]) or not {"oldest", "oldest_latent"}.isdisjoint(item.fixturenames)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "engine"
    folder.mkdir(exist_ok=True)
    return folder


def lab(version: str, shared: Path, kind: str = "grouped") -> Lab:
    interpreter = python(version)
    if not interpreter.exists():
        pytest.fail(f"no SGLang {version} in {interpreter.parents[1]}; 'make engine' installs it")
    model = shared / f"{kind}-{version}"
    with (shared / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (model / "config.json").exists():
            environment = os.environ | {"PYTHONPATH": f"{ROOT}:{HERE / 'stubs'}"}
            words = [str(interpreter), str(HERE / "weights.py"), str(model), kind]
            subprocess.run(words, check=True, capture_output=True, env=environment)
    return Lab(version, model, shared / "cache")


@pytest.fixture
def newest(shared: Path) -> Lab:
    """The newest SGLang that is supported."""
    return lab(VERSIONS[0], shared)


@pytest.fixture
def latent(shared: Path) -> Lab:
    """The newest version with a model whose attention is latent (MLA)."""
    return lab(VERSIONS[0], shared, "latent")


@pytest.fixture
def oldest_latent(shared: Path) -> Lab:
    """The oldest version with such a model."""
    return lab(VERSIONS[-1], shared, "latent")


@pytest.fixture
def oldest(shared: Path) -> Lab:
    """The oldest SGLang that is supported."""
    return lab(VERSIONS[-1], shared)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quest for the model of ``standins``; tests only read it."""
    from tests.engine.standins import KV_HEADS, SPEC
    from vortex.runtime.compiled import COMPILER, ModelShape, artifact_for

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv(COMPILER, sys.executable)
        return artifact_for("quest", ModelShape(SPEC, KV_HEADS), "cpu")
