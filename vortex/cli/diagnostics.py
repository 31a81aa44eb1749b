"""``vortex opt --verify-diagnostics``: comments of an IR file say which error it must end in, and where.

    // expected-error@+1 {{unknown operation 'flow.reduse'}}
    %m = flow.reduse(%x)

``@+N`` and ``@-N`` count lines from the comment, no number means its own line, and ``@unknown`` stands for an error
that has no place in the file. The text in braces is a part of the message. Work on a file ends with its first error, so
that a file, or a part of one that was split, expects one at most.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vortex.errors import IR_SYNTAX, Loc, VortexError

_EXPECTED = re.compile(r"//\s*expected-error(?:@(?P<where>[+-]\d{1,6}|unknown))?\s*\{\{(?P<text>.*?)\}\}")


@dataclass(frozen=True, slots=True)
class Expected:
    """An error that a comment asks for; ``line`` counts from 1 in the whole file and is 0 for ``@unknown``."""

    line: int
    text: str
    comment: int
    """The line of the comment."""


def expected_errors(text: str, file: str) -> list[Expected]:
    """What the comments of ``text`` expect.

    Raises:
        VortexError: VX2001 for a comment that begins as such a one and goes on otherwise.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if "expected-error" not in line:
            continue
        m = _EXPECTED.search(line)
        if m is None:
            raise IR_SYNTAX.at(
                Loc(file, number, line.index("expected-error") + 1), source=text,
                expected="'// expected-error@+1 {{text}}'", found="a comment of another form",
            )  # fmt: skip
        where = m["where"] or "+0"
        found.append(Expected(0 if where == "unknown" else number + int(where), m["text"], number))
    return found


def unmet(expected: list[Expected], error: VortexError | None, file: str) -> list[str]:
    """A sentence for each way in which ``error``, what came of ``file`` or a part of it, is not what was expected."""
    line = error.loc.line if error is not None and error.loc is not None and error.loc.file == file else 0
    met = [e for e in expected if error is not None and e.line == line and e.text in error.message]
    wrong = [
        f"{file}:{e.comment}: no error at {f'line {e.line}' if e.line else 'no line'} says '{e.text}'"
        for e in expected
        if e not in met
    ]
    if error is not None and not met:
        wrong.append(f"{file}:{line or 1}: not expected: error[{error.code}]: {error.message}")
    return wrong
