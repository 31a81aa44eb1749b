"""Every rule on a small flow that shows it, and on a neighbour that does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import vortex
from vortex.budget import Budget
from vortex.check import explanation
from vortex.check.step_bytes import count_step, dense_bytes
from vortex.driver import compile_flow
from vortex.errors import NO_CUDA
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.remarks.contractions import contractions
from vortex.remarks.decisions import NotTaken, fusion_of_flow, of_knobs
from vortex.remarks.kernels import of_cluster, of_kernel, warnings
from vortex.remarks.program import near_dense, of_program
from vortex.remarks.remark import RULES, Remark
from vortex.schedules.check import described
from vortex.spec import Spec
from vortex.targets.target import TARGETS
from vortex.tune.choose import defaults

TWO_STEPS = Path(__file__).resolve().parents[2] / "examples" / "quest_then_mass.py"


class Plain(vortex.vFlow):
    """Everything a GPU likes."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((q @ cache.mean.T).amax(0))


class Narrow(Plain):
    """Keys in fp8, which become f16 on the way to tensor cores."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"keys": vortex.Field(spec.page_size, spec.head_dim, dtype="fp8_e4m3")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"keys": page.k}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.keys @ q.T).amax((1, 2)))


class Sizes(Narrow):
    """Computes with what is stored in fp8 before it is multiplied."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.keys.abs() @ q.T).amax((1, 2)))


class Squares(Narrow):
    """Squares what is stored in fp8, for a product with the sum of q's squares."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"sd": vortex.Field(spec.head_dim, dtype="fp8_e4m3")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"sd": page.k.std(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.sd.square() @ q.square().T).sum(-1))


class Wide(Narrow):
    """Keys in fp32, which tensor cores do not take."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"keys": vortex.Field(spec.page_size, spec.head_dim, dtype="f32")}


class Twice(Plain):
    """Reads its field again, after a statistic over pages that is as large as the field."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        centre = cache.mean.mean(0)
        return vortex.topk((q.mean(0) * (cache.mean - centre).abs()).sum(-1))


class Dense(Plain):
    """Scores all tokens."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"keys": vortex.Field(spec.page_size, spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"keys": page.k}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.keys @ q.T).amax((1, 2)))


class Rows(Plain):
    """Scores the keys themselves."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.k @ q.T).amax((1, 2)))


class RowsTwice(Plain):
    """Reads the keys again, after their mean."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((q.mean(0) * (cache.k - cache.k.mean((0, 1))).abs()).sum((1, 2)))


class Mass(Plain):
    """Softmax over the pages of every token's score, which a row would keep for each page."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"keys": vortex.Field(128, spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"keys": page.k.repeat(8, 1)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.keys @ q.T).softmax(0).sum((1, 2)))


class Counted(Plain):
    """Counts a request's steps."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {**super().create_cache(spec), "steps": vortex.Field(dtype="f32", state="request")}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return super().forward_indexer(q, cache), {"steps": cache.steps + 1}


def program(flow: type[vortex.vFlow], spec: Spec | None = None, target: str = "sm_90a") -> Module:
    return compile_flow(trace(flow, spec or Spec()), targets=[TARGETS[target]], to="page").programs[target]


def missed(remarks: list[Remark]) -> dict[str, str]:
    assert {r.rule for r in remarks} <= RULES.keys()
    return {r.rule: r.message for r in remarks if r.sort == "missed"}


def said(flow: type[vortex.vFlow], tokens: int = 4096) -> dict[str, str]:
    """What is missed by a flow's program, and by its bytes."""
    spec, made = Spec(), program(flow)
    read = sum(s.read for s in count_step(made, spec, tokens, Budget(27)) if s.kernel.startswith("select"))
    return missed([*of_program(made), *near_dense(read, dense_bytes(made, spec, tokens))])


def test_a_flow_that_a_gpu_likes_misses_nothing() -> None:
    assert said(Plain) == said(Narrow) == {}
    assert missed(fusion_of_flow(trace(Plain, Spec()))) == {}
    one, other = [r for r in of_program(program(Plain)) if r.sort == "passed"]
    assert one.message.endswith("runs on tensor cores")
    assert other.message.startswith("in steps of one token a request select does what append would do")


def test_append_that_has_launches_of_its_own_is_not_taken_in() -> None:
    """That of a flow with state, and that of a CPU."""
    for made in (program(Counted), program(Plain, target="cpu")):
        assert not [r for r in of_program(made) if r.rule == "launches"]


def test_contractions_that_tensor_cores_do_not_take() -> None:
    assert "something is computed with it first" in said(Sizes)["tensor-cores"]
    assert "sd is not multiplied as it is stored: something is computed" in said(Squares)["tensor-cores"]
    assert "field keys is stored as f32, and bf16, f16, fp8_e4m3, int8 or int4 is needed" in said(Wide)["tensor-cores"]
    assert "tensor-cores" not in said(Rows)
    (scaled,) = contractions(program(Rows, Spec(kv_dtype="fp8_e4m3")))
    assert scaled.why_scalar == ""
    (one,) = contractions(program(Wide))
    assert one.loc is not None and Path(one.loc.file).name == Path(__file__).name


