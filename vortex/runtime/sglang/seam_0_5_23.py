"""SGLang 0.5.23: a backend declares when it has read what it shares with the scheduler."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.attention.base_attn_backend import SharedReadEnds

from vortex.runtime.sglang.backend import VortexBackend


class Backend(VortexBackend):
    """As the backend is, with its declaration."""

    def shared_read_ends(self, fm: Any) -> Any:
        """Decoding reads the copy that is made before a replay; what the prefill backend reads, nobody audited."""
        return SharedReadEnds.PRE_REPLAY if fm.is_decode() else SharedReadEnds.UNKNOWN
