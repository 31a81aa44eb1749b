"""What a request may choose for itself: ``custom_params={"vortex": {"dense": true}}`` among its sampling parameters.

SGLang hands ``custom_params`` from the client to the scheduler as they are. They are looked at where a request arrives,
so that a wrong one is refused alone, before it is anybody's neighbour in a batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from typing import Annotated

from vortex.budget import EVERY_PAGE, Budget
from vortex.errors import BAD_BUDGET, REQUEST_REFUSED, VortexError
from vortex.untrusted_json import JsonError, Partial, Range, Raw, read

KEY = "vortex"
"""Of ``custom_params``."""

RATIO = re.compile(r"[0-9]{1,10}(/[0-9]{1,10}|\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Choice:
    """``pages`` by score, a ``ratio`` of all pages where that is more, or ``dense`` for all of them; pages at both ends
    are reserved as the engine's budget has it. In the configuration, the most that requests may choose.

    Raises:
        VortexError: VX1020 for what is no choice.
    """

    pages: Annotated[int, Range(0, 2**28 - 1)] = 0
    ratio: Annotated[str | int | float | Fraction, Raw()] = 0
    dense: bool = False

    def __post_init__(self) -> None:
        given = str(self.ratio) if type(self.ratio) in (str, int, float, Fraction) else ""
        if not RATIO.fullmatch(given) or re.search("/0+$", given) or Fraction(given) > 1:
            raise BAD_BUDGET.at(why=f"ratio is {self.ratio!r:.60}; a share such as '1/16' is needed")
        object.__setattr__(self, "ratio", Fraction(given))
        if self.dense and (self.pages or self.ratio):
            raise BAD_BUDGET.at(why="it has pages or a ratio beside dense, which reads all pages")

    def budget(self, of: Budget) -> Budget:
        """The budget of such a request, where the engine's is ``of``."""
        return EVERY_PAGE if self.dense else Budget(self.pages, self.ratio, of.sink, of.recent)

    def within(self, most: Choice) -> bool:
        """Whether selections that have room for ``most`` have room for it."""
        if most.dense:
            return True
        return not self.dense and self.pages <= most.pages and Fraction(self.ratio) <= Fraction(most.ratio)

    def __str__(self) -> str:
        if self.dense:
            return "all pages"
        parts = [f"{self.pages} pages by score"] if self.pages or not self.ratio else []
        return " or ".join(parts + ([f"{self.ratio} of all"] if self.ratio else []))


def choice_of(custom: object, most: Choice | None, *, table: bool = False) -> Choice | None:
    """The choice in a request's ``custom_params``, None for none, where the configuration allows up to ``most``;
    ``table`` says that budgets differ by layer.

    Raises:
        VortexError: VX9007 for what is no choice, and for one beyond ``most``.
    """
    if not isinstance(custom, Mapping) or custom.get(KEY) is None:
        return None
    if most is None:
        raise REQUEST_REFUSED.at(why="this server takes no choices: 'per_request' is not in its configuration")
    given = custom[KEY]
    if isinstance(given, Mapping) and not given:
        raise REQUEST_REFUSED.at(why="it is empty")
    try:
        made: Choice = read(Annotated[Choice, Partial()], dict(given) if isinstance(given, Mapping) else given)
    except JsonError as error:
        raise REQUEST_REFUSED.at(why=str(error).removeprefix("it: ")) from None
    if given == {"dense": False}:
        return None
    if table and not made.dense:
        raise REQUEST_REFUSED.at(why="this server's budget is a table by layer: 'dense' alone can be asked for")
    if not made.within(most):
        raise REQUEST_REFUSED.at(why=f"it asks for {made}, and this server's 'per_request' allows {most}")
    return made


def slip_of(custom: Mapping[object, object]) -> str:
    """A key of ``custom_params`` that can only be a slip for ours, empty without one; others belong to logit
    processors, such as ``vertex``.
    """
    if KEY in custom:
        return ""
    meant = (k for k in custom if isinstance(k, str) and get_close_matches(k.strip().lower(), [KEY], cutoff=0.9))
    return next(meant, "")


def refusal(error: VortexError) -> str:
    """One sentence for the client."""
    return f"{error.code}: {error.message}; {error.help}"
