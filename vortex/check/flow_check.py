"""Is a flow right, at which shapes, and what does it cost: the report of ``vortex check``.

The flow goes to page IR at some thirty shapes (:mod:`vortex.check.shapes`), to TensorIR for a CPU and a GPU, and
through compiled CPU kernels at three shapes, where it is compared with its own eager code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace

from vortex.artifact.manifest import ParameterEntry
from vortex.budget import Budget
from vortex.check.bounds import LENGTHS, compared_lengths, counted_tokens, why_fewer
from vortex.check.explanation import OWN_KERNELS
from vortex.check.reference import eager
from vortex.check.shapes import BLOCKS, DENSE, LATENT, pairwise, shown, spec_of
from vortex.check.step_bytes import StepBytes, count_step, dense_bytes, page_sizes
from vortex.check.synthetic_batch import Trial
from vortex.check.verdict import LAYERS, judge
from vortex.check.weights import random_parameters
from vortex.compilation.lowered import Lowered
from vortex.driver import Resources, compile_flow, start_resources
from vortex.errors import OTHER_CACHE, Loc, VortexError
from vortex.flow.flow import vFlow
from vortex.flow.trace import trace
from vortex.install.scratch import scratch_folder
from vortex.ir.core import Module
from vortex.ir.dialects.flow import of_pages
from vortex.ir.types import TensorType
from vortex.passes.manager import Choose
from vortex.remarks.contractions import Contraction, contractions
from vortex.remarks.decisions import fusion_of_flow
from vortex.remarks.kernels import of_kernel
from vortex.remarks.program import near_dense, of_program
from vortex.remarks.remark import Remark
from vortex.runtime.decoder import load
from vortex.schedules.taken_in import takes_in_tokens
from vortex.spec import Spec
from vortex.targets.gpu import MACHINES
from vortex.targets.target import TARGETS

GPU = "sm_90a"
STEPS = 2
"""Steps that the requests decode that are compared with the eager flow."""
PAGES_KEPT = 8
COMPARED_PAGES, MOST_COMPARED = (8, 32), 20
"""Page sizes of the other two shapes that are compared, and the most query heads a KV head, to be done in seconds."""

Advance = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong (``error``) or costs time (``slow``)."""

    severity: str
    rule: str
    """The code of an error (``vortex errors CODE``), or the name of a rule of :data:`vortex.remarks.remark.RULES`."""
    message: str
    help: str
    file: str = ""
    line: int = 0
    shapes: tuple[str, ...] = ()
    """Where it was found; empty for the shape that costs are counted at."""
    text: str = ""
    """The whole of it as the command line prints errors."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Compiled kernels beside the flow's eager code, at one shape."""

    shape: str
    error: float
    """Largest difference of an output, relative to the largest output (at least 1)."""
    differing: int
    """Pages that one of the two selected and the other did not, ties within rounding aside."""
    ok: bool


ChooseFor = Callable[[int, int, int, int], Choose]
"""What chooses kernels for so many requests, KV heads, tokens and kept pages."""


@dataclass
class Report:
    """What ``vortex check`` says of a flow; :meth:`as_json` is the documented form."""

    flow: str
    spec: Spec
    shapes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    compared: list[Compared] = field(default_factory=list)
    kernels: list[StepBytes] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    batch: int = 0
    tokens: int = 0
    kv_heads: int = 0
    page_bytes: int = 0
    """Bytes of a page's summaries, one KV head."""
    state_bytes: int = 0
    """Bytes of a request's state in one layer, one KV head."""
    pool_bytes: int = 0
    """Bytes of a page's K and V, one KV head."""
    resources: Resources = field(default_factory=dict)
    """What the flow's own kernels take of a GPU, by kernel; empty where nobody looked."""
    taken_in: bool = False
    """Whether ``select`` takes in the new tokens of a decode step, so that ``append`` is not launched for them."""
    skipped: list[str] = field(default_factory=list)
    """What was left out or made smaller because a page of the flow is too large for it, in words."""
    no_resources: str = "nobody asked"
    """Why :attr:`resources` is empty."""

    @property
    def ok(self) -> bool:
        return not any(f.severity == "error" for f in self.findings) and all(c.ok for c in self.compared)

    @property
    def launches(self) -> int:
        """Kernels of a layer that a decode step launches; ``plan`` runs once for all."""
        others = {"plan", "append"} if self.taken_in else {"plan"}
        return len([k for k in self.kernels if k.kernel not in others])

    @property
    def rows(self) -> int:
        return self.batch * self.kv_heads

    @property
    def step_bytes(self) -> float:
        """Of one layer's step, all rows."""
        return self.rows * sum(k.total for k in self.kernels)

    def microseconds(self, target: str = GPU) -> float:
        """What the step's bytes take on a GPU at the speed of a copy: a bound, not a prediction."""
        return 1e6 * self.step_bytes / MACHINES[target].copy_bandwidth

    def note(self, remarks: Iterable[Remark]) -> None:
        """Take in the remarks on what costs time."""
        for r in remarks:
            if r.sort == "missed":
                self.findings.append(Finding("slow", r.rule, r.message, r.help, *_place(r.loc), (), r.render("slow")))

    def as_json(self) -> dict[str, object]:
        """Numbers as numbers; the schema is in docs/check.md."""
        return {
            "flow": self.flow,
            "ok": self.ok,
            "shapes": self.shapes,
            "findings": [asdict(f) for f in self.findings],
            "compared": [asdict(c) for c in self.compared],
            "skipped": self.skipped,
            "cost": {
                "batch": self.batch,
                "tokens": self.tokens,
                "kv_heads": self.kv_heads,
                "page_size": self.spec.page_size,
                "launches": self.launches,
                "summary_bytes_a_page": self.page_bytes,
                "kv_bytes_a_page": self.pool_bytes,
                "state_bytes_a_request": self.state_bytes,
                "step_bytes": round(self.step_bytes),
                "microseconds_at_least": round(self.microseconds(), 2) if self.kernels else None,
                "kernels": [{**asdict(k), "read": round(k.read), "written": round(k.written)} for k in self.kernels],
            },
            "gpu": {"target": GPU, "kernels": self.resources, "why_not": self.no_resources},
            "contractions": [
                {"op": c.op, "line": c.loc.line if c.loc else 0, "tensor_cores": not c.why_scalar, "why": c.why_scalar}
                for c in self.contractions
            ],
        }


