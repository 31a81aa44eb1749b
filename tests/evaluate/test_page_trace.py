"""``vortex eval --trace-pages``: the pages in the file are those that the outcomes of the same lane are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.prompts import prompts
from vortex.errors import VortexError
from vortex.evaluate.models import Model
from vortex.evaluate.outcomes import Lane
from vortex.evaluate.page_trace import PageTrace
from vortex.evaluate.prefill import PromptCache
from vortex.evaluate.readers import Backend
from vortex.evaluate.run import Evaluation
from vortex.page_traces.figures import figures_of
from vortex.runtime.page_trace import PagesRead, StepTimes, read_page_trace

LANE = Lane("quest", 4)


@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_figures_are_those_of_the_evaluation(backend: Backend, tiny: Model, tmp_path: Path) -> None:
    given = prompts(tiny, 500, 2)
    made = Evaluation(tiny, {"quest": "quest"}, [4], backend, folder=tmp_path).run(given)
    want = [o for o in made.outcomes if o.lane == LANE]
    trace = PageTrace(tmp_path / "t.jsonl", tiny, LANE, "quest", backend)
    for prompt in given:
        trace.add(prompt, PromptCache(tmp_path))
    figures = figures_of(tmp_path / "t.jsonl")
    assert [r.name for r in figures.requests] == [f"{p.task} {p.length} #{p.index}" for p in given]
    assert figures.steps == sum(len(p.answer) for p in given)
    heads = [h for x in figures.layers for h in figures.heads[x.layer]]
    # the answers have one length, so that means over steps are means over prompts
    assert len({len(p.answer) for p in given}) == 1
    assert [h.mass for h in heads] == pytest.approx(np.mean([o.mass for o in want], 0).ravel(), abs=1e-5)
    assert np.mean([h.complete for h in heads]) == pytest.approx(np.mean([o.recall for o in want]))
    _, lines = read_page_trace(tmp_path / "t.jsonl")
    reads = [x for x in lines if isinstance(x, PagesRead)]
    assert np.mean([len(row) for x in reads for row in x.which[0]]) == pytest.approx(np.mean([o.pages for o in want]))
    for x in reads:
        place = given[[r.name for r in figures.requests].index(x.requests[0])].evidence
        assert x.needles[0][0] == tuple(sorted({t // 16 for first, end in place for t in range(first, end)}))
    _, lines = read_page_trace(tmp_path / "t.jsonl")
    times = [x for x in lines if isinstance(x, StepTimes)]
    assert all(x.unrecorded and x.recorded > 0 for x in times)
    assert ("attend" in figures.kernels) == (backend == "compiled")


def test_a_flow_that_gives_no_numbers_ends_the_recording(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = PageTrace(tmp_path / "t.jsonl", tiny, LANE, "quest", "eager")
    (prompt,) = prompts(tiny, 300, 1)
    read = type(trace._flow.lane(4)).read

    def broken(self, layer, q, mass, scale):  # type: ignore[no-untyped-def]
        made = read(self, layer, q, mass, scale)
        made.pages[:] = False  # no page: 0 / 0
        return made

    monkeypatch.setattr(type(trace._flow.lane(4)), "read", broken)
    with pytest.raises(VortexError) as raised:
        trace.add(prompt, PromptCache(tmp_path))
    assert raised.value.code == "VX9123"
    assert not figures_of(tmp_path / "t.jsonl").layers
