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
        # An interrupt that left a string given to exec (dataclasses run such) counts in CPython as one that nobody
        # caught: the process ends by the signal, whatever is returned here. A string that runs to its end undoes it.
        exec("")


if __name__ == "__main__":
    sys.exit(run())
