"""SGLang's whole server, measured: what ``sglang_serve.py`` runs.

``checks``, ``pools`` and ``figures`` are its parts. They use a ``Bench``, which has ``servers`` to start, a ``judge``
of answers and a ``report`` to write to; the simulation in plain torch is that of the engine tests.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "tests" / "engine"
sys.path[:0] = [str(ROOT), str(ENGINE)]
