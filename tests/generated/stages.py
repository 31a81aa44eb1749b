"""The ways to run a generated flow, and what each must give: what eager torch gives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.cuda.harness import Kernels, dtype_of, emitted, loaded, stored, tensors
from tests.generated.program import Program
from tests.generated.world import FIRST_HEAD, LAYER, Step, World, again
from vortex.budget import I32_MAX
from vortex.ir.core import Module
from vortex.ir.interpret import run_function
from vortex.ir.interpret_page import plan_row, run_program
from vortex.ir.numerics import narrow
from vortex.ir.ranking import Selected
from vortex.ir.types import TensorType
from vortex.passes.manager import DEFAULT_PIPELINE, PassContext, run_pipeline
from vortex.schedules.cuda_select import SelectKnobs, fitting
from vortex.targets.gpu import H200
from vortex.targets.target import TARGETS, Target

SIMPLIFY = DEFAULT_PIPELINE["flow"].removesuffix(",outline")
PIPELINES = (
    f"{DEFAULT_PIPELINE['flow']},{DEFAULT_PIPELINE['page']}",
    "outline,expand-softmax,plan-memory,schedule",
    "outline,expand-softmax,fuse{max-live=0},cse,dce,plan-memory,schedule",
)
KINDS = ("plan", "append", "select")
"""The kernels that depend on the flow; ``attend`` is run on CPUs as well, where it takes a tenth of a second a flow."""


# what must agree -------------------------------------------------------------------------------------


def close(have: Any, want: Any, exact: bool, what: str) -> None:
    """The same to the bit, or, of a flow that rounds, nearly everywhere within rounding: a floor or a comparison of a
    rounded number may fall on the other side.
    """
    have, want = np.asarray(have, np.float32), np.asarray(want, np.float32)
    if exact:
        np.testing.assert_array_equal(have, want, err_msg=what)
        return
    near = np.isclose(have, want, rtol=2e-3, atol=2e-3, equal_nan=True)
    assert near.size == 0 or near.mean() >= 0.97 or (~near).sum() <= 1, (what, have[~near], want[~near])


def ordered(pages: Sequence[int], seen: Any, first: int, what: str) -> None:
    """No page that is left out has a larger score than one that is kept."""
    kept = np.zeros(len(seen), bool)
    kept[[p - first for p in pages if 0 <= p - first < len(seen)]] = True
    if kept.any() and not kept.all():
        slack = 1e-5 * max(1.0, float(np.abs(seen).max()))
        assert np.nanmin(seen[kept]) >= np.nanmax(seen[~kept]) - slack, what


class Answers:
    """What a stage found of a step, checked against eager torch."""

    def __init__(self, world: World, step: Step, where: str) -> None:
        self.world, self.step, self.where = world, step, where
        self.exact = world.program.exact

    def selection(self, r: int, h: int, pages: Sequence[int]) -> None:
        row, what = self.step.rows[r, h], f"{self.where}: pages of request {r}, head {h}"
        if self.exact or row.selected is None:
            assert list(pages) == row.pages, f"{what}: {list(pages)}, eagerly {row.pages}"
            return
        assert list(pages) == sorted(set(pages)), what
        assert len(pages) == len(row.pages), what
        scores = row.selected.parts[0].over().numpy()
        ordered(pages, scores, self.world.budget.sink, what)

    def output(self, r: int, h: int, pages: Sequence[int], have: Any, q: Any) -> None:
        """Attention of ``q`` ``[G, D]`` over these pages."""
        want = self.world.attended(self.step.batch, r, h, pages, q)
        what = f"{self.where}: output of request {r}, head {h}"
        np.testing.assert_allclose(have, want, rtol=0, atol=0.02 * (1 + np.abs(want).max()), err_msg=what)

    def state(self, state: Mapping[str, Any]) -> None:
        """All of it, as it lies in memory."""
        b = self.step.batch
        for (r, h), row in self.step.rows.items():
            full = int(b.lengths[r]) // self.world.spec.block_size
            for name, want in row.state.items():
                have = np.asarray(state[name])[int(b.slots[r]), h]
                per_page = self.world.module.decls[name].attrs["state"] == "page"
                n = min(full, len(want)) if per_page else None
                what = f"{self.where}: state {name} of request {r}, head {h}"
                close(have[:n], want.float().numpy()[:n], self.exact, what) if per_page else close(
                    have, want.float().numpy(), self.exact, what
                )

    def fields(self, paged: Mapping[str, Any]) -> None:
        """Every full block of a request is summarised."""
        w, each = self.world, self.world.spec.page_blocks
        for r, length in enumerate(self.step.batch.lengths):
            full = int(length) // w.spec.block_size
            for name in w.summaries[0]:
                whole = name in w.whole
                blocks = w.blocks_of(r, full - full % each if whole else full)
                rows = w.rows_of(name, blocks)
                at = (w.physical[rows],) if whole or each == 1 else (w.physical[blocks // each], blocks % each)
                for h in range(w.heads):
                    what = f"{self.where}: field {name} of request {r}, head {h}"
                    have = paged[name][(at[0], h, *at[1:])]
                    np.testing.assert_array_equal(have, w.kept(name, h)[rows], err_msg=what)


# interpreters ----------------------------------------------------------------------------------------


def by_flow_interpreter(world: World, module: Module, where: str) -> None:
    """Rows of the first step, and the summaries of a few blocks."""
    step = world.steps[0]
    b, found = step.batch, Answers(world, step, where)
    spec, index, cache = world.spec, module.functions["index"], module.functions["cache"]
    names = cache.ops[-1].attrs.get("names", ())
    for h in range(world.heads):
        place = {"layer": LAYER, "head": FIRST_HEAD + h, "parameters": b.parameters,
                 "budget": I32_MAX if b.row_budget is None else int(b.row_budget[h])}  # fmt: skip
        for at in range(0, world.blocks, 7):
            page, inside = divmod(at, spec.page_blocks)
            rows = slice(inside * spec.block_size, (inside + 1) * spec.block_size)
            of_page = [x[page, h] for x in world.memory.values()]
            given = [x[rows] for x in of_page] + (of_page if world.whole else [])
            made = run_function(cache, given, module, **place)
            for name, x in zip(names, made, strict=True):
                t = module.decls[name].type
                assert isinstance(t, TensorType)
                what = f"{where}: field {name} of block {at}, head {h}"
                want = world.kept(name, h)[page if name in world.whole else at]
                np.testing.assert_array_equal(narrow(x, t.dtype), want, err_msg=what)
        for r, length in enumerate(b.lengths):
            n, kept, first, scored = plan_row(int(length), spec.block_size, b.budget, world.cap)
            if not scored:
                found.selection(r, h, range(n))
                continue
            at = world.blocks_of(r, first + scored)[first:]
            given: dict[str, Any] = {name: world.kept(name, h)[world.rows_of(name, at)] for name in world.summaries[h]}
            for name, x in world.memory.items():
                given[name] = x[:, h].reshape(world.blocks, spec.block_size, -1)[at]
            for d in module.declared("field"):
                if "state" in d.attrs:
                    assert isinstance(d.type, TensorType)
                    lead = (scored,) if d.attrs["state"] == "page" else ()
                    given[d.name] = np.full((*lead, *d.type.tile), d.attrs["init"], np.float32)
            q = b.q[r, h * spec.group : (h + 1) * spec.group]
            best, *new = run_function(
                index,
                [q if a.name == "q" else given[a.name] for a in index.args],
                module,
                pages=scored,
                first=first,
                **place,
            )
            assert isinstance(best, Selected)
            chosen = {first + int(i) for i in best.best(kept - (n - scored))}
            found.selection(r, h, [p for p in range(n) if p in chosen or not first <= p < first + scored])
            stated = [d.name for d in module.declared("field") if "state" in d.attrs]
            for name, x in zip(stated, new, strict=True):
                d = module.decls[name]
                assert isinstance(d.type, TensorType)
                want = step.rows[r, h].state[name].float().numpy()
                want = want[first : first + scored] if d.attrs["state"] == "page" else want
                what = f"{where}: state {name} of request {r}, head {h}"
                close(narrow(np.asarray(x), d.type.dtype), want, found.exact, what)


def lowered(world: World, pipeline: str, target: Target | None = None, *, attend: bool = False) -> Module:
    """The page program, without ``attend`` unless asked for: it does not depend on the flow."""
    program = run_pipeline(world.module, pipeline.removesuffix(",schedule"), PassContext(target))
    for name in [f.name for f in program.functions.values() if f.attrs["kind"] == "attend" and not attend]:
        del program.functions[name]
    return run_pipeline(program, "schedule", PassContext(target))


def by_page_interpreter(world: World, pipeline: str) -> None:
    program = lowered(world, pipeline, attend=True)
    for i, step in enumerate(again(world.steps)):
        b, found = step.batch, Answers(world, step, f"page interpreter after '{pipeline}', step {i}")
        run_program(program, b)
        for r, h in b.rows():
            pages, mine = b.pages[r, h, : b.counts[r, h]].tolist(), world.queries(h)
            found.selection(r, h, pages)
            found.output(r, h, pages, b.out[r, mine], b.q[r, mine])
        found.fields(b.paged)
        found.state(b.state)


# kernels ---------------------------------------------------------------------------------------------


class _Library:
    """Compiled kernels that are called as emulated ones are."""

    def __init__(self, library: Any) -> None:
        self.library = library

    def call(self, symbol: str, *arguments: Any, seed: int = 0) -> None:
        self.library[symbol](*arguments)


def cpu_kernels(programs: Mapping[str, Module]) -> Kernels:
    """The kernels of many programs in one library."""
    import tvm_ffi

    from vortex.codegen.build.llvm import build_library, detect_mcpu

    sources, functions = emitted(programs, (*KINDS, "attend"), TARGETS["cpu"])
    with tempfile.TemporaryDirectory(prefix="vortex-test-") as folder:
        build_library(functions, detect_mcpu(), Path(folder) / "lib.so")
        library = _Library(tvm_ffi.load_module(f"{folder}/lib.so"))
    return Kernels(dict(programs), sources, {}, library)  # type: ignore[arg-type]


def gpu_kernels(programs: Mapping[str, Module]) -> Kernels:
    """The kernels of many programs under the emulator."""
    return Kernels.of(dict(programs), KINDS)


KNOBS: dict[str, dict[str, Any]] = {
    "plan": {"threads": 64, "select_pages": 32},
    "append": {"threads": 64},
    "select": {"threads": 64, "in_flight": 2},
}


def for_cpu(world: World) -> Module:
    """Fused in most flows: a kernel for each op takes long to compile."""
    return lowered(world, PIPELINES[{2: 1, 18: 2}.get(world.program.seed % 32, 0)], TARGETS["cpu"], attend=True)


def for_gpu(world: World) -> Module:
    """Small CTAs, so that rows are cut; what is kept of a row's pages on the chip, or in the workspace."""
    program = lowered(world, PIPELINES[0], TARGETS["sm_90a"])
    for f in program.functions.values():
        chosen = {**f.attrs.get("schedule", {}), **KNOBS[str(f.attrs["kind"])]}
        if f.attrs["kind"] == "select":
            chosen["chip_words"] = (4096, 0)[world.program.seed % 2]
            knobs = SelectKnobs(**{n: x for n, x in chosen.items() if n != "from"})
            chosen |= fitting(program, f, H200, knobs, ("chip_words", "threads")).attrs()
        f.attrs["schedule"] = chosen
    return program


