"""No test sees tuning results that it did not ask for: neither this machine's nor those that are shipped.

Idle OpenMP threads sleep: two workers have four threads on two cores, and threads that wait by spinning take the cores
from those that work.

No test sees a terminal's width: readline, which pytest imports, sets COLUMNS for pytest's workers.
"""

import os
from pathlib import Path

from vortex.install import databases

os.environ["VORTEX_DB"] = "none"
os.environ.pop("COLUMNS", None)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # libgomp reads it when torch is imported
databases.SHIPPED = Path(__file__).with_name("nothing-shipped")
