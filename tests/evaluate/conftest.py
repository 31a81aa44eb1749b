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


@pytest.fixture(scope="session")
def tiny():
    """A small Llama of random weights, large enough ones that attention has peaks; words of its text are numbers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from vortex.evaluate.models import Model

    size = 128
    words = Tokenizer(models.WordLevel({str(i): i for i in range(size)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    config = LlamaConfig(
        vocab_size=size, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=2048, initializer_range=0.15,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(7)
    hf = LlamaForCausalLM(config).eval()
    return Model(
        name="tiny", hf=hf, tokenizer=PreTrainedTokenizerFast(tokenizer_object=words), identity="tiny7", layers=3,
        heads=4, kv_heads=2, head_dim=16, sparse_layers=(0, 1, 2), context=2048, stop=(2,),
    )  # fmt: skip


@pytest.fixture(scope="session")
def folder(tokenizer, tmp_path_factory):
    """The folder of a small Llama of random weights with a real tokenizer; its context is 1024 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=1024, initializer_range=0.15,
    )  # fmt: skip
    made = tmp_path_factory.mktemp("model")
    torch.manual_seed(7)
    LlamaForCausalLM(config).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made
