"""``python -m vortex``: the command line."""

import sys

from vortex.cli.main import entry

sys.exit(entry())
