"""Productions: each adds a line of ordinary torch to a flow whose values fit it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tests.generated.program import Dim, Line, Var

LIMIT = 2.0**22
"""Exact flows keep every sum below it in units of its last bit: fp32 holds 2^24."""


class Unfit(Exception):
    """What was drawn fits no value."""


class Body:
    """Lines of a method, and the values that later ones may use."""

    def __init__(self, rng: random.Random, prefix: str, values: Sequence[Var], *, exact: bool) -> None:
        self.rng, self.prefix, self.exact = rng, prefix, exact
        self.values, self.lines = list(values), list[Line]()
        self.used = set[Var]()

    def add(
        self, form: str, operands: Sequence[Var], shape: Sequence[Dim], kind: str = "float", most: float = 1.0,
        bits: int = 0,
    ) -> Var:  # fmt: skip
        v = Var(f"{self.prefix}{len(self.lines)}", tuple(shape), kind, most, bits)
        too_big = most * 2.0 ** max(bits, 0) > LIMIT if self.exact else most > 1e4
        if v.numel > 512 or len(v.shape) > 4 or sum(isinstance(d, str) for d in v.shape) > 1 or too_big:
            raise Unfit
        self.lines.append(Line(v, form, tuple(operands)))
        self.values.append(v)
        self.used |= set(operands)
        return v

    def pick(self, fits: Callable[[Var], bool] = lambda v: True, kind: str = "float") -> Var:
        """A value, likely one of the latest or one that nothing uses yet."""
        ok = [v for v in self.values if v.kind == kind and fits(v)]
        if not ok:
            raise Unfit
        return self.rng.choice(ok[-1:] * 3 + ok[-5:] + ok[:8] + 2 * [v for v in ok if v not in self.used])

    def grow(self, steps: int, kinds: Sequence[Callable[[Body], object]]) -> None:
        """Up to so many lines more."""
        for _ in range(steps):
            self.attempt(self.rng.choice(kinds))

    def attempt(self, kind: Callable[[Body], object]) -> None:
        """The lines of a production, or none where what it draws fits nothing."""
        before = len(self.lines), len(self.values)
        try:
            kind(self)
        except Unfit:
            del self.lines[before[0] :], self.values[before[1] :]


def static(v: Var) -> list[int]:
    return [i for i, d in enumerate(v.shape) if isinstance(d, int)]


def axis_of(b: Body, v: Var, least: int = 1) -> int:
    """One of the axes of known size."""
    ok = [i for i in static(v) if int(v.shape[i]) >= least]
    if not ok:
        raise Unfit
    return b.rng.choice(ok)


def at(v: Var, i: int, index: str) -> str:
    """``{0}`` indexed along axis ``i``."""
    return f"{{0}}[{', '.join([*[':'] * i, index])}]"


def spread(small: Var, big: Sequence[Dim], slot: int) -> str:
    """The form of operand ``slot`` as it broadcasts with a tensor of shape ``big``; its axes are some of those."""
    keys, left = [], list(small.shape)
    for d in big:
        if left and left[0] == d:
            keys.append(":")
            left.pop(0)
        elif keys:
            keys.append("None")
        else:
            keys.append("")
    if left:
        raise Unfit
    keys = [k for k in keys if k]
    return f"{{{slot}}}" if "None" not in keys else f"{{{slot}}}[{', '.join(keys)}]"


def pair(b: Body, kind: str = "float") -> tuple[Var, Var, str]:
    """Two values of which the second broadcasts to the first, and its form."""
    x = b.pick(lambda v: bool(v.shape), kind)
    for _ in range(8):
        y = b.pick(lambda v: len(v.shape) <= len(x.shape), kind)
        try:
            return x, y, spread(y, x.shape, 1)
        except Unfit:
            continue
    raise Unfit


# elementwise -----------------------------------------------------------------------------------------


def add(b: Body) -> None:
    x, y, form = pair(b)
    sign = b.rng.choice("+-")
    b.add(f"{{0}} {sign} {form}", (x, y), x.shape, most=x.most + y.most, bits=max(x.bits, y.bits))


def multiply(b: Body) -> None:
    x, y, form = pair(b)
    b.add(f"{{0}} * {form}", (x, y), x.shape, most=x.most * y.most, bits=x.bits + y.bits)


def extreme(b: Body) -> None:
    x, y, form = pair(b)
    name = b.rng.choice(["torch.maximum", "torch.minimum", "torch.fmax", "torch.fmin"])
    b.add(f"{name}({{0}}, {form})", (x, y), x.shape, most=max(x.most, y.most), bits=max(x.bits, y.bits))


def where(b: Body) -> None:
    x, y, form = pair(b)
    test = b.rng.choice(["<", ">=", "==", "!=", ">"])
    other = b.rng.choice([form, "0.0", "-torch.ones(())", "{0} * 2"])
    most, bits = max(2 * x.most, y.most, 1.0), max(x.bits, y.bits)
    b.add(f"torch.where({{0}} {test} {form}, {other}, {{0}})", (x, y), x.shape, most=most, bits=bits)


def compare(b: Body) -> None:
    x, y, form = pair(b)
    b.add(f"{{0}} {b.rng.choice(['<', '<=', '>', '>=', '==', '!='])} {form}", (x, y), x.shape, "bool")


def unary(b: Body) -> None:
    x = b.pick()
    form, whole = b.rng.choice([
        ("-{0}", 0), ("{0}.abs()", 0), ("F.relu({0})", 0), ("{0}.floor()", 1), ("{0}.ceil()", 1), ("{0}.round()", 1),
        ("{0}.trunc()", 1), ("{0}.sign()", 2), ("{0}.clamp(-4, 8)", 3), ("{0}.clamp(min=-1)", 0), ("{0} * 0.5", 4),
        ("{0} * 2", 5), ("{0} + 1", 5), ("({0} > 0).float()", 2), ("1 - {0}", 5), ("{0}.nan_to_num()", 0),
        ("{0}.int().float()", 1), ("F.hardtanh({0})", 3), ("{0}.abs().neg()", 0),
    ])  # fmt: skip
    most = {1: x.most + 1, 2: 1.0, 3: 8.0, 5: 2 * x.most + 1}.get(whole, max(x.most, 1.0))
    bits = {1: 0, 2: 0, 4: x.bits + 1}.get(whole, x.bits)
    b.add(form, (x,), x.shape, most=most, bits=bits)


def divided(b: Body) -> None:
    """Quotients and remainders of whole numbers."""
    x = b.pick(lambda v: v.bits == 0 and v.most < 1e4)
    form, most = b.rng.choice([
        ("{0}.fmod(3)", 2.0), ("{0}.remainder(3)", 2.0), ("{0} // 4", x.most), ("{0} // 3", x.most),
        ("torch.div({0}, 2, rounding_mode='trunc')", x.most),
    ])  # fmt: skip
    b.add(form, (x,), x.shape, most=most)


def settled(b: Body) -> None:
    """A function that rounds, of few numbers, made whole so far from every step that rounding does not tell."""
    x = b.pick(lambda v: v.bits <= 1)
    y = "{0}.clamp(-4, 4)"
    form = b.rng.choice([
        f"torch.exp({y})", f"torch.exp2({y})", f"torch.expm1({y})", f"torch.log({y}.abs() + 1)",
        f"torch.log2({y}.abs() + 1)", f"torch.log10({y}.abs() + 1)", f"torch.log1p({y}.abs())", f"{y}.abs().sqrt()",
        f"({y}.abs() + 1).rsqrt()", f"torch.sin({y})", f"torch.cos({y})", "torch.tan({0}.clamp(-1, 1))",
        f"torch.tanh({y})", f"torch.erf({y})", f"torch.sigmoid({y})", f"F.silu({y})", f"F.gelu({y})",
        f"F.softplus({y})", f"{y}.abs() ** 1.5", f"torch.hypot({y}, 1 - {y})", f"{y} / ({y}.abs() + 1)",
    ])  # fmt: skip
    b.add(f"({form} * 5.3 + 0.37).floor()", (x,), x.shape, most=512.0)


def narrow(b: Body) -> None:
    """What a cast rounds to is on the same grid or a coarser one."""
    x = b.pick()
    if x.most > 6e4:
        raise Unfit
    b.add(f"{{0}}.{b.rng.choice(['bfloat16', 'half'])}().float()", (x,), x.shape, most=1.01 * x.most, bits=x.bits)


def number(b: Body, v: Var | None = None) -> None:
    """A float of an integer or a bool."""
    x = v or b.pick(kind=b.rng.choice(["int", "bool"]))
    form = b.rng.choice(["{0}", "{0}", "({0} // 2)", "({0} % 5)"]) if x.kind == "int" else "{0}"
    b.add(f"{form}.float()", (x,), x.shape, most=x.most + 5)


def logic(b: Body) -> None:
    x, y, form = pair(b, "bool")
    b.add(
        b.rng.choice([f"{{0}} & {form}", f"{{0}} | {form}", f"~{{0}} ^ {form}", f"{{0}} ^ {form}"]),
        (x, y),
        x.shape,
        "bool",
    )


def integers(b: Body) -> None:
    x = b.pick(kind="int")
    form = b.rng.choice(["{0} % 3", "{0} // 2", "{0}.clamp(-2, 5)", "{0} + 1", "-{0}", "{0} & 3"])
    b.add(form, (x,), x.shape, "int", most=x.most + 3)


def masked(b: Body) -> None:
    m = b.pick(kind="bool")
    x = b.pick(lambda v: v.shape == m.shape)
    b.add("torch.where({0}, {1}, 0.0)", (m, x), x.shape, most=x.most, bits=x.bits)


# known axes ------------------------------------------------------------------------------------------


def without(v: Var, i: int, keep: bool = False) -> tuple[Dim, ...]:
    return (*v.shape[:i], *((1,) if keep else ()), *v.shape[i + 1 :])


def reduce(b: Body) -> None:
    x = b.pick()
    i = axis_of(b, x)
    keep = b.rng.random() < 0.2
    n = int(x.shape[i])
    name = b.rng.choice(["sum", "sum", "amax", "amin", "mean"])
    if name == "mean" and b.exact and n & (n - 1):
        name = "sum"
    bits = x.bits + (n.bit_length() - 1 if name == "mean" else 0)
    if n * x.most * 2.0**x.bits > LIMIT and b.exact:
        raise Unfit
    most = n * x.most if name == "sum" else x.most
    where = b.rng.choice([i, i - len(x.shape)])
    b.add(f"{{0}}.{name}({where}{', keepdim=True' if keep else ''})", (x,), without(x, i, keep), most=most, bits=bits)


def signs(b: Body) -> None:
    x = b.pick()
    i = axis_of(b, x)
    b.add(f"{{0}}.sign().prod({i})", (x,), without(x, i))


def count(b: Body) -> None:
    x = b.pick(kind="bool")
    i = axis_of(b, x)
    name = b.rng.choice(["sum({}, dtype=torch.int32).float()", "any({}).float()", "all({}).float()"])
    b.add("{0}." + name.format(i), (x,), without(x, i), most=float(x.shape[i]))


def order(b: Body) -> None:
    x = b.pick()
    i = axis_of(b, x, least=2)
    n = int(x.shape[i])
    k = b.rng.randint(1, n)
    form, shape = b.rng.choice([
        (f"{{0}}.sort({i}).values", x.shape),
        (f"{{0}}.sort({i}, descending=True).values", x.shape),
        (f"{{0}}.topk({k}, {i}).values", (*x.shape[:i], k, *x.shape[i + 1 :])),
        (f"{{0}}.topk({k}, {i}, largest=False).values", (*x.shape[:i], k, *x.shape[i + 1 :])),
        (f"{{0}}.kthvalue({k}, {i}).values", without(x, i)),
        (f"{{0}}.median({i}).values", without(x, i)),
        (f"{{0}}.cummax({i}).values", x.shape),
    ])  # fmt: skip
    b.add(form, (x,), shape, most=x.most, bits=x.bits)


def places(b: Body) -> None:
    x = b.pick()
    i = axis_of(b, x, least=2)
    n = float(x.shape[i])
    name = b.rng.choice([f"argmax({i})", f"argmin({i})", f"argsort({i})", f"topk(2, {i}).indices"])
    shape = {"argm": without(x, i), "args": x.shape}.get(name[:4], (*x.shape[:i], 2, *x.shape[i + 1 :]))
    b.add(f"{{0}}.{name}.float()", (x,), shape, most=n)


def looked_up(b: Body) -> None:
    """Elements of an axis at places that the row's numbers tell."""
    x = b.pick(lambda v: len(v.shape) > 1)
    i = axis_of(b, x, least=2)
    n = int(x.shape[i])
    y = b.pick(lambda v: v.pages is None and len(v.shape) == 1 and 1 < int(v.shape[0]) <= n)
    k = b.rng.randint(1, min(4, int(y.shape[0])))
    index = f"{{1}}.topk({k}).indices"
    b.add(at(x, i, index), (x, y), (*x.shape[:i], k, *x.shape[i + 1 :]), most=x.most, bits=x.bits)


