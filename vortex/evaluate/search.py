"""Which configurations are worth measuring, and which of those that were measured is the cheapest good one.

    every flow at every budget
      -> layers whose attention is diffuse made dense, worst first, STRIDE at a time, where a budget agrees too little
      -> the fewest bytes at the wanted agreement

Making layers dense goes on as long as it costs less than the best that is known, and as long as one of the last STRIDE
of them bought more agreement than a larger budget of the same flow would have for the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vortex.evaluate.agreement import Agreement, Configuration
from vortex.runtime.probes import DIFFUSE

STRIDE = 4
"""Numbers of dense layers that are measured at once; a layer alone may buy less than the next one."""


class Search:
    """The state of a search.

    Attributes:
        layers: the model's numbers of the layers where pages are selected.
        wanted: share of tokens that should agree with dense attention.
        measured: what is known.
    """

    def __init__(
        self, of_layer: Mapping[tuple[str, int], float], dense: float, layers: Sequence[int], wanted: float
    ) -> None:
        """``of_layer`` are bytes of a layer's step by flow and budget, ``dense`` those of a layer that reads all."""
        self.of_layer, self.of_dense_layer = dict(of_layer), dense
        self.layers, self.wanted = tuple(layers), wanted
        self.measured: dict[Configuration, Agreement] = {}
        self._dropped: set[str] = set()

    @property
    def dense_bytes(self) -> float:
        """Of a step in which all layers read everything."""
        return len(self.layers) * self.of_dense_layer

    def bytes(self, made: Configuration) -> float:
        """Of a step of one request, all layers together."""
        dense = len(made.dense_layers)
        return (len(self.layers) - dense) * self.of_layer[made.flow, made.pages] + dense * self.of_dense_layer

    def drop(self, flows: Iterable[str]) -> None:
        """These flows failed: nothing of them is measured or chosen any more."""
        self._dropped |= set(flows)
        self.measured = {c: a for c, a in self.measured.items() if c.flow not in self._dropped}

    def next(self) -> list[Configuration]:
        """What to measure next; nothing when the search is over."""
        bases = [Configuration(*at) for at in self.of_layer if at[0] not in self._dropped]
        if new := [c for c in bases if c not in self.measured]:
            return new
        return [c for base in bases for c in self._more(base)]

    def diffuse(self, base: Configuration) -> list[int]:
        """Layers that are diffuse at a budget, worst first."""
        most = self.measured[base].most.mean(-1)
        return [self.layers[i] for i in np.argsort(most, kind="stable") if most[i] < DIFFUSE]

    def _more(self, base: Configuration) -> list[Configuration]:
        """The next numbers of dense layers to try beside a flow at a budget."""
        if self.measured[base].share >= self.wanted:
            return []
        order = self.diffuse(base)
        every = [Configuration(base.flow, base.pages, tuple(sorted(order[: n + 1]))) for n in range(len(order))]
        known = [c for c in every if c in self.measured]
        if known and not any(self._pays(c, base) for c in known[-STRIDE:]):
            return []
        best = self.chosen()
        bound = self.dense_bytes if best is None else self.bytes(best)
        return [c for c in every[len(known) : len(known) + STRIDE] if self.bytes(c) < bound]

    def _pays(self, made: Configuration, base: Configuration) -> bool:
        """Whether dense layers bought more agreement than a larger budget, or all pages, would for the same bytes."""
        larger = [c for c in self.measured if c.flow == base.flow and c.pages >= base.pages and not c.dense_layers]
        points = sorted([*((self.bytes(c), self.measured[c].share) for c in larger), (self.dense_bytes, 1.0)])
        at, shares = zip(*points, strict=True)
        bought = np.interp(self.bytes(made), at, np.maximum.accumulate(shares))
        return bool(self.measured[made].share > bought)

    def reaches(self, made: Configuration) -> bool:
        """Whether it agrees as much as is wanted, for fewer bytes than dense attention."""
        return self.measured[made].share >= self.wanted and self.bytes(made) < self.dense_bytes

    def chosen(self) -> Configuration | None:
        """The configuration of the fewest bytes that reaches what is wanted."""
        return min(filter(self.reaches, self.measured), key=self._cheapest, default=None)

    def best(self) -> Configuration | None:
        """The configuration that agrees most, of those the one of the fewest bytes; one that costs less than dense
        attention comes before any that does not.
        """
        return min(
            self.measured,
            key=lambda c: (self.bytes(c) >= self.dense_bytes, -self.measured[c].share, *self._cheapest(c)),
            default=None,
        )

    def shown(self) -> list[Configuration]:
        """Every flow at every budget, each followed by the one with dense layers that reaches what is wanted, or else
        agrees most, where there is any better than without.
        """
        made = []
        for base in (c for c in self.measured if not c.dense_layers):
            beside = [c for c in self.measured if c.lane == base.lane and c.dense_layers]
            better = min(
                (c for c in beside if self.measured[c].share > self.measured[base].share),
                key=lambda c: (not self.reaches(c), self.bytes(c) if self.reaches(c) else -self.measured[c].share),
                default=None,
            )
            made += [base, *([better] if better else [])]
        return made

    def _cheapest(self, made: Configuration) -> tuple[float, float, int]:
        return self.bytes(made), -self.measured[made].share, len(made.dense_layers)
