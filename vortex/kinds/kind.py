"""The kernel kinds: what each stage needs to know of a kind, declared once.

A page program is a list of kernels, each of a kind. To add one, declare a :class:`KernelKind` with :func:`declare`,
register its templates (:mod:`vortex.codegen.templates`), and say what it computes, on one batch, to the interpreter
(:data:`vortex.ir.interpret_page.MEANING`). Everything else follows from the declaration.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

Call = Literal["plan", "append", "select", "attend", ""]
"""The calls of the runtime's ``Decoder`` that launch kernels."""
CALLS = tuple(filter(None, get_args(Call)))

Giver = Literal["call", "layer", "flow", "decoder"]
"""Who has an argument: the caller of each call, the layer that was bound, the flow (its captured tensors), or the
decoder, as scratch."""

Access = Literal["reads", "writes", "updates"]
"""What a kernel does to an argument; ``updates`` is to read, too, what kernels have written there."""


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument that kernels of a kind may take, by its name in the calling convention (docs/architecture.md).

    Whoever makes a tensor on the declaration's word alone (the decoder
    its scratch, the tuner what the caller would give) makes it of this ``dtype`` and ``shape``: numbers, or sizes of a
    step by the names of ``Layout.sizes`` in :mod:`vortex.runtime.scratch`, such as ``requests`` and ``heads``.
    """

    name: str
    giver: Giver
    access: Access = "reads"
    dtype: Literal["i32", "f32"] = "f32"
    shape: tuple[int | str, ...] = ()

    @property
    def written(self) -> bool:
        """Whether the kernel changes it."""
        return self.access != "reads"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelKind:
    """A kind of kernel, as all stages see it."""

    name: str
    about: str
    """What its kernels do, in one line."""
    order: int
    """Its place in a step: kernels of lower numbers come first."""
    domain: str
    """What a kernel runs once for."""
    candidates: bool = False
    """Whether loads of paged and ragged buffers give all candidate pages of a row, and not the current page."""
    ops: tuple[str, ...]
    """Patterns of the names of the ops that its kernels may hold, such as ``flow.*``."""
    fusion: Literal["never", "always", "bounded"] = "never"
    """Whether two kernels of the kind may become one; ``bounded`` if what is kept for each page stays within limits."""
    workspace: bool = False
    """Whether its kernels keep numbers in the rows' workspace."""
    axes: tuple[Literal["rows", "columns", "kept"], ...] = ("rows", "columns", "kept")
    """What of a shape its time depends on (:mod:`vortex.kinds.buckets`)."""
    pages: Literal["none", "filled", "scored", "kept"] = "none"
    """Which pages of a request a kernel reads in a step."""
    arguments: tuple[Argument, ...]
    call: Call = ""
    """The call of the decoder that launches its kernels, in launch order with those of other kinds. Kernels of a kind
    without one are launched by ``Decoder.launch`` alone."""
    paces: bool = False
    """Whether work lists are cut for as many CTAs of it as the device holds."""
    tuned: bool = False
    """Whether ``vortex tune`` tunes it unless told otherwise."""
    takes_in: str = ""
    """The kind whose work its launches may do as well, where kernels of it have the arguments of both."""
    timed: tuple[str, ...] = ()
    """The kinds that are launched to time it: itself unless given."""

    def allows(self, op: str) -> bool:
        """Whether kernels of the kind may hold ops of that name."""
        return any(fnmatchcase(op, pattern) for pattern in self.ops)

    @property
    def scratch(self) -> dict[str, Argument]:
        """The arguments that the decoder gives its kernels, by name."""
        return {a.name: a for a in self.arguments if a.giver == "decoder"}

    @property
    def launched(self) -> tuple[str, ...]:
        """The kinds whose launches are timed to time this one."""
        return self.timed or (self.name,)

    @property
    def outputs(self) -> frozenset[str]:
        """The arguments of the caller's that its kernels write."""
        return frozenset(a.name for a in self.arguments if a.written and a.giver == "call")

    @property
    def writes_cache(self) -> bool:
        """Whether its kernels change the memory of a layer, which outlasts the step."""
        return any(a.access == "writes" and a.giver == "layer" for a in self.arguments)


KINDS: dict[str, KernelKind] = {}
"""All kinds by name, in the order of a step."""