def taken(b: Body) -> None:
    """Elements of an axis, each page's own."""
    x = b.pick()
    i = axis_of(b, x, least=2)
    y = b.pick(lambda v: v.shape == x.shape)
    form = f"{{0}}.gather({i}, {{1}}.argmax({i}, keepdim=True))"
    b.add(form, (x, y), without(x, i, keep=True), most=x.most, bits=x.bits)


def cut(b: Body) -> None:
    """Slices with steps, constant indices, orders turned round."""
    x = b.pick()
    i = axis_of(b, x, least=2)
    n = int(x.shape[i])
    start, step = b.rng.randint(0, n - 1), b.rng.randint(1, 3)
    stop = b.rng.randint(start + 1, n)
    listed = [b.rng.randrange(n) for _ in range(b.rng.randint(1, min(n, 6)))]
    form, m = b.rng.choice([
        (at(x, i, f"{start}:{stop}:{step}"), len(range(start, stop, step))),
        (at(x, i, f"{start}:{stop}"), stop - start),
        (at(x, i, str(listed)), len(listed)),
        (f"{{0}}.index_select({i}, torch.tensor({listed}))", len(listed)),
        (f"{{0}}.flip({i})", n),
        (f"{{0}}.roll({step}, {i})", n),
        (at(x, i, str(start)), 0),
    ])  # fmt: skip
    b.add(form, (x,), (*x.shape[:i], *((m,) if m else ()), *x.shape[i + 1 :]), most=x.most, bits=x.bits)