def check_flow(
    flow: type[vFlow] | vFlow,
    spec: Spec | None = None,
    *,
    batch: int = 32,
    tokens: int = 32768,
    kv_heads: int = 8,
    budget: Budget | None = None,
    resources: bool = False,
    choose_for: ChooseFor | None = None,
    advance: Advance = lambda done, note: None,
) -> Report:
    """Check a flow; costs are counted at ``spec`` (the defaults, or MLA where the flow reads latent rows) for
    ``batch`` requests of ``tokens`` tokens. With ``resources``, nvcc says what the flow's own kernels take of a GPU, as
    ``choose_for`` chooses them for such steps, or else by their one default.

    Mistakes of the flow are findings of the report and not raised.
    """
    latent = spec.kv_lora_rank > 0 if spec is not None else _wants_latent(flow)
    spec = spec or (Spec.of_latent() if latent else Spec())
    kv_heads = 1 if latent else kv_heads
    budget = budget or Budget(pages=27)
    name = getattr(flow, "flow_name", "") or getattr(flow, "__name__", type(flow).__name__)
    report = Report(name, spec, batch=batch, tokens=tokens, kv_heads=kv_heads)
    choices = pairwise(LATENT if latent else DENSE)
    if knows_blocks := _knows_blocks(flow, latent=latent):
        choices += [{**choices[i], **sizes} for i, sizes in enumerate(BLOCKS)]
    found: dict[tuple[str, Loc | None], tuple[VortexError, list[str]]] = {}
    """By code and place: the first error, and the shapes at which it came."""

    def tried(shape: str, error: VortexError) -> None:
        found.setdefault((error.code, error.loc), (error, []))[1].append(shape)

    for at, choice in enumerate(choices):
        shape = " ".join(f"{k}={v}" for k, v in choice.items())
        report.shapes.append(shape)
        advance(at, shape)
        try:
            compile_flow(trace(flow, spec_of(choice)), targets=[TARGETS[str(choice["target"])]], to="page")
        except VortexError as e:
            tried(shape, e)
    program, lowered = None, list[Lowered]()
    try:
        advance(len(choices), "TensorIR")
        module = trace(flow, spec)
        program = compile_flow(module, targets=[TARGETS[GPU]], to="page").programs[GPU]
        kept = budget.pages + budget.sink + budget.recent
        choose = choose_for(batch, kv_heads, tokens, kept) if choose_for is not None else None
        chosen = {"cpu": None, GPU: choose}
        lowered = [compile_flow(module, targets=[TARGETS[t]], to="tir", choose=c).lowered[0] for t, c in chosen.items()]
    except VortexError as e:
        tried(shown(spec), e)
    if program is not None:
        ready = _started(report, lowered[-1]) if resources and lowered else dict
        _costs(report, module, program, budget)
        others = [spec_of(c) for c in choices if c["target"] == "cpu" and int(str(c["group"])) <= MOST_COMPARED]
        compared = [spec, *(next(s for s in reversed(others) if s.page_size == size) for size in COMPARED_PAGES)]
        if knows_blocks and spec.page_blocks == 1:
            compared.append(next(s for s in map(spec_of, choices) if s.page_blocks > 1))
        for n, each in enumerate(compared):
            advance(len(choices) + 1 + n, f"against the eager flow: {shown(each)}")
            try:
                _compare(report, flow, each)
            except VortexError as e:
                tried(shown(each), e)
        if lowered:
            _note_resources(report, lowered[-1], ready)
    report.findings[:0] = [
        Finding("error", e.code, e.message, e.help, *_place(e.loc), tuple(shapes), e.render())
        for e, shapes in found.values()
    ]
    return report


