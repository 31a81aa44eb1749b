"""The templates: one for each target, kernel kind and variant of the kind, and which of them a kernel takes.

An entry names functions as ``module:function``; nothing is imported before it is needed, for templates import TVM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from vortex.errors import NOT_EMITTABLE
from vortex.ir.core import Function, Module
from vortex.kinds.kind import KINDS
from vortex.schedules.cpu import CpuAppend, CpuAttend, CpuSelect
from vortex.schedules.cuda_append import CudaAppend
from vortex.schedules.cuda_attend import CudaAttend
from vortex.schedules.cuda_latent import CudaLatent
from vortex.schedules.cuda_plan import CudaPlan
from vortex.schedules.cuda_select import CudaSelect
from vortex.schedules.template import Schedulable, declare
from vortex.targets.target import Target

Words = tuple[int, int]
Reference = str | Callable[..., Any]
"""A function, or ``module:function`` of one that is imported when it is first called."""


@dataclass(frozen=True, slots=True)
class Template:
    """How kernels of one kind become TensorIR for one kind of target.

    ``emit`` takes a program and a kernel, writes the kernel into the open TVM function, and returns the names of its
    arguments in order; ``words`` gives its words of workspace for each page and for each row, those that the kernel's
    attributes say unless given.
    """

    target: str
    kind: str
    emit: Reference
    words: Reference | None = None
    choices: type[Schedulable[Any]] | None = None
    """What it leaves open, and which kernels of the kind it serves; None for one that serves all and leaves nothing."""

    @classmethod
    def of(cls, choices: type[Schedulable[Any]], emit: Reference, words: Reference | None = None) -> Template:
        """The template that leaves open what :mod:`vortex.schedules` declares; a variant of a kind is one of several
        declarations for it, whose ``serves`` says for which kernels it is.
        """
        return cls(choices.target, choices.kind, emit, words, choices)

    @property
    def variant(self) -> str:
        """Which of a kind's templates for the target it is; empty where there is one alone."""
        return "" if self.choices is None else self.choices.variant

    @property
    def name(self) -> str:
        return f"{self.target}.{self.kind}{self.variant and f' ({self.variant})'}"

    def serves(self, f: Function) -> bool:
        """Whether it makes a kernel of its kind."""
        return self.choices is None or self.choices().serves(f)

    def emit_into(self, program: Module, f: Function) -> list[str]:
        """Write the kernel into the open TVM function; the names of its arguments in order."""
        return list(_function(self.emit)(program, f))

    def words_of(self, program: Module, f: Function) -> Words:
        """Words of workspace for each page and for each row."""
        if self.words is None:
            return int(f.attrs.get("page_words", 0)), int(f.attrs.get("row_words", 0))
        page_words, row_words = _function(self.words)(program, f)
        return int(page_words), int(row_words)


def _function(reference: Reference) -> Callable[..., Any]:
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    found = getattr(import_module(module), name)
    assert callable(found), f"{reference} is not a function"
    return found


TEMPLATES: dict[tuple[str, str], tuple[Template, ...]] = {}
"""By target and kernel kind."""


def register(template: Template) -> Template:
    """Add a template to :data:`TEMPLATES`; a second one for the same variant is a ``ValueError``."""
    at = template.target, template.kind
    known = TEMPLATES.get(at, ())
    if any(t.variant == template.variant for t in known):
        raise ValueError(f"template '{template.name}' is registered twice")
    if template.choices is not None:
        declare(template.choices)
    TEMPLATES[at] = (*known, template)
    return template


def template_for(target: Target, f: Function) -> Template:
    """The template that makes ``f`` for ``target``; VX4006 where there is none."""
    kind = str(f.attrs["kind"])
    if kind not in KINDS:
        raise NOT_EMITTABLE.at(why=f"no template for kernels of kind '{kind}'", hint=f"there are {', '.join(KINDS)}")
    # as for what they leave open, of several that serve a kernel the last one goes first
    found = next((t for t in reversed(TEMPLATES.get((target.kind, kind), ())) if t.serves(f)), None)
    if found is None:
        have = [t for t, k in TEMPLATES if k == kind]
        why = f"no template for '{kind}' kernels on a {target.kind} target yet"
        raise NOT_EMITTABLE.at(why=why, hint=f"--target {have[0]}" if have else f"register one for '{kind}'")
    return found


_CPU, _CUDA = "vortex.codegen.cpu", "vortex.codegen.cuda"


for _template in (
    Template("cpu", "plan", f"{_CPU}.plan:emit_plan"),
    Template.of(CpuAppend, f"{_CPU}.append:emit_append"),
    Template.of(CpuSelect, f"{_CPU}.select:emit_select"),
    Template.of(CpuAttend, f"{_CPU}.attend:emit_attend"),
    Template.of(CudaPlan, f"{_CUDA}.plan:emit_plan"),
    Template.of(CudaAppend, f"{_CUDA}.append:emit_append"),
    Template.of(CudaSelect, f"{_CUDA}.select.kernel:emit_select", f"{_CUDA}.select.layout:workspace_words"),
    Template.of(CudaAttend, f"{_CUDA}.attend.dense:emit_attend"),
    Template.of(CudaLatent, f"{_CUDA}.attend.latent:emit_attend"),
):
    register(_template)