def declare(kind: KernelKind) -> KernelKind:
    """Add a kind to :data:`KINDS`, in its place; a second one of the same name is a ``ValueError``."""
    if kind.name in KINDS:
        raise ValueError(f"kernel kind '{kind.name}' is declared twice")
    every = sorted((*KINDS.values(), kind), key=lambda k: k.order)
    KINDS.clear()
    KINDS.update((k.name, k) for k in every)
    return kind


def arguments(kinds: Iterable[KernelKind] | None = None) -> frozenset[str]:
    """The names of all arguments of these kinds (all, unless given), but for those that are named by a pattern."""
    every = KINDS.values() if kinds is None else kinds
    return frozenset(a.name for k in every for a in k.arguments if "*" not in a.name)


def _call(*names: str, access: Access = "reads") -> tuple[Argument, ...]:
    return tuple(Argument(name, "call", access) for name in names)


def _layer(*names: str, access: Access = "reads") -> tuple[Argument, ...]:
    return tuple(Argument(name, "layer", access) for name in names)


def _plan(access: Access) -> Argument:
    return Argument("plan", "decoder", access, "i32", (4, "requests"))


def _work(access: Access) -> Argument:
    return Argument("work", "decoder", access, "i32", (2, "work_list"))


def _arrivals(access: Access) -> Argument:
    return Argument("arrivals", "decoder", access, "i32", ("arrivals",))


CONSTANTS = Argument("const.*", "flow")
PLACE = _layer("layer", "head_offset", "row_budget", "param.*")
"""Where a kernel works, and what the flow has learned for that place."""
POOLS = ("k", "v", "latent")
SCALES = _layer("k_scale", "v_scale", "latent_scale")

declare(
    KernelKind(
        name="plan",
        about="what each request keeps and scores, and the work lists of the kernels after it",
        order=10,
        domain="requests",
        ops=("page.plan",),
        call="plan",
        timed=("select", "attend"),
        arguments=(
            *_call("lengths"),
            Argument("budget", "decoder", "reads", "i32", (7,)),
            Argument("request_budget", "decoder", "reads", "i32", ("requests", 5)),
            _plan("writes"),
            _work("writes"),
            _arrivals("writes"),
        ),
    )
)

declare(
    KernelKind(
        name="append",
        about="new tokens into the pools, and the summaries of the pages that they fill",
        order=20,
        domain="new_pages",
        ops=("page.load", "page.load_page", "page.store", "page.scatter", "page.reset", "flow.*"),
        fusion="always",
        axes=("rows",),
        pages="filled",
        call="append",
        arguments=(
            *_call("k_new", "v_new", "latent_new", "loc", "row_offsets", "lengths", "page_table", "slots", "fresh"),
            *_layer(*POOLS, "field.*", "state.*", access="writes"),
            *SCALES,
            *PLACE,
            CONSTANTS,
        ),
    )
)

declare(
    KernelKind(
        name="select",
        about="the scores of a row's candidate pages, and the pages that it keeps",
        order=30,
        domain="rows",
        candidates=True,
        ops=("page.load", "page.load_words", "page.store", "flow.*"),
        fusion="bounded",
        workspace=True,
        pages="scored",
        call="select",
        takes_in="append",
        tuned=True,
        arguments=(
            *_call("q", "lengths", "page_table", "slots"),
            *_call("pages", "counts", access="writes"),
            *_layer(*POOLS, "field.*"),
            *SCALES,
            *_layer("state.*", access="updates"),
            *PLACE,
            CONSTANTS,
            _plan("reads"),
            _work("reads"),
            _arrivals("updates"),
            Argument("workspace", "decoder", "updates", "f32", ("rows", "workspace_words")),
        ),
    )
)

declare(
    KernelKind(
        name="attend",
        about="attention over the tokens of the pages that a row keeps",
        order=40,
        domain="work_items",
        ops=("page.load", "page.load_selection", "page.attend", "page.store", "flow.*"),
        axes=("rows", "kept"),
        pages="kept",
        call="attend",
        paces=True,
        tuned=True,
        arguments=(
            *_call("q", "lengths", "page_table", "pages", "counts", "scale"),
            *_call("out", "lse", access="writes"),
            *_layer(*POOLS, "layer"),
            *SCALES,
            CONSTANTS,
            _work("reads"),
            _arrivals("updates"),
            Argument("partials", "decoder", "updates", "f32", ("partial_rows", "partial_heads", "partial_words")),
        ),
    )
)