def by_kernels(world: World, kernels: Kernels, key: str, where: str) -> None:
    """All steps by compiled kernels, over memory in its own types."""
    program = kernels.programs[key]
    for i, step in enumerate(again(world.steps)):
        b, found = step.batch, Answers(world, step, f"{where}, step {i}")
        given = tensors(kernels, key, b, slots=(1, 8)[world.program.seed % 2])
        kernels.run(key, given, KINDS, seed=world.program.seed + i)
        for prefix, held in (("", b.paged), ("field.", b.paged), ("state.", b.state)):
            for name in held:
                if prefix + name in given:
                    held[name][...] = loaded(given[prefix + name], dtype_of(program, name)).reshape(held[name].shape)
        for r, h in b.rows():
            found.selection(r, h, given["pages"][r, h, : int(given["counts"][r, h])].tolist())
        found.fields(b.paged)
        found.state(b.state)
        if any(f.attrs["kind"] == "attend" for f in program.functions.values()):
            outputs(world, kernels, key, given, found)


def outputs(world: World, kernels: Kernels, key: str, given: dict[str, Any], found: Answers) -> None:
    """Attention over what was selected, and by other queries, as a layer does it that reuses the selection."""
    b, dtype = found.step.batch, world.spec.dtype
    for what, q in (("", b.q), (", reused", again_by_others(b.q))):
        given["q"], given["scale"] = stored(q, dtype), b.scale
        given["out"] = torch.full((*q.shape[:2], world.spec.v_dim), float("nan"), dtype=given["q"].dtype)
        given["lse"] = torch.full((0, q.shape[1]), float("nan"))
        kernels.run(key, given, ("attend",), seed=world.program.seed)
        said = Answers(world, found.step, found.where + what)
        for r, h in b.rows():
            mine, pages = world.queries(h), given["pages"][r, h, : int(given["counts"][r, h])].tolist()
            said.output(r, h, pages, loaded(given["out"], dtype)[r, mine], q[r, mine])


