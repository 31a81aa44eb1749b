"""What ``vortex`` exits with, whichever command it is."""

from __future__ import annotations

OK, CHECK_FAILED, USER_ERROR, INTERNAL_ERROR, INTERRUPTED = 0, 1, 2, 70, 130

EXIT_CODES = {
    OK: "done",
    CHECK_FAILED: "done, and what was checked is wrong, damaged, another one or missed",
    USER_ERROR: "a mistake in the command, a flow or a file, told as error[VXnnnn]",
    INTERNAL_ERROR: "a mistake in vortex, with a folder written that repeats it",
    INTERRUPTED: "interrupted by Ctrl-C",
}
"""What each means; ``vortex --help`` lists them, and docs/cli.md says which commands exit with 1."""