def test_arithmetic_that_outlasts_the_bytes() -> None:
    """By hand: 16 tokens of 128 numbers are made positive, 2 instructions each, and multiplied for 4 heads, 3 each."""
    assert "arithmetic" not in said(Narrow)
    message = said(Sizes)["arithmetic"]
    total = 2048 * 2 + 2048 * 4 * 3 + 16 * 4 * 2 + 2048 * 12
    assert message.startswith(f"about {total} scalar instructions a page take")
    assert f"{2048 * 4 * 3} of them in dot, {2048 * 12} to convert" in message


def test_fields_that_are_read_again_say_what_for() -> None:
    found = said(Twice)["read-again"]
    assert found == "field mean is read 2 times: sub needs it again after reduce_mean of all pages, which the sweep " \
        "before ends with"  # fmt: skip
    assert said(RowsTwice)["read-again"].startswith("cache.k, the rows of the pool, is read 2 times")
    (one,) = [r for r in of_program(program(Twice)) if r.rule == "read-again"]
    assert one.loc is not None and "centre).abs()" in Path(one.loc.file).read_text().splitlines()[one.loc.line - 1]


def test_near_dense_selections() -> None:
    assert set(said(Dense)) == {"near-dense"}
    assert "49%" in said(Dense)["near-dense"]


def test_kernels_that_became_one_name_the_line_that_ends_them() -> None:
    found = {r.kernel: r.loc for r in fusion_of_flow(trace(Twice, Spec())) if r.sort == "passed"}
    lines = {}
    for kernel, loc in found.items():
        assert loc is not None and loc.file == __file__
        lines[kernel] = Path(loc.file).read_text().splitlines()[loc.line - 1].strip()
    assert lines == {
        "append": 'return {"mean": page.k.mean(0)}',
        "select": "return vortex.topk((q.mean(0) * (cache.mean - centre).abs()).sum(-1))",
    }


def test_kernels_that_stay_apart_say_why() -> None:
    """The pass gives its own reason, with the line of what would have to be kept; with more room it has none."""
    module = trace(Mass, Spec())
    remarks = fusion_of_flow(module)
    first = next(r for r in remarks if r.sort == "missed")
    assert "did not become one kernel: one kernel would keep" in first.message
    assert "and 'max-live' allows 256; most of them are %" in first.message
    assert first.loc is not None and Path(first.loc.file).name == Path(__file__).name
    made = program(Mass)
    launches = "a layer takes 4 launches: select_0, select_1, select_2, attend"
    assert missed(of_program(made))["launches"] == launches, "select_0 takes in what append would do"
    names = {name for r in remarks if r.rule == "fusion" for name in [r.kernel]}
    assert names <= made.functions.keys()

    roomy = "canonicalize,cse,outline,expand-softmax,fuse{max-live=2048}"
    assert missed(fusion_of_flow(module, roomy)) == {}
    assert "became select" in " ".join(r.message for r in fusion_of_flow(module, roomy))
    # what must run in between is named
    between = [r.message for r in fusion_of_flow(module, roomy.replace("2048", "3")) if r.sort == "missed"]
    assert any("must run after the one and before the other" in m for m in between)


RESOURCES = {
    "registers": 128, "spills": 0, "static_shared": 0, "dynamic_shared": 100_000, "threads": 256, "ctas": 2,
    "warps": 16, "bound_by": "shared memory",
}  # fmt: skip


def of_select(
    flow: type[vortex.vFlow], changed: Mapping[str, object] | None = None, **resources: object
) -> list[Remark]:
    made = program(flow)
    f = made.functions["select"]
    schedule = {**described(made, f, TARGETS["sm_90a"]), **(changed or {})}
    return of_kernel(made, f, "select", schedule, {**RESOURCES, **resources})


def test_spills_and_ctas_without_room() -> None:
    assert warnings("select", {"residents": 2}, RESOURCES) == []
    found = missed(of_select(Sizes, spills=236, ctas=1, warps=8, dynamic_shared=140_672))
    assert found["spills"] == "select has no room for 236 bytes in its 128 registers a lane"
    room = "an SM holds 1 CTA of select, and its schedule asks for 2: each takes 140672 bytes of shared memory"
    assert found["occupancy"] == room
    by_registers = warnings("select", {"residents": 4}, {**RESOURCES, "bound_by": "registers"})
    assert "each takes 128 registers for 256 threads" in by_registers[0].message
    # of kernels that nobody compiled nothing is said
    made = program(Plain)
    assert of_kernel(made, made.functions["select"], "select", {}, {}) == []


