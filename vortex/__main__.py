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
    finally:
        # CPython takes an interrupt that left a string given to exec (dataclasses do that) for one that nobody caught, and
        # ends the process by the signal, whatever is returned here; a string that ran to its end takes that back
        exec("")


if __name__ == "__main__":
    sys.exit(run())