def again_by_others(q: Any) -> Any:
    """Queries of another layer: the heads in another order, and turned round."""
    return -np.ascontiguousarray(q[:, ::-1])


# all of them -----------------------------------------------------------------------------------------


class Disagreement(AssertionError):
    """Two stages differ on a flow, or one of them fails."""


def interpreted(worlds: Sequence[World]) -> Iterator[tuple[World, Callable[[], None]]]:
    """The flow interpreter before and after the passes, and the page interpreter, fused and not."""

    def check(world: World) -> None:
        by_flow_interpreter(world, world.module, "flow interpreter")
        passed = run_pipeline(world.module, SIMPLIFY, PassContext(None))
        by_flow_interpreter(world, passed, "flow interpreter after passes")
        by_page_interpreter(world, PIPELINES[0])
        by_page_interpreter(world, PIPELINES[1 + world.program.seed % 2])

    for world in worlds:
        yield world, partial(check, world)


def on_cpu(worlds: Sequence[World]) -> Iterator[tuple[World, Callable[[], None]]]:
    """CPU kernels, all in one library."""
    kernels = cpu_kernels({world.program.name: for_cpu(world) for world in worlds})
    for world in worlds:
        yield world, partial(by_kernels, world, kernels, world.program.name, "CPU")


def on_gpu(worlds: Sequence[World]) -> Iterator[tuple[World, Callable[[], None]]]:
    """GPU kernels under the emulator."""
    kernels = gpu_kernels({world.program.name: for_gpu(world) for world in worlds})
    for world in worlds:
        yield world, partial(by_kernels, world, kernels, world.program.name, "emulated GPU")