def _wants_latent(flow: type[vFlow] | vFlow) -> bool:
    """Whether a flow reads latent rows, and not K and V."""
    try:
        trace(flow, Spec())
    except VortexError as e:
        return e.kind is OTHER_CACHE
    return False


def _knows_blocks(flow: type[vFlow] | vFlow, *, latent: bool) -> bool:
    """Whether a flow has fields of pages beside their blocks."""
    spec = replace(Spec.of_latent() if latent else Spec(), page_size=64, block_size=16)
    try:
        return bool(of_pages(trace(flow, spec)))
    except VortexError:
        return False


def _place(loc: Loc | None) -> tuple[str, int]:
    return (loc.file, loc.line) if loc is not None else ("", 0)


def _costs(report: Report, module: Module, program: Module, budget: Budget) -> None:
    """Bytes and remarks, at the report's own shape."""
    tokens = counted_tokens(module, report.spec, report.tokens)
    if tokens < report.tokens:
        instead = f"those of {tokens} tokens are shown" if tokens else "none are shown"
        report.skipped.append(f"costs of {report.tokens} tokens: {instead}, for {why_fewer(module)}")
        report.tokens = tokens
    if tokens:
        report.kernels = count_step(program, report.spec, tokens, budget)
    report.taken_in = takes_in_tokens(program)
    sizes = page_sizes(program)
    report.pool_bytes = sum(size for name, size in sizes.items() if name in report.spec.pools)
    report.page_bytes = sum(sizes.values()) - report.pool_bytes
    pages = -(-report.tokens // report.spec.block_size)
    report.state_bytes = sum(
        d.type.tile_bytes * (pages if d.attrs["layout"] == "entry" else 1)
        for d in program.declared("buffer")
        if isinstance(d.type, TensorType) and d.attrs["role"] == "state"
    )
    report.contractions = contractions(program)
    dense = dense_bytes(program, report.spec, report.tokens)
    read = sum(s.read for s in report.kernels if s.kernel.startswith("select"))
    report.note([*fusion_of_flow(module), *of_program(program), *near_dense(read, dense)])


def _started(report: Report, lowered: Lowered) -> Callable[[], Resources]:
    """Let nvcc begin with the kernels that the flow's own lines are in; where there is none, the report says so."""
    try:
        ready = start_resources(lowered, OWN_KERNELS)
    except VortexError as e:
        report.no_resources = e.message
        return dict
    report.no_resources = ""
    return ready


def _note_resources(report: Report, lowered: Lowered, ready: Callable[[], Resources]) -> None:
    """What nvcc found, and what it means."""
    try:
        report.resources = ready()
    except VortexError as e:
        report.no_resources = e.message
        return
    for name, found in report.resources.items():
        f = lowered.program.functions[name]
        report.note(of_kernel(lowered.program, f, name, lowered.kernels[name].schedule, found))


def _compare(report: Report, flow: type[vFlow] | vFlow, spec: Spec) -> None:
    """Compiled CPU kernels beside the flow IR, step by step, and the last step beside the flow's eager code."""
    module = trace(flow, spec)
    lengths = compared_lengths(module, spec)
    if lengths != LENGTHS:
        shown_lengths = ", ".join(map(str, lengths))
        instead = f"requests of {shown_lengths} tokens" if lengths else "nothing"
        report.skipped.append(f"long requests at {shown(spec)}: {instead} compared, for {why_fewer(module)}")
    if not lengths:
        return
    with scratch_folder() as scratch:
        out = scratch / "check.vxa"
        compile_flow(module, targets=[TARGETS["cpu"]], out=out)
        heads = 1 if spec.kv_lora_rank else 2
        entries = [ParameterEntry.of(d) for d in module.declared("param")]
        weights = random_parameters(entries, LAYERS, heads)
        decoder = load(out, target="cpu", budget=Budget(PAGES_KEPT), debug=True, parameters=weights)
        verdicts, _ = judge(decoder, module, lengths, steps=STEPS)
        pages = sum(-(-(n + STEPS) // spec.page_size) for n in lengths)
        trial = Trial(decoder, heads, pages, seed=1)
        for i, n in enumerate(lengths):
            trial.join(f"r{i}", n)
        trial.step()
        oracle = eager(flow if isinstance(flow, type) else type(flow), spec, weights)
        checks = [trial.check(name, oracle) for name in trial.requests]
    error = max(v.error for v in verdicts.values())
    differing = sum(v.differing for v in verdicts.values()) + sum(c.differing for c in checks)
    good = all(v.good(spec.dtype) for v in verdicts.values()) and not any(c.differing for c in checks)
    report.compared.append(Compared(shown(spec), error, differing, good))
