"""What is slow about a compilation and at which line, in a sentence or two."""

from __future__ import annotations

from vortex.report.model import Compilation, Remark

ORDER = ("tensor-cores", "arithmetic", "read-again", "spills", "occupancy", "near-dense", "launches", "fusion")
"""Rules, the likeliest cause first: what an op does comes before what follows for its kernel."""


def verdict(c: Compilation) -> tuple[str, ...]:
    """The verdict: the cause first, then what else is known of the kernel, and what would change it."""
    if c.status == "failed":
        return (f"The compilation failed: {c.error or 'the dump does not say why'}",)
    if c.status == "running":
        return ("The compilation had not ended when the dump was read: what follows is what there was.",)
    missed = [r for r in c.remarks if r.sort == "missed"]
    if not missed:
        return _nothing(c)
    ranked = sorted(missed, key=lambda r: ORDER.index(r.rule) if r.rule in ORDER else len(ORDER))
    first = ranked[0]
    also = [r.message for r in ranked[1:] if r.kernel == first.kernel and r.rule not in ("near-dense", "launches")]
    waits = [r.message for r in c.remarks if r.rule == "limiter" and r.kernel == first.kernel]
    told = [f"{_subject(first)} {_where(c, first)}: {first.message}."]
    if also or waits:
        told.append(f"Beside that, {'; '.join(also + waits)}.")
    if first.help:
        told.append(f"What would change it: {first.help}.")
    if other := len(ranked) - 1 - len(also):
        told.append(f"{other} more {'remark is' if other == 1 else 'remarks are'} below.")
    return tuple(told)


def _subject(r: Remark) -> str:
    return f"{r.kernel} is slow" if r.kernel else "The flow is slow"


def _where(c: Compilation, r: Remark) -> str:
    """The line, quoted where it may be shown."""
    if r.place < 0:
        return "for no single line of the flow"
    place = c.places[r.place]
    source = c.sources[place.source]
    quoted = f", {source.lines[place.line - 1].strip()!r}" if place.line <= len(source.lines) else ""
    return f"because of {source.name} line {place.line}{quoted}"


def _nothing(c: Compilation) -> tuple[str, ...]:
    """Where no rule found anything: what the kernels wait for."""
    if c.not_assessed:
        return tuple(f"Nothing is known of the speed of what is for {t}: {why}." for t, why in c.not_assessed.items())
    if not any(k.resources for k in c.kernels):
        return ("Nothing is said of speed: no kernel was compiled for a GPU.",)
    own = {k.name for k in c.kernels if k.kind in ("select", "attend") and not k.variant_of}
    waits = [r.message for r in c.remarks if r.rule == "limiter" and r.kernel in own]
    return ("No rule finds anything slow.", *(f"{told[0].upper()}{told[1:]}." for told in dict.fromkeys(waits)))
