"""Every mistake a user can make, as data: a code, a sentence, a way out.

An error is raised as ``KIND.at(loc, name=...)``; its text is built from the catalogue entry, the
location and notes collected on the way up. ``vortex errors`` prints this file.
"""

from __future__ import annotations

import errno
import linecache
import string
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Loc:
    """A place in a file that a person wrote: 1-based line, 1-based column, end column exclusive."""

    file: str
    line: int
    col: int = 1
    end: int = 0
    call: str = field(default="", compare=False)
    """What the ops at this place are together, where it takes several: ``logsumexp``, the second ``logsumexp.2``."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}"


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One mistake. ``message`` and ``help`` are templates over the fields given to :meth:`at`."""

    code: str
    title: str
    message: str
    help: str
    severity: Literal["error", "warning"] = "error"
    """A warning is said, see :func:`warn`, and nothing stops."""

    def at(self, loc: Loc | None = None, *, source: str | None = None, **fields: object) -> VortexError:
        """The error itself; ``source`` is the text ``loc`` points into when it is in no file."""
        return VortexError(self, loc, fields, source)


@dataclass(eq=False)
class VortexError(Exception):
    """A mistake of the user's, with where it is and what to do about it."""

    kind: ErrorKind
    loc: Loc | None
    fields: dict[str, object]
    source: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def code(self) -> str:
        return self.kind.code

    @property
    def message(self) -> str:
        return _fill(self.kind.message, self.fields)

    @property
    def help(self) -> str:
        """The way out; empty where the catalogue has none."""
        return _fill(self.kind.help, self.fields)

    def note(self, text: str) -> VortexError:
        """Add a line of context; returns self so that it can stand in a ``raise``."""
        self.notes.append(text)
        return self

    def render(self) -> str:
        """The whole text: header, snippet with caret, notes and help."""
        lines = [f"{self.kind.severity}[{self.code}]: {self.message}"]
        if self.loc is not None:
            lines += _snippet(self.loc, self.source)
        lines += [f"   = note: {n}" for n in self.notes]
        if self.kind.help:
            lines.append(f"   = help: {self.help}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.render()


class VortexWarning(UserWarning):
    """What is allowed and most likely not meant; ``mistake`` has code, place and way out as an error has.

    ``mistake`` is None where the warning was made again from its text, as pytest's workers do.
    """

    def __init__(self, text: str, mistake: VortexError | None = None) -> None:
        super().__init__(text)  # the text alone, from which a warning is made again in another process
        self.mistake = mistake


_warned: dict[Any, Any] = {}
"""Python's registry of what was said already."""


def warn(mistake: VortexError) -> None:
    """Say it through :mod:`warnings`: once for each text and line, unless the caller's filters say otherwise."""
    file, line = (mistake.loc.file, mistake.loc.line) if mistake.loc is not None else ("vortex", 1)
    warnings.warn_explicit(VortexWarning(mistake.render(), mistake), VortexWarning, file, line, registry=_warned)


def _fill(template: str, fields: dict[str, object]) -> str:
    known = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    return template.format(**{n: fields.get(n, f"<{n}>") for n in known})


def _snippet(loc: Loc, source: str | None) -> list[str]:
    if source is None:
        text = linecache.getline(loc.file, loc.line).rstrip("\n")
    else:
        all_lines = source.splitlines()
        text = all_lines[loc.line - 1] if 0 < loc.line <= len(all_lines) else ""
    gutter = " " * len(str(loc.line))
    out = [f"{gutter}--> {loc}"]
    if text.strip():
        text = text.expandtabs(1)
        width = max(1, min(loc.end or loc.col + 1, len(text) + 1) - loc.col)
        out += [f"{gutter} |", f"{loc.line} | {text}", f"{gutter} | {' ' * (loc.col - 1)}{'^' * width}"]
    return out


def nearest(name: str, known: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the closest known name, else an empty string; dashes in front make none closer."""
    bare = {k.lstrip("-"): k for k in known}
    close = get_close_matches(name.lstrip("-"), bare, n=1)
    return f", did you mean '{bare[close[0]]}'?" if close else ""


def nearest_or_all(name: str, known: Collection[str]) -> str:
    """As :func:`nearest`; where nothing is close, ``"; there are x, y"``."""
    return nearest(name, known) or f"; there are {', '.join(known)}"


def counted(n: float | str, what: str) -> str:
    """``1 page``, ``2 pages``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


CATALOGUE: dict[str, ErrorKind] = {}


def kind(
    code: str, title: str, message: str, help: str = "", severity: Literal["error", "warning"] = "error"
) -> ErrorKind:
    """Declare one mistake; codes are unique for ever, a retired one is not used again."""
    assert code not in CATALOGUE, f"{code} is declared twice"
    CATALOGUE[code] = ErrorKind(code, title, message, help, severity)
    return CATALOGUE[code]


# VX1xxx: a flow cannot be traced -----------------------------------------------------------------
UNKNOWN_TORCH_OP = kind(
    "VX1001",
    "torch function without a meaning over pages",
    "'{name}' cannot be traced in a flow{nearest}",
    "'vortex ops' lists what a flow can use",
)
BRANCH = kind(
    "VX1002",
    "branch on a traced value",
    "the flow branches on {what}, which has no value while it is traced",
    "choose between two tensors with torch.where(cond, a, b)",
)
CONCRETIZE = kind(
    "VX1003",
    "traced value asked for a number",
    "{what} turns a traced tensor into a Python value",
    "keep it a tensor: every scalar operation works on tensors of one element",
)
IN_PLACE = kind(
    "VX1004",
    "in-place write",
    "'{name}' writes in place; a flow is a pure function",
    "write x = x + y for x += y, the form without the underscore, or torch.where / torch.cat to build a new tensor",
)
BAD_SHAPE = kind("VX1005", "shapes do not fit", "{op}: {why}", "{expected}")
BAD_SCORE = kind(
    "VX1006",
    "score is not one number per page",
    "{call} needs one number per page, shape [S]; this one is {got}",
    "reduce the other axes first, e.g. score.amax(-1) or score.mean(-1)",
)
FIELD_UNWRITTEN = kind(
    "VX1007",
    "field declared and never written",
    "field '{name}' is declared in create_cache but forward_cache does not return it",
    "return it, or drop it from create_cache",
)
FIELD_TWICE = kind(
    "VX1008",
    "field written twice",
    "field '{name}' is written twice in forward_cache",
    "a page's summary is written once; combine the two values",
)
FIELD_UNDECLARED = kind(
    "VX1009",
    "undeclared field",
    "field '{name}' is not declared in create_cache{nearest}",
    "declare it: vortex.Field(shape)",
)
# VX1010 is retired: it refused cache.k in forward_indexer
NO_SELECTION = kind(
    "VX1011",
    "no selection returned",
    "forward_indexer returned {got}, not a selection",
    "end it with return vortex.topk(score)",
)
FIELD_SHAPE = kind(
    "VX1012",
    "field has another shape",
    "field '{name}' is declared {declared} but {method} returns {got}",
    "make the two agree",
)
FLOW_RAISED = kind("VX1013", "the flow raised an error", "{type}: {text}", "{hint}")
SYMBOLIC_SIZE = kind(
    "VX1014",
    "page count used as a number",
    "{what} needs the number of pages, which is not known while tracing",
    "pages are the axis S: write it for all pages at once, e.g. cache.mean @ q[0]; reduce the axis, or use "
    "vortex.page_index(); vortex.page_count() is their number as a tensor, x.new_ones(x.shape) a new tensor over them, "
    "w.expand_as(x) one for each; x.roll(n, dim) and F.pad(x, (n, 0))[..., :-n] shift pages, F.conv1d, F.avg_pool1d "
    "and F.max_pool1d mix neighbours",
)
CONSTANT_TOO_BIG = kind(
    "VX1015",
    "captured tensor too large",
    "the flow captures a tensor of {size} bytes; constants may have {limit}",
    "make it smaller, or compute it from the page",
)
BAD_FIELD = kind("VX1016", "bad field declaration", "{why}", "{hint}")
DUPLICATE_FLOW = kind(
    "VX1017", "flow name taken", "a flow named '{name}' is registered already at {where}", "choose another name"
)
UNKNOWN_FLOW = kind("VX1018", "unknown flow", "{why}", "give a registered name, file.py, or file.py:name")
BAD_FLOW_CLASS = kind("VX1019", "class is not a flow", "{why}", "derive from vortex.vFlow and write its three methods")
BAD_BUDGET = kind(
    "VX1020",
    "bad budget",
    "{why}",
    "Budget(pages>=0, ratio>=0, sink>=0, recent>=1), or table=[pages of each layer, or a list by head]",
)
BAD_SPEC = kind(
    "VX1021",
    "bad model shape",
    "{why}",
    "e.g. --heads 32/8 --head-dim 128 --page-size 16 --dtype bf16, or --heads 20 --latent 512+64 for MLA",
)
OTHER_CACHE = kind(
    "VX1022", "the cache holds something else", "{read} is read, but the model shape has {cache}", "{hint}"
)
STATE = kind(
    "VX1023",
    "a value is kept from one call to the next",
    "{what}; the methods of a compiled flow keep nothing from one call to the next",
    "{hint}",
)
UNREPEATABLE = kind(
    "VX1024",
    "the flow differs from run to run",
    "{what} when the flow runs again, so the artifact and the flow's own code would differ",
    "{hint}",
)
BAD_SIGNATURE = kind("VX1025", "method cannot be called", "{why}", "write it as def {method}: ...")
STATE_UNWRITTEN = kind(
    "VX1060",
    "state declared and never written",
    "state '{name}' is declared in create_cache but forward_indexer does not return it",
    "return it beside the selection: return vortex.topk(score), {{'{name}': new}}; or drop it from create_cache",
)
STATE_UNDECLARED = kind(
    "VX1061",
    "returned beside the selection, but not state",
    "forward_indexer returns '{name}', which {why}",
    "{hint}",
)
STATE_OF_PAGE = kind(
    "VX1062",
    "state returned from forward_cache",
    "forward_cache returns '{name}', which is state across steps and not a summary of a page",
    "return it from forward_indexer, beside the selection: return vortex.topk(score), {{'{name}': new}}",
)
ALIASED = kind(
    "VX1026",
    "augmented assignment to shared memory",
    "'{sign}' writes in place into {what}",
    "for a new tensor write x = x {operator} y, or x = x.clone() first",
)
BAD_SELECTION = kind("VX1070", "wrong selection", "{why}", "{hint}")
NO_CAP = kind(
    "VX1071",
    "policy without a cap",
    "pages is a traced number, and how many pages a row may keep must be known before the step",
    "give the number as count=: the budget, or pages=n, bounds it",
)
SELECTIONS = kind(
    "VX1072",
    "several selections returned",
    "forward_indexer returned {got}, and a flow ends in one selection",
    "all pages of several are vortex.union(a, b)",
)
NEGATIVE_MASS = kind(
    "VX1073",
    "negative masses",
    "{what}: topp counts those as 0",
    "give what is never negative, such as scores.softmax(0) or scores.exp()",
    "warning",
)
NO_EFFECT = kind(
    "VX1074",
    "a map without effect",
    "{what} keeps the order of pages, so topk chooses the same pages without it",
    "leave it out; where how much better a page is should count, end in topp",
    "warning",
)
BAD_OPERATOR = kind("VX1080", "operator of vortex_torch that is not supported", "{op}: {why}", "{hint}")
OPERATOR_CALL = kind("VX1081", "operator of vortex_torch called wrongly", "{op}: {why}", "{expected}")
OTHER_BASE = kind(
    "VX1082", "flow of another kind of cache", "{flow} derives from {base}, but the model shape is {spec}", "{hint}"
)
NO_TERMINAL = kind(
    "VX1083",
    "nothing writes o",
    "forward_indexer returns, and no operator has written o",
    "end it with topK, approxTopK or Union: self.output_func(score, o, ctx=ctx)",
)
OTHER_PACKAGE = kind(
    "VX1084",
    "part of vortex_torch that flows do not need",
    "{text}",
    "vortex reads flows: vortex_torch.flow, .indexer, .cache and .abs; docs/compat.md lists their names",
)

BAD_PARAMETER = kind("VX1040", "bad parameter declaration", "{why}", "{hint}")

CODE_RANGE = kind("VX1050", "what a field of codes cannot hold", "{why}", "{hint}")
BAD_SHORTLIST = kind(
    "VX1090",
    "bad length of a shortlist",
    "shortlist takes the number of pages to keep, pages={got} is no integer from 1 to {most}",
    "near = vortex.shortlist(score, pages=64)",
)
NEAR_IS_AN_INDEX = kind(
    "VX1091",
    "shortlist used as a tensor",
    "a shortlist is an index and no tensor",
    "x[near] is what x holds at its pages; vortex.page_index()[near] are their page numbers",
)
ROWS_OF_ALL = kind(
    "VX1092",
    "rows of all pages",
    "cache.{name} is read at every candidate page, {bytes} bytes each: as many as dense attention reads of it",
    "read it at the pages of a shortlist, cache.{name}[near], or keep a smaller summary as a field",
    "warning",
)

PAGE_AND_BLOCK = kind(
    "VX1093",
    "field made from rows that are not its own",
    "field '{name}' belongs to {of}, and is made from {rows}",
    "{hint}",
)
PAGES_SELECTED = kind(
    "VX1094",
    "pages scored where blocks are selected",
    "{call} is given a score of pages, {got}, and what is selected are their blocks",
    "near = vortex.shortlist(score, pages=64), then select by a score of cache.f[near], where f has per='block', or of "
    "cache.k[near]; or leave per= out of all fields, which then belong to blocks",
)

NO_SCALE = kind(
    "VX1095",
    "softmax without its scale",
    "{what} of products with q that nothing scales: attention multiplies them by head_dim ** -0.5 first",
    "multiply q or the products by q.shape[-1] ** -0.5: without it nearly all of the mass is on one page",
    "warning",
)
SMALL_SHORTLIST = kind(
    "VX1096",
    "shortlist smaller than what is kept of it",
    "up to {pages} pages are kept, and the shortlist has {listed}",
    "near = vortex.shortlist(score, pages=n) with an n of several times as many",
    "warning",
)

OTHER_PAGES = kind(
    "VX1097",
    "score of more or fewer pages",
    "{call} needs a score for each of the S pages, and this one has {size}, cut or padded",
    "a mask leaves pages out: torch.where(vortex.page_index() < 1, -torch.inf, score) chooses the first one last; "
    "F.pad(x, (0, 1))[1:] is of S pages, and has page s + 1 at s",
)

# VX2xxx: IR text or IR structure -----------------------------------------------------------------
IR_SYNTAX = kind("VX2001", "IR text does not parse", "expected {expected}, found {found}")
IR_UNKNOWN_OP = kind("VX2002", "unknown operation", "no operation '{name}'{nearest}", "'vortex ops --ir' lists them")
IR_UNDEFINED = kind("VX2003", "value used before it is defined", "%{name} is not defined here{nearest}")
IR_REDEFINED = kind("VX2004", "name defined twice", "{what} '{name}' is defined twice")
IR_ATTRIBUTE = kind("VX2005", "wrong attribute", "{op}: {why}")
IR_TYPE = kind("VX2006", "declared type differs", "{op} computes {inferred}, but the text says {declared}")
IR_OPERANDS = kind("VX2007", "wrong operands", "{op}: {why}")
IR_STRUCTURE = kind("VX2008", "malformed program", "{why}")
IR_STAGE = kind("VX2009", "wrong stage", "this is a {got} file; {expected} is needed", "{hint}")
BAD_KNOB = kind("VX2010", "wrong knob", "{where}: {why}", "'vortex passes schedule' lists the knobs of every kernel")

# VX3xxx: passes ----------------------------------------------------------------------------------
UNKNOWN_PASS = kind("VX3001", "unknown pass", "no pass '{name}'{nearest}", "'vortex passes' lists them")
PASS_OPTION = kind("VX3002", "wrong pass option", "pass '{name}': {why}", "'vortex passes {name}' shows its options")
PIPELINE_SYNTAX = kind(
    "VX3003", "pipeline text does not parse", "{why}", "e.g. 'canonicalize,fuse{{max-live=8}},schedule'"
)
PASS_STAGE = kind(
    "VX3004",
    "pass runs on another stage",
    "pass '{name}' runs on {needs} IR, but gets {got}",
    "'outline' turns flow IR into page IR",
)

# VX4xxx: code generation -------------------------------------------------------------------------
UNKNOWN_TARGET = kind("VX4001", "unknown target", "no target '{name}'{nearest}", "'vortex targets' lists them")
TARGET_STAGE = kind(
    "VX4002",
    "target ends earlier",
    "target {target} has no stage '{stage}' yet; it goes as far as '{last}'",
    "add --to {last}",
)
NO_COMPILER = kind(
    "VX4003",
    "compiler not installed",
    "{what} is needed to compile and is not installed",
    "pip install 'vortex[compile]' (and a C compiler: {hint})",
)
TIR_INVALID = kind("VX4004", "edited text does not build", "{why}", "compare with the dump that it came from")
TOOL_FAILED = kind("VX4005", "external tool failed", "{tool} failed: {why}", "the command was: {command}")
NOT_EMITTABLE = kind("VX4006", "no kernel for this program", "{why}", "{hint}")
NO_CUDA = kind(
    "VX4007",
    "CUDA compiler not found",
    "nvcc 12.8 or later is needed to compile for sm_90a and sm_100a: {why}",
    "pip install 'vortex[cuda]', or set CUDA_HOME to a CUDA toolkit; no GPU is needed to compile",
)
NO_INSPECTOR = kind(
    "VX4008",
    "no tool to read machine code",
    "cuobjdump, which prints the machine code of a GPU library, was not found in $CUDA_HOME, on PATH or in a wheel",
    "pip install triton (its wheel holds cuobjdump and nvdisasm), or install a CUDA toolkit",
)

# VX5xxx: artifacts -------------------------------------------------------------------------------
NOT_ARTIFACT = kind("VX5001", "not an artifact", "'{path}' is not a vortex artifact: {why}", "make one: vortex compile")
CORRUPT_ARTIFACT = kind(
    "VX5002", "artifact damaged", "'{path}': {why}", "compile it again; an artifact is trusted like any binary"
)
NO_TARGET_IN_ARTIFACT = kind(
    "VX5003",
    "artifact lacks the target",
    "'{path}' has no library for {target}; it has {have}",
    "vortex compile ... --target {target}",
)
CPU_TOO_OLD = kind(
    "VX5004",
    "processor lacks instructions",
    "'{path}' was built for {built}, this processor has no {missing}",
    "vortex compile ... --target cpu on this machine",
)
DIGEST_MISMATCH = kind("VX5005", "digest differs", "'{path}' has digest {got}, {want} was required")

# VX6xxx: running ---------------------------------------------------------------------------------
SHAPE_MISMATCH = kind(
    "VX6001",
    "shape the artifact lacks",
    "{what} is {got}; the artifact was compiled for {want}",
    "vortex compile ... {flag}",
)
BAD_ARGUMENT = kind("VX6002", "wrong argument", "{what}: {why}")
NOT_READY = kind("VX6003", "called out of order", "{call} needs {needs} first")
PAGE_OUT_OF_RANGE = kind(
    "VX6004",
    "page id out of range",
    "page table entry [{row}, {col}] is {page}; the pool has pages 0 to {last}",
    "checked because debug=True; without it such a read is undefined",
)
OUT_OF_PAGES = kind(
    "VX6005",
    "pool exhausted",
    "{need} pages are needed, {free} of {total} are free",
    "free finished requests, or make the pool larger",
)
CAPACITY = kind(
    "VX6006",
    "selection exceeds its capacity",
    "up to {need} pages may be selected; the output holds {capacity}",
    "make pages [B, Hkv, K] with K >= {need}, or lower the budget",
)
UNKNOWN_REQUEST = kind("VX6007", "unknown request", "no request '{name}' in this cache{nearest}")
# VX6008 is retired: it refused libraries of a GPU
WRONG_DEVICE = kind(
    "VX6009",
    "library for another device",
    "{what} holds kernels for {target}; {where}",
    "load it with the target of the device, or vortex compile ... --target for it",
)
SCRATCH_FIXED = kind(
    "VX6010",
    "scratch cannot move",
    "{what} would move the scratch for {have}, but {when}",
    "before the first capture: decoder.reserve({batch}, {columns}, capacity={capacity}), the largest step of all",
)
NO_CAPTURE = kind(
    "VX6011",
    "not while a CUDA graph is captured",
    "{what} while a CUDA graph is being captured: {why}",
    "do it before torch.cuda.graph(...) begins",
)
KERNEL_REFUSED = kind(
    "VX6012",
    "kernel could not be launched",
    "{kernel}: {why}",
    "what an earlier launch broke may show only here: CUDA_LAUNCH_BLOCKING=1 makes it show at once",
)

SHORT_OF_PAGES = kind(
    "VX6013",
    "budget larger than the flow's shortlist",
    "the budget scores {pages} pages, and {flow} chooses them from a shortlist of {listed}: no more are kept",
    "raise the pages of the flow's last vortex.shortlist, or lower the budget",
    "warning",
)
OUT_OF_MEMORY = kind(
    "VX6040",
    "no memory for a cache",
    "{device} has no memory for {tiles} pages, heads and layers together: {what}",
    "fewer pages, or narrower fields: 'vortex info' tells the bytes of each",
)
WRONG_PARAMETERS = kind("VX6020", "parameters do not fit the flow", "{where}: {why}", "{hint}")

# VX7xxx: command line ----------------------------------------------------------------------------
BAD_OPTION = kind("VX7001", "wrong option", "{option}: {why}", "{hint}")
NO_SUCH_FILE = kind("VX7002", "no such file", "'{path}' {why}")
UNKNOWN_NAME = kind("VX7003", "unknown name", "no {what} named '{name}'{nearest}")
CANNOT_WRITE = kind(
    "VX7004",
    "file cannot be written",
    "'{path}' cannot be written: {why}",
    "free space on that disk, or name another place (-o, --dump-dir, --db, VORTEX_STATS; XDG_CACHE_HOME for the cache, "
    "TMPDIR for temporary files)",
)

# VX8xxx: tuning ----------------------------------------------------------------------------------
NOT_DATABASE = kind(
    "VX8001",
    "not a tuning database",
    "'{path}' is not a tuning database: {why}",
    "vortex db check {path} says more; a damaged one can be moved away, 'vortex db import' fills a new one",
)
READ_ONLY_DATABASE = kind(
    "VX8002",
    "database cannot be written",
    "'{path}' can only be read: {why}",
    "name another with --db; write-ahead logging needs a local disk",
)
BAD_RECORDS = kind(
    "VX8003",
    "bad tuning records",
    "{path}: {bad} of {all} lines are not records: {why}",
    "vortex db check {path} lists them; with --skip-bad the others are taken",
)
PIN_MISMATCH = kind(
    "VX8004",
    "content is not what was pinned",
    "{url} has sha256 {got}, {want} was required",
    "ask whoever publishes it; what was there before is unchanged",
)
TRANSFER_FAILED = kind("VX8005", "records cannot be moved", "{url}: {why}", "{hint}")
UNKNOWN_RECORD = kind("VX8006", "unknown record", "no record begins with '{id}' in {path}", "vortex db ls")
BAD_SHAPES = kind(
    "VX8007",
    "shapes to tune for",
    "{where}: {why}",
    "{hint}",
)
BAD_BUNDLE = kind(
    "VX8008", "not a bundle", "'{path}': {why}", "make one: vortex tune FLOW --target sm_90 --bundle {path}"
)
CANNOT_MEASURE = kind("VX8009", "cannot measure here", "{why}", "{hint}")
BUNDLE_BUSY = kind(
    "VX8010", "bundle in use", "'{path}': another process is building it", "wait for it, or name another folder"
)

# VX9xxx: inside an inference engine ---------------------------------------------------------------
ENGINE_VERSION = kind(
    "VX9001",
    "SGLang without a binding",
    "this is SGLang {got}; the attention backend vortex is tested with {want} and refuses to guess at others",
    "pip install sglang=={newest}, or use another --attention-backend",
)
ENGINE_REFUSED = kind(
    "VX9002",
    "not served by this attention backend",
    "the attention backend vortex does not serve {what}: {why}",
    "{hint}",
)
ENGINE_CONFIG = kind(
    "VX9003",
    "wrong engine configuration",
    "VORTEX_CONFIG: {why}",
    'a JSON object or a file of one, e.g. {{"flow": "quest", "budget": {{"pages": 61}}}}; see docs/sglang.md',
)
NO_COMPILED_FLOW = kind(
    "VX9004",
    "flow not compiled for this model",
    "flow '{flow}' is not compiled for this model on {target}, and no compiler is at hand",
    "run 'vortex toolchain install' once, or where vortex[compile] is installed\n       {command}\n"
    '     and name {out} as the flow (SGLang: VORTEX_CONFIG=\'{{"flow": "{out}"}}\'; transformers:\n'
    '     vortex.hf.register(flow="{out}")), or set VORTEX_COMPILER to the Python of that environment',
)
COMPILE_FAILED = kind(
    "VX9005", "flow did not compile at start", "compiling flow '{flow}' failed:\n{why}", "the command was: {command}"
)
REQUEST_REFUSED = kind(
    "VX9007",
    "choice of a request refused",
    "custom_params.vortex: {why}",
    'ask for {{"dense": true}}, {{"pages": 16}} or {{"ratio": "1/16"}}; see docs/sglang.md',
)
TOOLCHAIN_FAILED = kind("VX9006", "toolchain not installed", "{step} failed:\n{why}", "{hint}")
BAD_PROBE = kind(
    "VX9010",
    "probe that cannot be taken",
    "VORTEX_PROBE: {why}",
    "VORTEX_PROBE=probe.jsonl, where wanted with ':every 50 steps' and ':pages' after it; see docs/sglang.md",
)
NOT_A_PROBE = kind(
    "VX9011",
    "not a file of probes",
    "'{path}' is no file of VORTEX_PROBE: {why}",
    "start SGLang with VORTEX_PROBE=probe.jsonl and let requests decode; see docs/sglang.md",
)
BAD_PAGE_TRACE = kind(
    "VX9015",
    "page trace that cannot be recorded",
    "VORTEX_TRACE: {why}",
    "VORTEX_TRACE=trace.jsonl, where wanted with ':every 50 steps', ':mass' and ':8 MB' after it; see docs/trace.md",
)
NOT_A_PAGE_TRACE = kind(
    "VX9016",
    "not a page trace",
    "'{path}' is no page trace: {why}",
    "record one: vortex run quest.vxa --trace trace.jsonl; docs/trace.md has the other ways",
)
HF_VERSION = kind(
    "VX9020",
    "transformers without a binding",
    "{what}; vortex.hf needs 5.20 or later, and is tested with 5.24",
    "pip install 'transformers>=5.20'",
)
HF_REFUSED = kind(
    "VX9021",
    "not served by this attn_implementation",
    "attn_implementation '{name}' does not serve {what}: {why}",
    "{hint}",
)
HF_SETTINGS = kind(
    "VX9022",
    "wrong settings for transformers",
    "{why}",
    'vortex.hf.register(flow="quest", budget=61), or config.vortex = {{"flow": "quest", "budget": 61}}; see '
    "docs/transformers.md",
)

# VX91xx: vortex eval -----------------------------------------------------------------------------
EVAL_PACKAGE = kind(
    "VX9101",
    "package of vortex eval not installed",
    "{what} needs the package {package}, which is not installed",
    "{install}",
)
UNKNOWN_MODEL = kind(
    "VX9102",
    "no such model",
    "no model '{name}': {why}",
    "smollm2, a folder of a Hugging Face causal LM, or a name in the Hugging Face cache; nothing is downloaded",
)
MODEL_REFUSED = kind("VX9103", "model that cannot be evaluated", "model '{name}': {why}", "{hint}")
PROMPT_TOO_SHORT = kind(
    "VX9104",
    "task does not fit into its prompt",
    "task '{task}' has no question that fits into {tokens} tokens with its answer",
    "more --tokens, or another of --tasks",
)
PROMPT_TOO_LONG = kind(
    "VX9121",
    "prompt longer than the model's context",
    "{what}, do not fit into the {context} tokens of model '{model}'",
    "ask for fewer tokens (--tokens), or give a shorter prompt, or a model of longer context (--model)",
)
EVAL_MEMORY = kind(
    "VX9122",
    "out of memory while evaluating",
    "{what} does not fit into the memory of {device}, beside {weights} GiB of weights",
    "K and V of a token take {row} bytes; about {tokens} tokens fit now: ask for fewer (--tokens), give shorter "
    "prompts, or free memory",
)
NOT_A_NUMBER = kind(
    "VX9123",
    "outputs that are not numbers",
    "{lane} gave NaN or infinite outputs on prompt {index} of {task}, in layer {layer}",
    "vortex check FLOW compares it with its own eager code; the other flows went on",
)
BAD_TRACE = kind(
    "VX9124", "not a trace of decoding steps", "{what}: {why}", "make one: vortex capture -o steps.safetensors"
)
BAD_PROMPTS = kind("VX9125", "prompts that cannot be read", "{where}: {why}", "{hint}")
EVERYTHING_READ = kind(
    "VX9126",
    "every budget reads everything",
    "the longest prompt has {tokens} tokens with its answer, {pages} pages of {page}, and {kept} are all of them",
    "there is nothing to choose: name smaller budgets (--budgets), or give longer prompts",
)


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What a disk says that takes no more: never a mistake of ours."""


@contextmanager
def writing(path: str | Path, only: Collection[int] = ()) -> Iterator[None]:
    """What the disk refuses inside is VX7004 for ``path``: it is full, read-only, or no folder is where one must be.

    ``only`` are the numbers of errors that this is said of, where more is done inside than to write to ``path``.
    """
    try:
        yield
    except OSError as error:
        if only and error.errno not in only:
            raise
        raise CANNOT_WRITE.at(path=path, why=error.strerror or error) from None
