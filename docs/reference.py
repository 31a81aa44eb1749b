"""The API reference of docs/api.md: every public name with its signature and docstring, as Markdown."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import vortex
import vortex.hf

GROUPS = {
    "Writing a flow": (
        "vFlow",
        "register",
        "find_flow",
        "Field",
        "Parameter",
        "topk",
        "topp",
        "union",
        "shortlist",
        "page_index",
        "page_count",
        "block_index",
        "layer",
        "head",
        "same_bits",
    ),
    "Compiling": ("compile", "Compilation", "Spec"),
    "Decoding": ("decode", "Decoded", "load", "Decoder", "PagedCache", "Budget"),
    "In transformers": ("hf.register", "hf.report"),
    "Errors": ("VortexError",),
}
"""Every public name of vortex, in the order in which they are read."""

INTERNAL = {
    "vFlow.dialect",
    "Parameter.type",
    "Parameter.here",
    "Spec.of_attrs",
    "Spec.attrs",
    "Spec.scaled",
    "Spec.pools",
    "Budget.require_model",
    "Budget.row",
    "Decoder.launch",
    "Compilation.own_seconds",
}
"""What is not meant to be called from outside, though its name has no underscore."""

WIDTH = 100
"""Of a signature in one line."""

ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")
SECTION = re.compile(r"(Args|Returns|Raises|Attributes):\n(.*)", re.DOTALL)


def reference() -> str:
    """The whole reference: a heading for each group and name."""
    known = [name for names in GROUPS.values() for name in names]
    missing = {*vortex._PUBLIC} - {*known}
    assert not missing, f"docs/reference.py has no place for {missing}"
    return "\n" + "".join(f"## {group}\n\n{''.join(map(_entry, names))}" for group, names in GROUPS.items())


def _entry(name: str) -> str:
    found = vortex
    for part in name.split("."):
        found = getattr(found, part)
    text = f"### vortex.{name}\n\n"
    if not inspect.isclass(found):
        return text + _described(name.rpartition(".")[2], found)
    shown = "" if issubclass(found, Exception | vortex.vFlow) else _signature(found.__name__, found)
    text += shown + _markdown(inspect.getdoc(found) or "")
    described = [(n, doc) for n, doc in _attributes(found) if f"{found.__name__}.{n}" not in INTERNAL]
    text += "".join(f"* `{n}`: {_inline(doc)}\n" for n, doc in described)
    return f"{text.rstrip()}\n\n{''.join(_members(found))}"


def _members(cls: type) -> Iterator[str]:
    """The methods and properties of a class that have a docstring, in its order."""
    for name, member in vars(cls).items():
        if name.startswith("_") or f"{cls.__name__}.{name}" in INTERNAL:
            continue
        if not (isinstance(member, property | classmethod) or inspect.isfunction(member)):
            continue
        doc = inspect.getdoc(member)
        if not doc:
            continue
        title = f"#### {cls.__name__}.{name}\n\n"
        if isinstance(member, property):
            yield f"{title}Property. {_markdown(doc)}"
        else:
            yield title + _described(name, getattr(cls, name), bound=not isinstance(member, classmethod))


def _described(name: str, found: object, *, bound: bool = False) -> str:
    return _signature(name, found, bound=bound) + _markdown(inspect.getdoc(found) or "")


def _signature(name: str, found: object, *, bound: bool = False) -> str:
    """As code: in one line where it fits, else with a line for each parameter; ``bound`` leaves out self."""
    given = inspect.signature(found)  # type: ignore[arg-type]
    if any("factory" in repr(p.default) for p in given.parameters.values()):
        return ""  # what nobody but vortex makes
    result = given.empty if inspect.isclass(found) else _annotation(given.return_annotation)
    parameters = [
        p.replace(annotation=_annotation(p.annotation), default=_default(p.default))
        for p in list(given.parameters.values())[bound:]
    ]
    line = f"{name}{inspect.Signature(parameters, return_annotation=result)}"
    if len(line) > WIDTH:
        lines, starred = [], False
        for p in parameters:
            if p.kind is p.KEYWORD_ONLY and not starred:
                lines.append("*")
            starred |= p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
            lines.append(str(p))
        tail = str(inspect.Signature(return_annotation=result)).removeprefix("()")
        line = f"{name}(\n" + "".join(f"    {text},\n" for text in lines) + f"){tail}"
    return f"```python\n{line}\n```\n\n"


class _Source:
    """An annotation or a default, as it is written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _annotation(text: Any) -> Any:
    """Types without their modules and without what checks them."""
    if text is inspect.Signature.empty:
        return text
    text = re.sub(r"\bAnnotated\[(.*), Raw\(\)\]", r"\1", text).replace("Count", "int")
    return _Source(re.sub(r"\btorch\.(\w+)", r"\1", text).replace("'", '"'))


def _default(value: object) -> object:
    return _Source(json.dumps(value)) if isinstance(value, str) else value


def _attributes(cls: type) -> Iterator[tuple[str, str]]:
    """The annotated attributes of a class that a docstring stands under."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    for node, after in zip(body.body, body.body[1:], strict=False):
        match node, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                yield name, " ".join(inspect.cleandoc(doc).split())


def _inline(text: str) -> str:
    """Roles and double backquotes of docstrings as Markdown has them."""
    return ROLE.sub(r"`\1`", text).replace("``", "`")


def _markdown(doc: str) -> str:
    """A docstring's paragraphs, its sections as lists."""
    made = []
    for paragraph in re.split(r"\n\n+(?=\S)", doc):
        section = SECTION.fullmatch(paragraph)
        if section is None:
            made.append(_inline(paragraph))
            continue
        title, body = section[1], textwrap.dedent(section[2])
        if title == "Returns":
            made.append(f"**Returns** {_inline(body)}")
        elif title == "Raises":
            made.append("\n".join(f"**Raises** `{n}`: {_inline(text)}" for n, text in _listed(body)))
        else:
            made.append("\n".join(f"* `{n}`: {_inline(text)}" for n, text in _listed(body)))
    return "\n\n".join(made) + "\n\n"


def _listed(body: str) -> Iterator[tuple[str, str]]:
    """The entries of a section: what stands before the colon of a line that is not indented, and all that follows."""
    for entry in re.split(r"\n(?=\S)", body):
        name, _, text = entry.partition(": ")
        yield name, " ".join(text.split())


def arguments(name: str) -> str:
    """The arguments of a public function or class as a Markdown table, from the section of its docstring."""
    found = getattr(vortex, name)
    [body] = [
        m[2]
        for p in re.split(r"\n\n+(?=\S)", inspect.getdoc(found) or "")
        if (m := SECTION.fullmatch(p)) and m[1] == "Args"
    ]
    described = dict(_listed(textwrap.dedent(body)))
    given = inspect.signature(found).parameters
    assert [*described] == [*given], f"the docstring of vortex.{name} describes {[*described]}, and it has {[*given]}"
    lines = ["| argument | default | meaning |", "|---|---|---|"]
    for p in given.values():
        default = "" if p.default is p.empty else f"`{_default(p.default)!r}`"
        meaning = _inline(described[p.name]).replace("|", "\\|")
        lines.append(f"| `{p.name}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


ARGUMENTS: dict[str, Callable[[], str]] = {
    f"arguments_{name}": partial(arguments, name) for name in ("compile", "decode", "load", "PagedCache")
}
