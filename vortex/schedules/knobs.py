"""A knob: a whole number that a template is built with, its legal values and its meaning, declared once.

    @dataclass(frozen=True, slots=True)
    class AppendKnobs(Knobs):
        threads: int = knob(128, "threads of a CTA", least=32, most=1024, step=32)

The fields of a :class:`Knobs` class are the knobs of one template; :func:`read_knobs` makes one of a schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from vortex.errors import BAD_KNOB, nearest
from vortex.ir.core import Attr

MOST = 1 << 24
"""No knob is larger."""


@dataclass(frozen=True, slots=True)
class Legal:
    """Which numbers a knob may be: those listed, or from ``least`` to ``most`` in steps of ``step``."""

    least: int = 0
    most: int = MOST
    step: int = 1
    only: tuple[int, ...] = ()

    def __contains__(self, value: int) -> bool:
        if self.only:
            return value in self.only
        return self.least <= value <= self.most and value % self.step == 0

    def __str__(self) -> str:
        if self.only:
            return " or ".join(filter(None, (", ".join(map(str, self.only[:-1])), str(self.only[-1]))))
        whole = f"a multiple of {self.step}" if self.step > 1 else "a whole number"
        return f"{whole} from {self.least} {'on' if self.most == MOST else f'to {self.most}'}"


def knob(
    default: int,
    doc: str,
    *,
    least: int = 0,
    most: int = MOST,
    step: int = 1,
    only: tuple[int, ...] = (),
    chosen: str = "",
) -> Any:
    """A field of a :class:`Knobs` class; ``chosen`` says how the default depends on shape and machine, if it does."""
    legal = Legal(least, most, step, only)
    assert default in legal, (doc, default)
    return field(default=default, metadata={"doc": doc, "legal": legal, "chosen": chosen})


@dataclass(frozen=True, slots=True)
class KnobInfo:
    """What ``vortex passes schedule`` shows of a knob."""

    name: str
    type: str
    legal: Legal
    default: str
    doc: str


@dataclass(frozen=True, slots=True)
class Knobs:
    """The knobs of one template; subclasses are frozen dataclasses whose fields :func:`knob` made."""

    def attrs(self) -> dict[str, int]:
        """By name, in order of declaration, as a schedule has them."""
        return dict(asdict(self))


K = TypeVar("K", bound=Knobs)


def declared(cls: type[Knobs]) -> dict[str, KnobInfo]:
    """The knobs of a class by name."""
    return {
        f.name: KnobInfo(f.name, str(f.type), f.metadata["legal"], f.metadata["chosen"] or str(f.default),
                         f.metadata["doc"])
        for f in fields(cls)
    }  # fmt: skip


def check_knob(where: str, known: Mapping[str, KnobInfo], name: str, value: Attr) -> int:
    """``value`` as the number of knob ``name``.

    Raises:
        VortexError: VX2010 for an unknown name, with the nearest knob, and for a value that is not legal.
    """
    if name not in known:
        close = nearest(name, known) or (f"; it has {', '.join(known)}" if known else "; it has none")
        raise BAD_KNOB.at(where=where, why=f"there is no knob '{name}'{close}")
    legal = known[name].legal
    if isinstance(value, bool) or not isinstance(value, int) or value not in legal:
        raise BAD_KNOB.at(where=where, why=f"{name} is {ascii(value)[:60]}; it may be {legal}")
    return value


def read_knobs(cls: type[K], schedule: Mapping[str, Attr], where: str = "the schedule") -> K:
    """The knobs that a complete schedule holds.

    Raises:
        VortexError: VX2010 when one is missing or is not a legal number.
    """
    known = declared(cls)
    if missing := [name for name in known if name not in schedule]:
        why = f"it does not say {', '.join(missing)}: nothing was chosen for this kernel"
        raise BAD_KNOB.at(where=where, why=why)
    return cls(**{name: check_knob(where, known, name, schedule[name]) for name in known})