def shape(b: Body) -> None:
    x = b.pick(lambda v: bool(v.shape))
    known = static(x)
    kind = b.rng.choice(["swap", "new", "split", "merge", "T"])
    if kind == "new":
        i = b.rng.randint(1 if x.axis == 0 else 0, len(x.shape))
        b.add(f"{{0}}.unsqueeze({i})", (x,), (*x.shape[:i], 1, *x.shape[i:]), most=x.most, bits=x.bits)
    elif kind == "split":
        i = axis_of(b, x, least=4)
        if (n := int(x.shape[i])) % 2:
            raise Unfit
        m = b.rng.choice([2, n // 2])
        b.add(f"{{0}}.unflatten({i}, ({n // m}, {m}))", (x,), (*x.shape[:i], n // m, m, *x.shape[i + 1 :]),
              most=x.most, bits=x.bits)  # fmt: skip
    elif kind == "merge" and len(known) > 1 and known[-2] + 1 == known[-1]:
        i = known[-2]
        n = int(x.shape[i]) * int(x.shape[i + 1])
        form = f"{{0}}.flatten({i}, {i + 1})"
        b.add(form, (x,), (*x.shape[:i], n, *x.shape[i + 2 :]), most=x.most, bits=x.bits)
    elif kind in ("swap", "T") and len(known) > 1:
        i, j = sorted(b.rng.sample(known, 2))
        turned = list(x.shape)
        turned[i], turned[j] = turned[j], turned[i]
        b.add(f"{{0}}.transpose({i}, {j})", (x,), turned, most=x.most, bits=x.bits)
    else:
        raise Unfit


def joined(b: Body) -> None:
    x = b.pick(lambda v: bool(static(v)))
    y = b.pick(lambda v: v.shape == x.shape)
    i = axis_of(b, x)
    both = {"most": max(x.most, y.most), "bits": max(x.bits, y.bits)}
    if b.rng.random() < 0.5:
        b.add(f"torch.cat([{{0}}, {{1}}], {i})", (x, y), (*x.shape[:i], 2 * int(x.shape[i]), *x.shape[i + 1 :]), **both)
    else:
        end = len(x.shape)
        b.add("torch.stack([{0}, {1}], -1)", (x, y), (*x.shape[:end], 2), **both)


def contract(b: Body) -> None:
    """A sum of products over an axis that both have; pages come first where there are any."""
    x = b.pick(lambda v: bool(static(v)))
    y = b.pick(lambda v: any(v.shape[j] in x.shape for j in static(v)) and (v.pages is None or v.pages == x.pages))
    letters: dict[Dim, str] = {}
    names = iter("abcdefgh")
    terms = []
    for v in (x, y):
        term = ""
        for d in v.shape:
            known = letters.get(d)
            if known is None or known in term:
                known = next(names)
                letters.setdefault(d, known)
            term += known
        terms.append(term)
    both = [c for c in terms[0] if c in terms[1]]
    sizes = {c: d for v, t in zip((x, y), terms, strict=True) for c, d in zip(t, v.shape, strict=True)}
    summed = [c for c in both if isinstance(sizes[c], int)]
    if not summed:
        raise Unfit
    gone = [b.rng.choice(summed)]
    out = [c for c in dict.fromkeys(terms[0] + terms[1]) if c not in gone]
    out.sort(key=lambda c: not isinstance(sizes[c], str))
    n = int(sizes[gone[0]])
    form = f"torch.einsum('{terms[0]},{terms[1]}->{''.join(out)}', {{0}}, {{1}})"
    b.add(form, (x, y), [sizes[c] for c in out], most=n * x.most * y.most, bits=x.bits + y.bits)


ELEMENTWISE = [add, add, multiply, extreme, where, unary, unary, narrow, number, logic, masked, compare, integers]
ELEMENTWISE += [divided, divided, settled, settled]
KNOWN = [reduce, reduce, count, signs, order, places, looked_up, taken, cut, cut, shape, shape, joined]
KNOWN += [contract, contract]
