"""What sort of kernel one of its kind is, as far as predictions of its time differ by that."""

from __future__ import annotations

from vortex.ir.core import Function, Module
from vortex.schedules.select_memory import shortlists


def form_of(program: Module, f: Function, cluster: int = 1) -> str:
    """``of shortlists`` where ``select`` chooses in steps, ``in clusters`` where so many CTAs share a row of it, ``over
    latent rows`` under MLA; empty for all others.
    """
    if f.attrs["kind"] == "select":
        return " ".join(["of shortlists"] * bool(shortlists(f)) + ["in clusters"] * (cluster > 1))
    return "over latent rows" if f.attrs["kind"] == "attend" and "kv_lora_rank" in program.attrs else ""
