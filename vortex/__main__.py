"""``python -m vortex``: the command line."""

import sys

from vortex.cli.main import main

sys.exit(main())
