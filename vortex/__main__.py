"""``python -m vortex``, and the command ``vortex``."""

import sys


def run() -> int:
    """The process's own command line; the exit code. An interrupt may come while the command line is still loaded."""
    try:
        from vortex.cli.main import entry

        return entry()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(run())