Stage = Callable[[Sequence[World]], Iterator[tuple[World, Callable[[], None]]]]


def agree(programs: Sequence[Program], *stages: Stage) -> None:
    """Every stage gives for every flow what eager torch gives.

    Raises:
        Disagreement: with the smallest flow like the first that fails for which the same stage fails.
    """
    worlds = [World(p) for p in programs]
    for stage in stages:
        try:
            for world, check in stage(worlds):
                failed = failure(check)
                if failed is not None:
                    raise _smallest(world.program, stage, failed)
        except Disagreement:
            raise
        except Exception:  # a stage that dies on all flows at once dies on one of them by itself
            for world in worlds:
                failed = _alone(world.program, stage)
                if failed is not None:
                    raise _smallest(world.program, stage, failed) from None
            raise


def failure(check: Callable[[], None]) -> Exception | None:
    try:
        check()
    except Exception as error:  # whatever a stage dies of
        return error
    return None


def _alone(program: Program, stage: Stage) -> Exception | None:
    def check() -> None:
        for _, one in stage([World(program)]):
            one()

    return failure(check)


def _smallest(program: Program, stage: Stage, failed: Exception) -> Disagreement:
    """The error for the smallest flow that was found within :data:`TRIES` tries."""
    tries, smaller = 0, program.smaller()
    while tries < TRIES and (candidate := next(smaller, None)) is not None:
        tries += 1
        other = _alone(candidate, stage)
        if other is not None and type(other) is type(failed):
            program, failed, smaller = candidate, other, candidate.smaller()
    made = Disagreement(f"{stage.__name__}: {failed}\n\n{program.text}")
    made.__cause__ = failed
    return made


TRIES = 60
"""Flows that are tried while a smaller one is sought that fails as well."""
