"""Random well-typed flows over the whole language, by seed.

A flow is built of productions: fields (:data:`FIELDS`), lines of its methods (``values``), steps of a shortlist, state,
and a selection (:data:`PARTS`). What is to be generated as well is one production more in one of these lists.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tests.generated.over_pages import PAGES
from tests.generated.program import Dim, Program, Var, swept
from tests.generated.rounding import SMOOTH
from tests.generated.values import ELEMENTWISE, KNOWN, LIMIT, Body, Unfit, number, spread, static
from vortex.budget import Budget
from vortex.spec import Spec

KEYS, QUERIES = 3.0, 2.0
"""The largest numbers of K and V, and of Q: integers."""
LAYERS, MODEL_HEADS = 2, 3
STATE = 64.0
"""The largest number of state, an integer in flows that are exact."""
EXACT = 0.8
"""The share of flows whose numbers fp32 holds exactly."""
ODD = 0.15
"""The share of scores of exact flows of which some are infinite or NaN."""
WHOLE = 0.4
"""The share of flows that know of pages beside blocks, of those whose pages have several."""


def generate(seed: int) -> Program:
    """The flow of a seed; the same for as long as this package does not change."""
    rng = random.Random(seed)
    while True:
        try:
            return _Flow(rng, seed).program()
        except Unfit:
            continue


def _spec(rng: random.Random) -> Spec:
    page, block = rng.choice([(4, 0), (8, 0), (2, 0), (8, 4), (8, 2), (6, 2)])
    dtype = rng.choice(["bf16", "bf16", "bf16", "f16", "f32"])
    spec = Spec(
        page_size=page, block_size=block, head_dim=16, group=rng.choice([1, 2, 2, 3, 4]), dtype=dtype,
        budget_table=rng.random() < 0.15,
    )  # fmt: skip
    other = rng.random()
    if other < 0.12:
        return replace(spec, kv_lora_rank=8)
    return replace(spec, kv_dtype="fp8_e4m3") if other < 0.3 and dtype != "f32" else spec


def _budget(rng: random.Random, spec: Spec) -> Budget:
    ends = {"sink": rng.choice([0, 1, 2]), "recent": rng.choice([1, 2])}
    if not spec.budget_table:
        return Budget(rng.choice([0, 1, 2, 3, 5]), rng.choice([0, 0, "1/3", "1/8"]), **ends)
    if rng.random() < 0.3:
        return Budget(table=[rng.randint(0, 5) for _ in range(LAYERS)], **ends)
    return Budget(table=[[rng.randint(0, 5) for _ in range(MODEL_HEADS)] for _ in range(LAYERS)], **ends)


class _Flow:
    """One flow while it is made."""

    def __init__(self, rng: random.Random, seed: int) -> None:
        self.rng, self.seed = rng, seed
        self.spec = _spec(rng)
        self.budget = _budget(rng, self.spec)
        self.exact = rng.random() < EXACT
        self.declared: list[str] = []
        self.fields: dict[str, str] = {}
        self.whole = self.spec.page_blocks > 1 and rng.random() < WHOLE
        """Whether the flow knows of pages (the axis ``P``) beside their blocks (``S``)."""
        sizes = {"P": self.spec.page_size, "S": self.spec.block_size} if self.whole else {"S": self.spec.block_size}
        self.bodies = {axis: self._body(axis, size) for axis, size in sizes.items()}
        self.cache = self.bodies["S"]
        self.written: dict[str, Var] = {}
        self.read: list[Var] = []

    def _body(self, axis: str, size: int) -> Body:
        """Lines of forward_cache about pages, or about blocks."""
        of = "page.block" if self.whole and axis == "S" else "page"
        pools = [Var(f"{of}.{n}", (size, self.spec.head_dim), most=KEYS) for n in self.spec.pools]
        return Body(self.rng, "c" if of == "page" else "b", pools, exact=True)

    @property
    def places(self) -> list[Var]:
        """The index of a page, or of a block."""
        index = [Var("vortex.page_index()", ("P" if self.whole else "S",), "int", 512)]
        return index + ([Var("vortex.block_index()", ("S",), "int", 512)] if self.whole else [])

    def program(self) -> Program:
        rng = self.rng
        for i in range(rng.randint(2 if self.whole else 1, 3)):
            self.cache = self.bodies["P" if self.whole and (i == 0 or rng.random() < 0.5) else "S"]
            self.cache.grow(rng.randint(0, 4), ELEMENTWISE + KNOWN)
            rng.choice(FIELDS)(self)
        q = Var("q", (self.spec.group, self.spec.head_dim), most=QUERIES)
        kept = self.state() if not self.exact or rng.random() < 0.3 else {}
        rows = [Var(f"cache.{n}", ("S", self.spec.block_size, self.spec.head_dim), most=KEYS) for n in self.spec.pools]
        some = Var("q.amax(0)", (self.spec.head_dim,), most=QUERIES)
        leaves = [*self.tables(), *kept, q, some, *self.read, *self.places]
        self.index = Body(rng, "x", leaves, exact=self.exact)
        kinds = ELEMENTWISE + KNOWN + KNOWN + PAGES + [_placed, _same_bits] + ([] if self.exact else SMOOTH * 2)
        self.opening(leaves)
        self.index.grow(rng.randint(2, 9), kinds)
        steps = rng.choice([0, 0, 0, 1, 1, 1, 2, 2, 3]) if self.exact else 0
        steps = max(steps, 1) if self.whole and self.exact else steps
        bound, over = 40, "P" if self.whole else "S"
        for step in range(steps):
            if bound < 3:  # a list of one page is none to list some of
                steps = step
                break
            over = "S" if step and rng.random() < 0.5 else over
            bound = self.shortlist(step, bound, over, rows)
            self.index.grow(rng.randint(1, 6), kinds)
        axis = f"S{steps}" if steps and rng.random() < 0.9 else "S"
        end = self.selection(axis)
        new = {v.text.removeprefix("cache."): self.became(v) for v in kept}
        made = Program(
            self.seed, self.spec, self.budget, tuple(self.declared), self.fields,
            tuple(line for body in self.bodies.values() for line in body.lines),
            self.written, tuple(self.index.lines), end, new, self.exact,
        )  # fmt: skip
        return swept(made)

    # what there is to read

    def field(self, v: Var, how: str, read: Var | None = None) -> None:
        """Keep ``v`` under a new name, read as it is or as ``read``."""
        name = f"f{len(self.written)}"
        shape = "".join(f"{d}, " for d in v.shape)
        axis = next(axis for axis, body in self.bodies.items() if body is self.cache)
        if self.whole:
            how += f'{", " if how else ""}per="{"page" if axis == "P" else "block"}"'
        self.fields[name] = f"vortex.Field({f'{shape}{how}'.rstrip(', ')})"
        self.written[name] = v
        self.read.append(replace(read or v, text=f"cache.{name}", shape=(axis, *(read or v).shape)))

    def tables(self) -> list[Var]:
        """Constants and learned weights."""
        rng, made = self.rng, list[Var]()
        dim = self.spec.head_dim
        if rng.random() < 0.3:
            n = rng.choice([dim, 4, self.spec.group])
            numbers = [rng.randint(-2, 2) for _ in range(n)]
            self.declared.append(f"self.t = torch.tensor({numbers}).float()")
            made.append(Var("self.t", (n,), most=2.0))
        if rng.random() < 0.3:
            table = [[rng.randint(-2, 3) for _ in range(MODEL_HEADS)] for _ in range(LAYERS)]
            self.declared.append(f"self.u = torch.tensor({table}).float()")
            made.append(Var("self.u[vortex.layer(), vortex.head()]", (), most=3.0))
        if rng.random() < 0.3:
            shape = rng.choice([(dim,), (dim, 4), (self.spec.group,)])
            per, dtype = rng.choice(["None", '"layer"', '"head"']), rng.choice(["f32", "bf16", "f16"])
            self.declared.append(f'self.w = vortex.Parameter("w", {shape}, "{dtype}", per={per})')
            made.append(Var("self.w", shape, most=2.0))
        return made

    def state(self) -> list[Var]:
        """Declare state; what each is as it is read."""
        rng, made = self.rng, list[Var]()
        kinds = rng.choice(["p", "r", "pr", "pp", "prr"]) if self.exact else rng.choice(["p", "pr"])
        for i, kind in enumerate(kinds):
            per = {"p": "page", "r": "request"}[kind]
            shape: tuple[Dim, ...] = rng.choice([(), (), (self.spec.head_dim,)]) if self.exact or kind == "r" else ()
            dtype = rng.choice(["f32", "f32", "bf16", "f16", "fp8_e4m3"]) if self.exact else "f32"
            sizes = "".join(f"{d}, " for d in shape)
            init = rng.choice([0, 1, -2])
            block = ', per="block"' if self.whole and kind == "p" else ""
            self.fields[f"s{i}"] = f'vortex.Field({sizes}dtype="{dtype}", state="{per}"{block}, init={init})'
            made.append(Var(f"cache.s{i}", ("S", *shape) if kind == "p" else shape, most=STATE))
        return made

    def opening(self, leaves: list[Var]) -> None:
        """Lines that use what the flow declares, as flows do that people write."""
        b, rng = self.index, self.rng
        for v in leaves:
            if rng.random() < 0.6:
                uses = {"bool": (_same_bits, number), "int": (number,)}.get(
                    v.kind, (_weighed, _product) if v.axis == 0 else (_weighed,)
                )
                b.attempt(partial(rng.choice(uses), v=v))

    # steps and ends

    def shortlist(self, step: int, bound: int, over: str, rows: list[Var]) -> int:
        """Take the flow to the pages of a shortlist, chosen ``over`` pages or blocks; how many it has at most.

        All blocks follow a list of pages too: they become the listed pages' blocks.
        """
        b, step_of = self.index, {axis: f"{axis}{step or ''}" for axis in "PS"}
        pages = self.rng.randint(min(3, bound - 1), min(bound - 1, 24))
        score = self.odd(self.score(step_of[over]))
        near = b.add(f"vortex.shortlist({{0}}, pages={pages})", (score,), (), "near")
        follow = {at: f"{at[0]}{step + 1}" for at in ("S", over, step_of[over])}
        leaves = [v for v in [*self.read, *rows, *self.places] if v.pages in follow]
        others = [v for v in b.values if v.pages in follow and v.axis == 0 and v.kind != "near"]
        picked = self.rng.sample(leaves, min(len(leaves), 3)) + self.rng.sample(others, min(len(others), 2))
        for v in dict.fromkeys(picked):
            b.add("{0}[{1}]", (v, near), (follow[str(v.pages)], *v.shape[1:]), v.kind, v.most, v.bits)
        return pages * (self.spec.page_blocks if over == "P" else 1)

    def score(self, axis: str) -> Var:
        """One number for each page of an axis, often of several values."""
        b = self.index
        v = self.number(axis)
        while self.rng.random() < 0.5:
            more = self.number(axis)
            most, bits = v.most + more.most, max(v.bits, more.bits)
            if self.exact and most * 2.0**bits > LIMIT:
                break
            if more != v:
                v = b.add("{0} + {1}", (v, more), v.shape, most=most, bits=bits)
        return v

    def odd(self, score: Var) -> Var:
        """A score of which some numbers are infinite, or none: NaN. Nothing else is made of it, for what passes keep
        is defined for numbers alone; how pages with such scores are ordered is defined.
        """
        if not self.exact or self.rng.random() >= ODD:
            return score
        v, b = score, self.index
        for _ in range(self.rng.choice([1, 1, 2])):
            low = self.rng.choice(["> 2", "< 0", "== 1", ".abs() < 2"])
            what = self.rng.choice(["torch.nan", "torch.inf", "-torch.inf"])
            v = b.add(
                f"torch.where({{1}} {low}, {what}, {{0}})", (v, score), score.shape, most=score.most, bits=score.bits
            )
            b.values.remove(v)
        return v

    def number(self, axis: str) -> Var:
        b = self.index
        v = b.pick(lambda v: v.axis == 0 and v.pages == axis)
        while len(v.shape) > 1:
            last = len(v.shape) - 1
            n = int(v.shape[last])
            name = self.rng.choice(["sum", "amax", "amin"])
            most = v.most * n if name == "sum" else v.most
            if self.exact and most * 2.0**v.bits > LIMIT:
                name, most = "amax", v.most
            v = b.add(f"{{0}}.{name}({self.rng.choice([-1, last])})", (v,), v.shape[:-1], most=most, bits=v.bits)
        return v

    def selection(self, axis: str) -> Var:
        if not self.exact:
            return self.index.add("vortex.topk({0})", (self.score("S"),), (), "selection")
        parts = []
        for _ in range(self.rng.choice([1, 1, 1, 2, 3])):
            part = self.rng.choice(PARTS)(self, self.odd(self.score(axis)))
            if not parts or self.rng.random() < 0.7:
                axis = axis if self.rng.random() < 0.8 else "S"
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        form = ", ".join(f"{{{i}}}" for i in range(len(parts)))
        return self.index.add(f"vortex.union({form})", parts, (), "selection")

    def became(self, old: Var) -> Var:
        """What state becomes."""
        b = self.index
        try:
            v = b.pick(lambda v: v.shape == old.shape and v != old)
        except Unfit:
            if old.shape == ("S",):
                v = self.score("S")
            elif not old.shape:
                v = b.add("q.amax()", (), (), most=QUERIES)
            elif old.pages is None:
                v = b.add("q.sum(0)", (), old.shape, most=QUERIES * self.spec.group)
            else:
                v = b.add("{0} + q[0]", (old,), old.shape, most=STATE + QUERIES)
        if not self.exact:
            return b.add(self.rng.choice(["{0} + 0", "0.5 * {0} + 0.25 * {1}"]), (v, old), v.shape, most=STATE)
        form = self.rng.choice(["({0} + {1}).round().clamp(-64, 64)", "{0}.round().clamp(-64, 64)", "{0}.sign() + 1"])
        return b.add(form, (v, old), v.shape, most=STATE)


# fields ----------------------------------------------------------------------------------------------


def _picked(f: _Flow, fits: Callable[[Var], bool]) -> Var:
    """A value of forward_cache, made of the keys where there is none."""
    try:
        return f.cache.pick(lambda v: fits(v) and v.numel <= 256)
    except Unfit:
        return f.cache.add(f"{f.cache.values[0].text}.amax(0)", (), (f.spec.head_dim,), most=KEYS)


def _floats(f: _Flow) -> None:
    dtype = f.rng.choice(["", "", "bf16", "f16", "f32", "fp8_e4m3"])
    most = {"": 4e4, "f16": 4e4, "fp8_e4m3": 440.0}.get(dtype, 1e6)
    v = _picked(f, lambda v: v.most < most and v.numel <= 128)
    read = replace(v, most=v.most * 1.07)  # as it may be rounded
    f.field(v, f'dtype="{dtype}"' if dtype else "", read)


def _pinned(f: _Flow) -> None:
    """Codes whose scales are powers of two, others for each page: one number of each scale is the largest code."""
    b, rng = f.cache, f.rng
    dtype, most = rng.choice([("int4", 7), ("int4", 7), ("int8", 127)])
    x = _picked(f, lambda v: bool(v.shape) and int(v.shape[-1]) % 2 == 0 and min(static(v) and v.shape) >= 2)
    if not x.shape or int(x.shape[-1]) % 2 or any(int(d) < 2 for d in x.shape):
        raise Unfit
    rank = len(x.shape)
    pin = rng.randrange(rank)
    scale = tuple(i for i in range(rank) if i != pin and rng.random() < 0.7)
    shared = [i for i in range(rank) if i not in scale]
    keys = ", ".join([":"] * pin)
    first, rest = (f"{{0}}[{keys + ', ' if keys else ''}{part}]" for part in (":1", "1:"))
    form = f"torch.cat([torch.ones_like({first}) * {most}, {rest}.clamp(-{most}, {most})], {pin})"
    y = b.add(form, (x,), x.shape, most=float(most), bits=x.bits)
    two = f"{rng.choice(['2.0', '4.0'])}, {rng.choice(['1.0', '0.5'])}"
    large = f"torch.where({{1}}.sum({shared}, keepdim=True) > 0, {two})"
    z = b.add(f"{{0}} * {large}", (y, x), x.shape, most=4.0 * most, bits=x.bits + 1)
    how = rng.choice([scale, scale[0] - rank if len(scale) == 1 else scale])
    f.field(z, f'dtype="{dtype}", scale={how}', replace(z, bits=1))


def _codes(f: _Flow) -> None:
    dtype, most = f.rng.choice([("int4", 7), ("int8", 100)])
    x = _picked(f, lambda v: bool(v.shape) and int(v.shape[-1]) % 2 == 0)
    y = f.cache.add(f"{{0}}.round().int().clamp(-{most}, {most})", (x,), x.shape, "int", float(most))
    f.field(y, f'dtype="{dtype}"')


def _bits(f: _Flow) -> None:
    x = _picked(f, lambda v: bool(v.shape) and int(v.shape[-1]) % 8 == 0)
    y = f.cache.add(f"{{0}} > {f.rng.choice(['0', '-1', '1'])}", (x,), x.shape, "bool")
    f.field(y, 'dtype="uint1"')


FIELDS = [_floats, _floats, _floats, _pinned, _pinned, _codes, _bits, _bits]


def _same_bits(b: Body, v: Var | None = None) -> None:
    """Bits that agree with those of the queries."""
    x = v or b.pick(lambda v: v.axis == 0 and len(v.shape) > 1 and int(v.shape[-1]) % 8 == 0, "bool")
    if len(x.shape) < 2 or int(x.shape[-1]) % 8:
        raise Unfit
    y = b.pick(lambda v: v.shape == x.shape[-1:])
    number(b, b.add("vortex.same_bits({0}, {1} > 0)", (x, y), x.shape[:-1], "int", float(x.shape[-1])))


def _weighed(b: Body, v: Var) -> None:
    """Something of the pages times a value that broadcasts to it."""
    x = b.pick(lambda x: x.axis == 0 and all(d in x.shape for d in v.shape) and x != v)
    b.add(f"{{0}} * {spread(v, x.shape, 1)}", (x, v), x.shape, most=x.most * v.most, bits=x.bits + v.bits)


def _product(b: Body, v: Var) -> None:
    """Scalar products of the queries and what is kept of pages, or of weights."""
    if v.axis != 0 or len(v.shape) < 2:
        raise Unfit
    q = b.pick(lambda x: x.pages is None and len(x.shape) == 2 and x.shape[-1] == v.shape[-1])
    shape = (*v.shape[:-1], q.shape[0])
    most = int(v.shape[-1]) * v.most * q.most
    b.add("{0} @ {1}.T", (v, q), shape, most=most, bits=v.bits + q.bits)


def _placed(b: Body) -> None:
    """Where the flow is: its layer and head, the pages there are."""
    kind = b.rng.choice(["layer", "head", "count"])
    x = b.pick()
    form, most = {
        "layer": ("{0} * (vortex.layer() + 1)", 2 * x.most),
        "head": ("{0} + vortex.head()", x.most + MODEL_HEADS),
        "count": ("{0} - vortex.page_count()", x.most + 512),
    }[kind]
    b.add(form, (x,), x.shape, most=most, bits=x.bits)


# selections ------------------------------------------------------------------------------------------


def _own(f: _Flow, always: bool = False) -> str:
    return f", pages={f.rng.choice([1, 2, 4, 7])}" if always or f.rng.random() < 0.4 else ""


def _topk(f: _Flow, score: Var) -> Var:
    tolerance = f.rng.choice(["", "", ", tolerance=0.1"])
    return f.index.add(f"vortex.topk({{0}}{_own(f)}{tolerance})", (score,), (), "selection")


def _counted(f: _Flow, score: Var) -> Var:
    b = f.index
    try:
        many = b.pick(lambda v: v.shape == ())
    except Unfit:
        many = b.add("q.sum()", (), (), most=QUERIES * f.spec.group * f.spec.head_dim)
    return b.add(f"vortex.topk({{0}}, count={{1}}{_own(f)})", (score, many), (), "selection")


def _topp(f: _Flow, score: Var) -> Var:
    mass = f.rng.choice(["{0}.abs()", "F.relu({0})", "{0}", "{0}.abs() + 1"])
    p = f.rng.choice([0.3, 0.5, 0.75, 0.9, 1.0])
    form = f"vortex.topp({mass}, {p}{_own(f, f.spec.budget_table)})"
    return f.index.add(form, (score,), (), "selection")


PARTS = [_topk, _topk, _topk, _counted, _topp]
