"""One loaded model for all tests of evaluation."""

from importlib.util import find_spec

import pytest

if find_spec("transformers") is None:
    collect_ignore_glob = ["test_*.py"]


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