def test_a_kernel_in_clusters_says_what_its_ctas_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a flow as its defaults would compile it: a variant of few rows among them."""

    def without(lowered: object, kinds: object) -> None:
        raise NO_CUDA.at(why="it is not installed")

    monkeypatch.setattr(explanation, "start_resources", without)

    def explained(flow: str) -> explanation.Explanation:
        not_taken = lambda program, f, target: NotTaken()  # noqa: E731
        return explanation.explain_flow(find_flow(flow), Spec(), "sm_90a", not_taken, defaults())

    told = explained(str(TWO_STEPS))
    (found,) = [r for r in told.remarks if r.rule == "clusters"]
    assert found.kernel == "select_v1"
    words = "8 CTAs, a cluster, share a row of select_v1 in steps of about 8 rows or fewer: the first 2 of 3 sweeps"
    assert found.message.startswith(words)
    assert found.loc is not None and Path(found.loc.file) == TWO_STEPS
    assert "vortex.shortlist(" in TWO_STEPS.read_text().splitlines()[found.loc.line - 1]
    assert found in told.of("select_v1").remarks
    (found,) = [r for r in explained("masked_quest").remarks if r.rule == "clusters"]
    assert found.message.endswith("the sweep over its pages, and the choice among more than 4096 of them")
    assert found.loc is not None and "vortex.topk(" in Path(found.loc.file).read_text().splitlines()[found.loc.line - 1]
    made = program(Plain)
    assert of_cluster(made, made.functions["select"], "select", made.functions["select"].attrs["schedule"]) == []


def test_a_kernel_in_clusters_waits_as_the_ctas_of_its_few_rows_do() -> None:
    """64 CTAs at most, of the 264 that the GPU has room for."""
    schedule = {"cluster": 8, "serves": ((8, 2048, 32),), "bytes_in_flight": 16384}
    limiters = {r.rule: r.message for r in of_select(Plain, schedule)}
    assert limiters["limiter"].startswith("select waits for the memory's latency")
    assert "select in clusters that waits for the memory's latency" in limiters["prediction"]


@pytest.mark.parametrize(
    ("flow", "resources", "words"),
    [
        (Plain, {}, "select waits for memory, 100% of its time"),
        (Plain, {"ctas": 1, "warps": 2, "threads": 64}, "select waits for memory"),
        (Sizes, {"ctas": 1, "warps": 8, "spills": 236}, "select waits for scalar arithmetic"),
        (Plain, {"spills": 20_000}, "select waits for spills"),
    ],
)
def test_limiters(flow: type[vortex.vFlow], resources: dict[str, object], words: str) -> None:
    (one,) = [r for r in of_select(flow, **resources) if r.rule == "limiter"]
    assert one.message.startswith(words)
    assert one.sort == "analysis" and one.help
    assert one.loc is not None and Path(one.loc.file).name == Path(__file__).name


@pytest.mark.parametrize(
    ("flow", "resources", "words"),
    [
        (Plain, {}, ""),
        (
            Sizes,
            {"ctas": 1, "warps": 8, "spills": 236},
            "the one committed measurement of select that waits for scalar",
        ),
        (Plain, {"spills": 20_000}, "no committed measurement on H200 is of select that waits for spills, above 50 MB"),
    ],
)
def test_predictions_that_are_not_to_be_relied_on(
    flow: type[vortex.vFlow], resources: dict[str, object], words: str
) -> None:
    found = [r for r in of_select(flow, **resources) if r.rule == "prediction"]
    assert bool(found) == bool(words)
    for r in found:
        assert r.message.startswith(f"a predicted time of select is unsure: {words}")
        assert r.sort == "analysis" and "lower bound" in r.help and r.loc is not None


@pytest.mark.parametrize(
    ("schedule", "why", "words"),
    [
        ({"from": "db:1a2b"}, "", "record 1a2b of a tuning database, measured"),
        ({"from": "transfer:1a2b"}, "", "measured on another GPU"),
        (
            {"from": "heuristic", "user": ("threads",)},
            "no layer has one",
            "defaults; threads given by hand; not from a",
        ),
        ({"from": "model"}, "", "defaults by a model of the GPU"),
        ({"from": "user"}, "", "given by hand"),
        ({"from": "db:1", "serves": [[8, 2048, 32]]}, "", "measured, for rows<=8 columns<=2048 kept<=32"),
    ],
)
def test_where_knobs_came_from(schedule: dict[str, object], why: str, words: str) -> None:
    (one,) = of_knobs("select", schedule, NotTaken(why))
    assert words in one.message and (not why or why in one.message)
    assert one.help == ("measure it: vortex tune" if why else "")
    assert of_knobs("select", {}, NotTaken()) == []


def test_what_is_measured_already_is_not_to_be_tuned() -> None:
    (one,) = of_knobs("plan", {"from": "heuristic"}, NotTaken("'vortex compile' takes it", measured=True))
    assert one.message.endswith("not from a tuning database: 'vortex compile' takes it")
    assert one.help == ""


def test_a_cpu_is_told_of_nothing_that_gpus_have() -> None:
    assert set(missed(of_program(program(Twice, target="cpu")))) == {"read-again"}
    assert missed(of_program(program(Sizes, target="cpu"))) == {}
