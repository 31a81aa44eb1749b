"""Productions over the page axis: statistics of a row, running sums, neighbours and windows."""

from __future__ import annotations

from tests.generated.values import Body, Unfit

MOST_PAGES = 512
"""More than any row of the tests has."""


def over_pages(b: Body) -> None:
    """A number of the row from those of its pages."""
    x = b.pick(lambda v: v.axis == 0 and v.numel <= 32)
    name = b.rng.choice(["amax", "amin", "sum"])
    most = x.most * (MOST_PAGES if name == "sum" else 1)
    b.add(f"{{0}}.{name}(0)", (x,), x.shape[1:], most=most, bits=x.bits)


def scan(b: Body) -> None:
    x = b.pick(lambda v: v.axis == 0 and v.numel <= 16)
    if b.rng.random() < 0.5:
        b.add("{0}.cumsum(0)", (x,), x.shape, most=MOST_PAGES * x.most, bits=x.bits)
    else:
        b.add("{0}.cummax(0).values", (x,), x.shape, most=x.most, bits=x.bits)


def shift(b: Body) -> None:
    """Pages beside a page."""
    x = b.pick(lambda v: v.axis == 0 and v.numel <= 16)
    n = b.rng.choice([1, 1, 2, 5])
    zeros = "0, 0, " * (len(x.shape) - 1)
    value = b.rng.choice(["", ", value=3.0"])
    form = b.rng.choice([
        f"F.pad({{0}}, ({zeros}{n}, 0){value})[:-{n}]", f"F.pad({{0}}, ({zeros}0, {n}){value})[{n}:]",
        f"{{0}}.roll({n}, 0)", f"{{0}}.roll(-{n}, 0)",
    ])  # fmt: skip
    b.add(form, (x,), x.shape, most=max(x.most, 3.0), bits=x.bits)


def window(b: Body) -> None:
    x = b.pick(lambda v: v.axis == 0 and len(v.shape) <= 2 and v.numel <= 16)
    one = len(x.shape) == 1
    t, back = ("{0}[None]", "[0]") if one else ("{0}.T", ".T")
    kind = b.rng.choice(["unfold", "pool", "conv", "causal"])
    if kind == "unfold":
        b.add(f"F.pad({t}, (1, 1)).unfold(-1, 3, 1){back if one else '.transpose(0, 1)'}", (x,), (*x.shape, 3),
              most=x.most, bits=x.bits)  # fmt: skip
    elif kind == "pool":
        b.add(f"F.max_pool1d({t}, 3, 1, 1){back}", (x,), x.shape, most=x.most, bits=x.bits)
    elif one:
        around, padding = (f"F.pad({t}, (2, 0))", "") if kind == "causal" else (t, ", padding=1")
        form = f"F.conv1d({around}, torch.tensor([[[1.0, 2.0, -1.0]]]){padding})[0]"
        b.add(form, (x,), x.shape, most=4 * x.most, bits=x.bits)
    else:
        raise Unfit


PAGES = [over_pages, scan, shift, shift, window]
