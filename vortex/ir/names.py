"""Names that no two values have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Names:
    """The names in use; finding an unused one takes time that does not grow with their number."""

    def __init__(self, used: Iterable[str] = ()) -> None:
        self._used = Counter(used)
        self._first: dict[str, int] = {}
        """By hint, a number before which all of ``hint_1``, ``hint_2`` and so on are in use."""

    def unused(self, hint: str) -> str:
        """``hint``, or ``hint_1`` and so on, whichever is the first that nobody uses."""
        if hint not in self._used:
            return hint
        k = self._first.get(hint, 1)
        while f"{hint}_{k}" in self._used:
            k += 1
        self._first[hint] = k
        return f"{hint}_{k}"

    def take(self, hint: str) -> str:
        """:meth:`unused`, which is in use from now on."""
        name = self.unused(hint)
        self._used[name] += 1
        return name

    def release(self, name: str) -> None:
        """One that had ``name`` has it no more."""
        self._used[name] -= 1
        if self._used[name] > 0:
            return
        del self._used[name]
        hint, _, number = name.rpartition("_")
        first = self._first.get(hint, 1)
        # a longer number is larger, and Python refuses to read one of thousands of digits
        if number.isdecimal() and len(number) <= len(str(first)) and int(number) < first:
            self._first[hint] = max(1, int(number))
