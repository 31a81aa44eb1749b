"""One loaded model for all tests of evaluation."""

from importlib.util import find_spec

import pytest

if find_spec("transformers") is None:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items):
    """Tests of the real model run in one process, which loads it once."""
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("smollm2"))


@pytest.fixture(scope="session")
def smollm2():
    """The real model: 4 seconds to load, 30 where it was not unpacked before."""
    from vortex.evaluate.models import load_model

    return load_model("smollm2")


@pytest.fixture(scope="session")
def tokenizer():
    """That of the real model, without its weights."""
    from vortex.evaluate.models import load_tokenizer

    return load_tokenizer("smollm2")
