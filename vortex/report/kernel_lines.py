"""The texts of a kernel, and which places of the flow each of their lines computes."""

from __future__ import annotations

from vortex.compilation.kin import kin
from vortex.compilation.stored import Stored, StoredKernel
from vortex.ir.core import Function
from vortex.report.model import Text
from vortex.report.places import Places, loc_of

LANGUAGES = {"tir": ("tir", "TensorIR"), "source": ("cuda", "CUDA"), "ptx": ("ptx", "PTX"), "sass": ("sass", "SASS")}
"""Of a kernel's texts: the language and its name."""


def texts_of(
    stored: Stored, k: StoredKernel, f: Function | None, places: Places, *, sass: bool
) -> tuple[list[Text], dict[str, str]]:
    """The texts of ``k``, whose page IR is ``f``, and why others are missing or of no known place, by language.

    With ``sass`` nvcc is asked for machine code and the places of PTX, but not of variants and of kernels without a
    line of the flow.
    """
    if f is None:
        return [_text(k, what, text, ()) for what, text in k.texts.items()], {}
    own = sass and "variant_of" not in k.schedule and any(o.loc is not None for o in f.ops)
    found, users = kin(stored, k, machine=own), f.users()
    located = {name: loc_of(o, users) for name, o in found.ops.items()}
    made = []
    for what in LANGUAGES:
        if what in found.texts:
            lines = found.texts[what]
            known = tuple(places.all_of(*(located[name] for name in values)) for values in lines.values)
            made.append(_text(k, what, lines.text, known))
        elif what in k.texts:
            made.append(_text(k, what, k.texts[what], ()))
    return made, {LANGUAGES[what][1]: why for what, why in found.unknown.items()}


def _text(k: StoredKernel, what: str, text: str, known: tuple[tuple[int, ...], ...]) -> Text:
    language, name = LANGUAGES[what]
    return Text(f"{name} of {k.name} for {k.target}", language, tuple(text.splitlines()), known, k.target, k.name)
