"""Each mistake gives one error: its code, the flow's own file and line, a caret under the culprit."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import vortex
from vortex.errors import VortexError, VortexWarning
from vortex.flow import flow, oracle
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace

SPEC = vortex.Spec(page_size=16, head_dim=8, group=4)
Write = Callable[[str], Path]

FLOW = """
import math
import numpy as np
import torch
import torch.nn.functional as F
import vortex

BIG = torch.zeros(1024, 257)
REAL = torch.ones(1, 4)
REAL8 = torch.ones(8)
KEPT = []
COUNT = 0

@vortex.register("{name}")
class Broken(vortex.vFlow):
    def create_cache(self, spec):
        {create}

    def forward_cache(self, page):
        {cache}

    def forward_indexer(self, q, cache):
        score = cache.a.sum(-1)
        {index}
"""
CREATE = 'return {"a": vortex.Field(spec.head_dim)}'
CACHE = 'return {"a": page.k.mean(0)}'
INDEX = "return vortex.topk(score)"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setattr(flow, "_REGISTRY", {})

    def run(text: str) -> Path:
        path = tmp_path / "broken.py"
        path.write_text(text)
        return path

    return run


def flow_text(create: str = CREATE, cache: str = CACHE, index: str = INDEX) -> str:
    create, cache, index = (textwrap.indent(t, " " * 8).lstrip() for t in (create, cache, index))
    return FLOW.format(name="broken", create=create, cache=cache, index=index)


def refused(path: Path) -> VortexError:
    with pytest.raises(VortexError) as caught:
        trace(find_flow(str(path)), SPEC)
    return caught.value


def check(error: VortexError, code: str, path: Path, culprit: str, *said: str) -> None:
    """The error has the code, points at ``culprit`` in the file, and its text says what it should."""
    text = error.render()
    assert error.code == code, text
    assert error.loc is not None, text
    assert error.loc.file == str(path)
    line = path.read_text().splitlines()[error.loc.line - 1]
    assert line[error.loc.col - 1 : error.loc.end - 1] == culprit, text
    caret = next(row for row in text.splitlines() if set(row.strip(" |")) == {"^"})
    assert caret.count("^") == max(1, len(culprit))
    for part in said:
        assert part in text


IN_INDEX = [
    ("VX1001", "x = torch.argsort(score)", "torch.argsort(score)", "vortex.topk(score) orders pages"),
    ("VX1001", "return vortex.topk(score.softmaxx(0))", "score.softmaxx", "did you mean 'softmax'?"),
    ("VX1001", "x = cache.a[score > 0]", "cache.a[score > 0]", "indexing with a traced mask", "torch.where(mask"),
    ("VX1001", "x = score.median(0)", "score.median(0)", "vortex.topk(score) orders pages"),
    ("VX1001", "x = cache.a.argmax(0)", "cache.a.argmax(0)", "vortex.topk(score) orders pages"),
    (
        "VX1001",
        "best, at = cache.a.max(0)\nreturn vortex.topk(score + at)",
        "score + at",
        "indices of max(dim) over pages",
    ),
    ("VX1014", "x = cache.a[[0, 1]]", "cache.a[[0, 1]]", "choice of pages by index"),
    ("VX1005", "x = cache.a[:, [0, 8]]", "cache.a[:, [0, 8]]", "index 8 of axis 1", "from -8 to 7"),
    ("VX1005", "x = cache.a[:, q[0].int()]", "cache.a[:, q[0].int()]", "indices between", "clamp(0, 7)"),
    ("VX1005", "x = cache.a[:, [0.5]]", "cache.a[:, [0.5]]", "indices are torch.float32"),
    ("VX1005", "x = cache.a[:, [True] * 3]", "cache.a[:, [True] * 3]", "mask of shape [3]", "shape [8]"),
    ("VX1005", "x = q[[0, 1], [0, 1, 2]]", "q[[0, 1], [0, 1, 2]]", "index lists of shapes [2] and [3]"),
    ("VX1005", "x = q.topk(9)", "q.topk(9)", "k=9 of an axis of 8"),
    ("VX1005", "x = (q > 0).argmax(-1)", "(q > 0).argmax(-1)", "mask.int()"),
    ("VX1005", "x = q.expand(200, 4, 8).flatten().sort()", "q.expand(200, 4, 8).flatten().sort()", "at most 1024"),
    (
        "VX1005",
        "x = q.gather(1, torch.tensor([[0], [9]]))",
        "q.gather(1, torch.tensor([[0], [9]]))",
        "indices between 0 and 9",
    ),
    ("VX1005", "x = score.unfold(0, 3, 1)", "score.unfold(0, 3, 1)", "pad first: F.pad(x, (1, 1)).unfold(-1, 3, 1)"),
    ("VX1005", "x = F.pad(score, (1, 1)).unfold(0, 2, 1)", "F.pad(score, (1, 1)).unfold(0, 2, 1)", "windows of 3"),
    ("VX1005", "x = F.max_pool1d(score[None], 3)", "F.max_pool1d(score[None], 3)", "stride=1 and padding=1"),
    ("VX1005", "x = score[1:] - score[:-1]", "score[1:] - score[:-1]", "S - 1 pages", "F.pad(x, (0, 1))[1:]"),
    ("VX1005", "x = torch.relu(F.pad(score, (1, 0)))", "torch.relu(F.pad(score, (1, 0)))", "S + 1 pages", "[..., :-1]"),
    ("VX1005", "x = F.pad(score[2:], (0, 2))", "score[2:]", "a row may have fewer", "F.pad(x, (0, 2))[2:]"),
    ("VX1005", "x = score[:4]", "score[:4]", "vortex.page_index() < n"),
    ("VX1005", "x = score[-4:]", "score[-4:]", "vortex.page_index() < n"),
    ("VX1005", "x = score[::2]", "score[::2]", "step 2", "torch.where"),
    ("VX1005", "x = torch.diff(score)", "torch.diff(score)", "x - x.roll(1, dim)"),
    (
        "VX1005",
        "x = F.pad(q.T @ q * cache.a.sum(-1)[:, None, None], (0, 0, 0, 0, 1, 1), mode='circular')",
        "F.pad(q.T @ q * cache.a.sum(-1)[:, None, None], (0, 0, 0, 0, 1, 1), mode='circular')",
        "first one or two",
    ),
    ("VX1013", "x = torch.vmap(torch.sum)(cache.a)", "torch.vmap(torch.sum)(cache.a)", "broadcast over the page axis"),
    ("VX1005", "x = score.to(float)", "score.to(float)", "float64", "x.float()"),
    ("VX1013", "x = score.type(torch.int32)", "score.type(torch.int32)", "x.to(dtype)"),
    ("VX1013", "x = torch.Tensor.sum(score, 0)", "torch.Tensor.sum(score, 0)", "call it as a method"),
    ("VX1005", "x = q.flip(size=(1,))", "q.flip(size=(1,))", "as torch takes them"),
    ("VX1013", "x = np.exp(score)", "np.exp(score)", "call torch's, such as torch.exp(x)"),
    ("VX1013", "x = np.arange(8) * cache.a", "np.arange(8) * cache.a", "unsupported operand"),
    ("VX1001", "x = vortex.page_index() << 1", "vortex.page_index() << 1", "x * 2**n"),
    ("VX1005", "x = vortex.page_index() & 1", "vortex.page_index() & 1", "x % 2**n is the last n bits"),
    ("VX1005", "x = vortex.page_index() // 0", "vortex.page_index() // 0", "integers divided by 0"),
    ("VX1005", "x = vortex.page_index() % torch.tensor(0)", "vortex.page_index() % torch.tensor(0)", "divided by 0"),
    ("VX1005", "x = vortex.layer() * torch.tensor(1 << 30)", "vortex.layer() * torch.tensor(1 << 30)", "torch.int64"),
    ("VX1005", "x = torch.where(score > 0, score, 1e39)", "torch.where(score > 0, score, 1e39)", "math.inf"),
    ("VX1005", "x = score * 10**40", "score * 10**40", "more than 64 bits"),
    ("VX1005", "x = q[4:].amax(0)", "q[4:].amax(0)", "no elements"),
    ("VX1005", "x = q.logsumexp(())", "q.logsumexp(())", "no axes"),
    ("VX1005", "x = score.sum().softmax(1)", "score.sum().softmax(1)", "axis 1 of a tensor of rank 0"),
    ("VX1005", "x = score[:, None] + score", "score[:, None] + score", "reduce the pages of one operand"),
    (
        "VX1005",
        "x = cache.a[:, cache.a.argmax(1)]",
        "cache.a[:, cache.a.argmax(1)]",
        "torch.take_along_dim(x, index[:, None], 1)",
    ),
    (
        "VX1005",
        "x = q.repeat_interleave(torch.tensor([1, 2, 0, 1]), 0)",
        "q.repeat_interleave(torch.tensor([1, 2, 0, 1]), 0)",
        "an integer known while tracing",
    ),
    ("VX1001", "x = torch.rand_like(score)", "torch.rand_like(score)", "rand_like"),
    ("VX1002", "if score.sum() > 0:\n    pass", "score.sum() > 0", "traced bool[]", "torch.where"),
    ("VX1002", "while score.amax(0):\n    pass", "while score.amax(0):", "torch.where"),
    ("VX1002", "if vortex.layer() == 3:\n    pass", "vortex.layer() == 3", "bool[]"),
    ("VX1002", "x = score.sum() > 0 and score.sum() < 9", "score.sum() > 0 and score.sum() < 9", "branches"),
    ("VX1003", "x = score.sum().item()", "score.sum().item()", ".item()"),
    ("VX1003", "x = q.tolist()", "q.tolist()", ".tolist()"),
    ("VX1003", "x = float(score.sum())", "float(score.sum())", "float()"),
    ("VX1003", "x = int(vortex.layer())", "int(vortex.layer())", "int()"),
    ("VX1014", "x = [r for r in score]", "[r for r in score]", "iterating over pages", "e.g. cache.mean @ q[0]"),
    ("VX1003", "x = np.asarray(score)", "np.asarray(score)", "numpy"),
    ("VX1003", "x = range(vortex.layer())", "range(vortex.layer())", "index"),
    ("VX1003", "x = math.sqrt(q.sum())", "math.sqrt(q.sum())", "float()"),
    ("VX1004", "score.add_(1)", "score.add_", "add_"),
    ("VX1004", "score[0] = 1", "score[0]", "x[...] = y"),
    ("VX1004", "REAL8.add_(score.sum())", "REAL8.add_(score.sum())", "add_"),
    ("VX1004", "REAL8[0] = score.sum()", "REAL8[0]", "__setitem__"),
    ("VX1004", "x = F.relu(score, inplace=True)", "F.relu(score, inplace=True)", "inplace=True"),
    ("VX1004", "x = torch.add(score, 1, out=REAL8)", "torch.add(score, 1, out=REAL8)", "out="),
    ("VX1005", "x = cache.a @ q", "cache.a @ q", "inner sizes 8 and 4 differ"),
    ("VX1005", "x = cache.a @ cache.a.T", "cache.a @ cache.a.T", "two page axes"),
    ("VX1005", "x = cache.a + q[:, :3]", "cache.a + q[:, :3]", "do not broadcast"),
    ("VX1005", "x = torch.mm(cache.a, q[0])", "torch.mm(cache.a, q[0])", "rank 2 and 2"),
    ("VX1005", "x = score.sum(1)", "score.sum(1)", "axis 1 of a tensor of rank 1"),
    ("VX1005", "x = torch.einsum('sd,gd->sgx', cache.a, q)", "torch.einsum('sd,gd->sgx', cache.a, q)", "sgx"),
    ("VX1005", "x = torch.einsum('...d...,gd', cache.a, q)", "torch.einsum('...d...,gd', cache.a, q)", "two ellipses"),
    ("VX1005", "x = torch.einsum('sd,gd->...s', cache.a, q)", "torch.einsum('sd,gd->...s', cache.a, q)", "ellipsis"),
    ("VX1005", "x = torch.einsum('...sdx,gd', cache.a, q)", "torch.einsum('...sdx,gd', cache.a, q)", "does not fit"),
    ("VX1005", "x = torch.einsum('sd,gs->g', cache.a, q)", "torch.einsum('sd,gs->g', cache.a, q)", "'s' is S and 8"),
    ("VX1005", "x = cache.a.reshape(-1, 3)", "cache.a.reshape(-1, 3)", "page axis"),
    ("VX1005", "x = cache.a.flatten()", "cache.a.flatten()", "mix the page axis"),
    ("VX1005", "x = q.reshape(5, 5)", "q.reshape(5, 5)", "does not reshape"),
    ("VX1005", "x = cache.a.sum(-1, axis=2)", "cache.a.sum(-1, axis=2)", "axis"),
    ("VX1005", "x = score.round(decimals=2)", "score.round(decimals=2)", "decimals=2"),
    ("VX1005", "x = F.gelu(score, approximate='fast')", "F.gelu(score, approximate='fast')", "approximate"),
    ("VX1005", "x = F.pad(q, (8, 1), mode='reflect')", "F.pad(q, (8, 1), mode='reflect')", "at most 7"),
    ("VX1005", "x = F.conv1d(cache.a.T, torch.ones(8, 8, 3))", "F.conv1d(cache.a.T, torch.ones(8, 8, 3))", "padding=0"),
    ("VX1005", "x = score.to('cuda')", "score.to('cuda')", "cuda"),
    ("VX1005", "x = score.double()", None, ""),
    ("VX1005", "x = score.to(torch.float64)", "score.to(torch.float64)", "float64"),
    ("VX1005", "x = q[7]", "q[7]", "index 7"),
    ("VX1005", "x = score + 'a'", None, ""),
    ("VX1005", "x = torch.where(score, score, 0.0)", "torch.where(score, score, 0.0)", "not bool", "x > 0"),
    ("VX1005", "x = score & score", "score & score", "works on bool"),
    ("VX1005", "x = q.sum(score)", "q.sum(score)", "not an integer"),
    ("VX1006", "return vortex.topk(cache.a)", "vortex.topk(cache.a)", "bf16[S, 8]", "score.amax(-1)"),
    ("VX1006", "return vortex.topk(score.sum())", "vortex.topk(score.sum())", "f32[]"),
    ("VX1006", "return vortex.topk(score[None])", "vortex.topk(score[None])", "f32[1, S]"),
    ("VX1006", "return vortex.topk(q[0])", "vortex.topk(q[0])", "[8]"),
    ("VX1006", "return vortex.topk(REAL8)", "vortex.topk(REAL8)", "a constant"),
    ("VX1006", "return vortex.topk(3)", "vortex.topk(3)", "an int"),
    ("VX1013", "return vortex.topk(score, 8)", "vortex.topk(score, 8)", "it is vortex.topk(score, *, pages=None, "),
    ("VX1013", "return vortex.topk(score, 8)", "vortex.topk(score, 8)", "given by name, such as pages=8"),
    ("VX1013", "return vortex.topp(score)", "vortex.topp(score)", "it is vortex.topp(mass, p, *, pages=None)"),
    ("VX1013", "def topk(x):\n    return x\nreturn topk(score, 8)", "topk(score, 8)", "the flow runs once on traced"),
    ("VX1091", "n = vortex.shortlist(score, pages=3)\nreturn vortex.topk(n)", "vortex.topk(n)", "x[near]"),
    ("VX1006", "return vortex.topp(cache.a, 0.9)", "vortex.topp(cache.a, 0.9)", "topp needs one number per page"),
    ("VX1070", "return vortex.topp(score, 1.5)", "vortex.topp(score, 1.5)", "p is 1.5", "0.9"),
    ("VX1070", "return vortex.topp(score, score.sum())", "vortex.topp(score, score.sum())", "a traced f32[]"),
    ("VX1070", "return vortex.topk(score, tolerance=1)", "vortex.topk(score, tolerance=1)", "tolerance is 1"),
    ("VX1070", "return vortex.topk(score, pages=0)", "vortex.topk(score, pages=0)", "pages is 0"),
    ("VX1070", "return vortex.topk(score, count=4)", "vortex.topk(score, count=4)", "count is 4", "pages=n"),
    ("VX1070", "return vortex.topk(score, count=score)", "vortex.topk(score, count=score)", "f32[S]"),
    ("VX1070", "return vortex.union(vortex.topk(score), score)", "vortex.union(vortex.topk(score), score)", "part 1"),
    ("VX1070", "return vortex.union([vortex.topk(score)])", "vortex.union([vortex.topk(score)])", "part 0", "a list,"),
    ("VX1070", "return vortex.union(*[vortex.topk(score)] * 9)", "vortex.union(*[vortex.topk(score)] * 9)", "1 to 8"),
    ("VX1071", "return vortex.topk(score, pages=score.sum())", "vortex.topk(score, pages=score.sum())", "count="),
    (
        "VX1072",
        "return vortex.topk(score), vortex.topk(score)",
        "return vortex.topk(score), vortex.topk(score)",
        "union",
    ),
    ("VX1097", "return vortex.topk(score[1:])", "vortex.topk(score[1:])", "topk needs", "S - 1 pages", "page_index()"),
    ("VX1097", "s = F.pad(score, (1, 0))\nreturn vortex.topp(s, 0.9)", "vortex.topp(s, 0.9)", "topp", "S + 1 pages"),
    ("VX1009", "x = cache.aa", "cache.aa", "did you mean 'a'?"),
    ("VX1009", "x = cache['b']", "cache['b']", "'b' is not declared"),
    ("VX1022", "x = cache.latent", "cache.latent", "cache.latent is read", "use cache.k and cache.v, [S, 16, 8]"),
    ("VX1011", "return score", "return score", "a tensor f32[S]", "vortex.topk"),
    ("VX1011", "return", "return", "None"),
    ("VX1011", "return [1, 2]", "return [1, 2]", "a list"),
    ("VX1013", "x = undefined_name", "undefined_name", "NameError", "help: define it, or import it"),
    ("VX1013", "x = [][3]", "[][3]", "IndexError", "correct the flow there"),
    ("VX1013", "raise ValueError('too small')", "raise ValueError('too small')", "too small"),
    ("VX1014", "x = torch.zeros(score.shape[0], 4)", "torch.zeros(score.shape[0], 4)", "S"),
    ("VX1014", "x = REAL.expand(score.shape[0], 4)", "REAL.expand(score.shape[0], 4)", "S"),
    ("VX1014", "x = torch.arange(score.shape[0])", "torch.arange(score.shape[0])", "arange"),
    ("VX1014", "for i in range(score.shape[0]):\n    pass", "range(score.shape[0])", "number of pages"),
    ("VX1014", "if score.shape[0] > 3:\n    pass", "score.shape[0] > 3", "number of pages"),
    ("VX1014", "if cache.a.shape[0] == 1:\n    pass", "cache.a.shape[0] == 1", "comparing S"),
    ("VX1014", "x = math.log(score.size(0))", "math.log(score.size(0))", "number of pages"),
    ("VX1014", "x = len(cache.a)", "len(cache.a)", "len()"),
    ("VX1014", "x = score[0]", "score[0]", "a single page"),
    ("VX1005", "x = cache.a[1:].sum(0)", "cache.a[1:].sum", "S - 1 pages"),
    ("VX1014", "x = cache.a.flip(0)", "cache.a.flip(0)", "reversing"),
    ("VX1014", "x = torch.cat([cache.a, cache.a])", "torch.cat([cache.a, cache.a])", "page axis"),
    ("VX1014", "x = q.reshape(score.shape[0] * 2, 4)", "q.reshape(score.shape[0] * 2, 4)", "computed from S"),
    ("VX1014", "x = cache.a.repeat(2, 1)", "cache.a.repeat(2, 1)", "page axis"),
    ("VX1014", "x = cache.a.split(2)", "cache.a.split(2)", "page axis"),
    ("VX1004", "x = torch.zeros(())\nx += score.sum()", "x += score.sum()", "x = x + y"),
    ("VX1005", "x = vortex.page_index()\nx /= 2", "x /= 2", "i32 does not hold f32"),
    ("VX1005", "x = q.mean(0)\nx += cache.a", "x += cache.a", "[S, 8]"),
    ("VX1005", "x = q.sum(0, dtype=torch.float16)", "q.sum(0, dtype=torch.float16)", "x.to(torch.float16)"),
    ("VX1005", "x = score.softmax(0, dtype=torch.bfloat16)", "score.softmax(0, dtype=torch.bfloat16)", "x.to("),
    ("VX1005", "x = q.int() ** -1", "q.int() ** -1", "x.float() ** n"),
    ("VX1005", "x = q.sum().cumsum(0)", "q.sum().cumsum(0)", "has axes"),
    ("VX1005", "x = q.argsort(0, False, stable=True)", "q.argsort(0, False, stable=True)", "as torch takes them"),
    (
        "VX1005",
        "near = vortex.shortlist(score, pages=3)\nx = cache.a[near, [3]]",
        "cache.a[near, [3]]",
        "x[near][:, i]",
    ),
    ("VX1026", "x = cache.a[:, :4]\nx += 1", "x += 1", "shares"),
    ("VX1026", "x = q.T\nx *= 2", "x *= 2", "x.clone()"),
    ("VX1026", "x, y = q.split(2)\nx -= y", "x -= y", "shares"),
    ("VX1026", "x = q[0].expand(3, 8)\nx += 1", "x += 1", "expand"),
    ("VX1026", "x = (q * 2).unfold(-1, 4, 2)\nx += 1", "x += 1", "unfold"),
    ("VX1026", "import copy\nx = q * 2\ny = copy.copy(x)\nx += 1", "x += 1", "shares"),
    ("VX1003", "x = torch.as_tensor(q.sum())", "torch.as_tensor(q.sum())", "torch.tensor()"),
    ("VX1026", "x = q * 2\ny = x.unfold(-1, 4, 2)\nx += 1", "x += 1", "shares"),
    ("VX1026", "x = q * 2\ny = x[q[:, 0].argmax()]\nx += 1", "x += 1", "shares"),
    ("VX1026", "x = q * 2\ny = x[..., q[0].argmax()]\ny += 1", "y += 1", "shares"),
    ("VX1023", "cache.a = cache.a * 2", "cache.a", "forward_indexer sets cache.a"),
    ("VX1023", "cache['a'] = score", "cache['a']", "fields are written by forward_cache"),
    ("VX1023", "self.previous = score", "self.previous", "forward_indexer sets self.previous"),
    ("VX1023", "setattr(self, 'previous', score)", "setattr(self, 'previous', score)", "self.previous"),
    (
        "VX1023",
        "KEPT.append(score)\nif len(KEPT) > 1:\n    score = score - KEPT[-2]\nreturn vortex.topk(score)",
        "score - KEPT[-2]",
        "earlier run",
    ),
    (
        "VX1023",
        "global COUNT\nCOUNT += 1\nif COUNT > 100:\n    score = -score\nreturn vortex.topk(score)",
        "COUNT",
        "a call changes COUNT",
    ),
    ("VX1024", "return vortex.topk(score + torch.rand(()))", "score + torch.rand(())", "another constant"),
    ("VX1024", "REAL8.mul_(2)\nreturn vortex.topk((cache.a * REAL8).sum(-1))", "cache.a * REAL8", "keep nothing"),
    ("VX1003", "try:\n    x = score.sum().item()\nexcept Exception:\n    x = 1", "score.sum().item()", ".item()"),
    ("VX1001", "with torch.autocast('cpu'):\n    x = cache.a @ q[0]", "q[0]", "torch.autocast"),
    ("VX1015", "x = score + BIG.sum(0)[:1] + q[0, 0] * BIG", "q[0, 0] * BIG", "1052672 bytes", "1048576"),
]


@pytest.mark.parametrize(("code", "index", "culprit", "said"), [(c, i, w, s) for c, i, w, *s in IN_INDEX])
def test_mistakes_in_forward_indexer(write: Write, code: str, index: str, culprit: str | None, said: list[str]) -> None:
    path = write(flow_text(index=index))
    error = refused(path)
    if culprit is None:
        assert error.code.startswith("VX10")
        assert error.loc is not None
        assert error.loc.file == str(path)
    else:
        check(error, code, path, culprit, *said)


WITH_SHORTLIST = [
    ("VX1005", "x = cache.a + cache.a[near]", "cache.a + cache.a[near]", "all candidates meet", "x[near]"),
    ("VX1005", "x = torch.cat([cache.a, cache.a[near]], 1)", "torch.cat([cache.a, cache.a[near]], 1)", "differ"),
    ("VX1005", "x = q[near]", "q[near]", "has no page axis"),
    ("VX1005", "x = cache.a.T[near]", "cache.a.T[near]", "axis 0", "x[:, near]"),
    ("VX1005", "x = cache.a[near][near]", "cache.a[near][near]", "pages of another shortlist"),
    ("VX1006", "x = vortex.shortlist(cache.a, pages=3)", "vortex.shortlist(cache.a, pages=3)", "shortlist needs one"),
    ("VX1090", "x = vortex.shortlist(score, pages=0)", "vortex.shortlist(score, pages=0)", "pages=0"),
    ("VX1090", "x = vortex.shortlist(score, pages=2.5)", "vortex.shortlist(score, pages=2.5)", "pages=2.5"),
    ("VX1090", "x = vortex.shortlist(score, pages=True)", "vortex.shortlist(score, pages=True)", "from 1 to 4096"),
    ("VX1090", "x = vortex.shortlist(score, pages=9999)", "vortex.shortlist(score, pages=9999)", "pages=9999"),
    ("VX1091", "x = near + 1", "near + 1", "an index and no tensor", "x[near]"),
    ("VX1091", "x = torch.maximum(score, near)", "torch.maximum(score, near)", "an index"),
    ("VX1091", "x = score * near", "score * near", "vortex.page_index()[near]"),
    ("VX1091", "x = len(near)", "len(near)", "an index"),
    ("VX1091", "x = near.float()", "near.float", "an index"),
    ("VX1011", "return near", "return near", "TracedNear"),
]


@pytest.mark.parametrize(("code", "index", "culprit", "said"), [(c, i, w, s) for c, i, w, *s in WITH_SHORTLIST])
def test_mistakes_with_a_shortlist(write: Write, code: str, index: str, culprit: str, said: list[str]) -> None:
    path = write(flow_text(index=f"near = vortex.shortlist(score, pages=3)\n{index}"))
    check(refused(path), code, path, culprit, *said)


IN_CACHE = [
    ("VX1007", "pass", "def forward_cache(self, page):", "field 'a'", "None"),
    ("VX1007", "return {}", "return {}", "field 'a'"),
    ("VX1007", "return page.k.mean(0)", "return page.k.mean(0)", "not a dict"),
    ("VX1008", 'return {"a": page.k.amax(0), "a": page.k.amin(0)}', '"a"', "written twice"),
    ("VX1009", 'return {"a": page.k.mean(0), "aa": page.k.mean(0)}', '"aa"', "did you mean 'a'?"),
    ("VX1012", 'return {"a": page.k.mean(1)}', '"a"', "declared [8]", "returns [16]"),
    ("VX1012", 'return {"a": 1.0}', '"a"', "returns []"),
    ("VX1002", "if page.k.sum() > 0:\n    pass", "page.k.sum() > 0", "bool[]"),
    ("VX1013", "return {'a': page['k'].mean(0)}", "page['k']", "its tensors are page.k and page.v"),
    ("VX1013", "return {'a': page.q.mean(0)}", "page.q", "a page has k and v"),
    ("VX1005", "return {'a': page.k @ page.k}", "page.k @ page.k", "inner sizes"),
    ("VX1023", "self.energy = page.v.norm()\nreturn {'a': page.k.mean(0)}", "self.energy", "is a field"),
    ("VX1023", "page.k = page.k * 2\nreturn {'a': page.k.mean(0)}", "page.k", "forward_cache sets page.k"),
    ("VX1013", "return {'a': vortex.page_index().sum() * page.k[0]}", "vortex.page_index()", "ask in forward_indexer"),
    ("VX1013", "return {'a': None}", "'a'", "returns None for field 'a'"),
    ("VX1013", "return {'a': (page.k[0],)}", "'a'", "a tuple"),
    ("VX1005", "return {'a': REAL8 * 1j}", "'a'", "complex64"),
]


@pytest.mark.parametrize(("code", "cache", "culprit", "said"), [(c, i, w, s) for c, i, w, *s in IN_CACHE])
def test_mistakes_in_forward_cache(write: Write, code: str, cache: str, culprit: str, said: list[str]) -> None:
    path = write(flow_text(cache=cache))
    check(refused(path), code, path, culprit, *said)


IN_CREATE = [
    ('return {"a": vortex.Field(0)}', "vortex.Field(0)", "size 0"),
    ('return {"a": vortex.Field(8.0)}', "vortex.Field(8.0)", "size 8.0"),
    ('return {"a": vortex.Field(8, dtype="int3")}', 'vortex.Field(8, dtype="int3")', "int3"),
    ('return {"a": vortex.Field(8, state="slot")}', 'vortex.Field(8, state="slot")', "no state='slot'"),
    ('return {"a": vortex.Field(8, state=1)}', "vortex.Field(8, state=1)", "no state=1"),
    ('return {"a": vortex.Field(8, init=1)}', "vortex.Field(8, init=1)", "init=1 without state"),
    (
        'return {"a": vortex.Field(8, state="page", init="x")}',
        'vortex.Field(8, state="page", init="x")',
        "begin as 'x'",
    ),
    (
        'return {"a": vortex.Field(8, state="page", init=float("nan"))}',
        'vortex.Field(8, state="page", init=float("nan"))',
        "begin as nan",
    ),
    (
        'return {"a": vortex.Field(8, state="page", init=REAL8)}',
        'vortex.Field(8, state="page", init=REAL8)',
        "one number",
    ),
    ('return {"a": 8}', '"a"', "not a vortex.Field"),
    ('return {"k": vortex.Field(8)}', '"k"', "the name 'k' is taken"),
    ("return vortex.Field(8)", "return vortex.Field(8)", "not a dict"),
]


@pytest.mark.parametrize(("create", "culprit", "said"), IN_CREATE)
def test_mistakes_in_create_cache(write: Write, create: str, culprit: str, said: str) -> None:
    path = write(flow_text(create=create))
    check(refused(path), "VX1016", path, culprit, said)


@pytest.mark.parametrize(
    ("field", "culprit", "said"),
    [
        ("vortex.Field(spec.headdim)", "spec.headdim", "did you mean 'head_dim'?"),
        ("vortex.Field(shape=3)", "vortex.Field(shape=3)", "it is vortex.Field(*shape, dtype=None"),
    ],
)
def test_calls_in_create_cache_that_python_refuses(write: Write, field: str, culprit: str, said: str) -> None:
    path = write(flow_text(create=f'return {{"a": {field}}}'))
    check(refused(path), "VX1013", path, culprit, said)


SIGNATURES = [
    ("def create_cache(self, spec):", "def create_cache(self, block_size, head_dim):", "create_cache(self, spec)"),
    ("def create_cache(self, spec):", "@staticmethod\n    def create_cache(self, spec):", "create_cache(self, spec)"),
    ("def forward_cache(self, page):", "def forward_cache(self):", "forward_cache(self, page)"),
    ("def forward_indexer(self, q, cache):", "def forward_indexer(q, cache):", "forward_indexer(self, q, cache)"),
    ("def forward_indexer(self, q, cache):", "async def forward_indexer(self, q, cache):", "a coroutine"),
    ("return vortex.topk(score)", "yield vortex.topk(score)", "a generator"),
    ("def forward_indexer(self, q, cache):", "def forward_indexer(self, q, cache, *, layer):", "'layer'"),
]


@pytest.mark.parametrize(("old", "new", "said"), SIGNATURES)
@pytest.mark.parametrize("eager", [False, True])
def test_signatures(write: Write, old: str, new: str, said: str, eager: bool) -> None:
    path = write(flow_text().replace(old, new))
    page = torch.ones(1, 16, 8)
    run = (lambda cls: oracle.summaries(cls, SPEC, page, page)) if eager else (lambda cls: trace(cls, SPEC))
    with pytest.raises(VortexError, match="VX1025") as caught:
        run(find_flow(str(path)))
    assert caught.value.loc is not None
    assert path.read_text().splitlines()[caught.value.loc.line - 1].strip().startswith(("def ", "async def "))
    assert said in str(caught.value)


def test_random_numbers_need_a_seed(write: Write) -> None:
    create = "self.w = torch.randn(8)\n" + CREATE
    path = write(flow_text(create=create, index="return vortex.topk(cache.a @ self.w)"))
    check(refused(path), "VX1024", path, "cache.a @ self.w", "manual_seed(0)")
    for seeded in (
        "torch.manual_seed(0)\n" + create,
        create.replace("(8)", "(8, generator=torch.Generator().manual_seed(0))", 1),
    ):
        before = torch.get_rng_state()
        trace(find_flow(str(write(flow_text(create=seeded, index="return vortex.topk(cache.a @ self.w)")))), SPEC)
        assert torch.equal(before, torch.get_rng_state())


def test_a_mistake_in_a_called_function_is_shown_there(write: Write) -> None:
    path = write(flow_text(index="return vortex.topk(deeper(score))") + "\ndef deeper(x):\n    return x.nonzeroes()\n")
    check(refused(path), "VX1001", path, "x.nonzeroes")


def test_the_constructor_is_part_of_the_flow(write: Write) -> None:
    start = "    def create_cache"
    text = flow_text().replace(start, f"    def __init__(self):\n        self.w = 1 / 0\n\n{start}")
    path = write(text)
    check(refused(path), "VX1013", path, "1 / 0", "ZeroDivisionError")


def test_names_are_taken_once(write: Write, tmp_path: Path) -> None:
    first = write(flow_text())
    find_flow(str(first))
    find_flow(str(first))
    second = tmp_path / "other.py"
    second.write_text(flow_text())
    with pytest.raises(VortexError, match=r"VX1017.*'broken' is registered already") as caught:
        find_flow(str(second))
    assert f"{first}:14" in str(caught.value)
    check(caught.value, "VX1017", second, 'vortex.register("broken")')


def test_a_file_is_loaded_anew_when_it_changed(write: Write) -> None:
    path = write(flow_text())
    before = trace(find_flow(str(path)), SPEC)
    path.write_text("\n\n" + flow_text(index="return vortex.topk(-score)"))
    after = trace(find_flow(f"{path}:broken"), SPEC)
    assert [o.name for o in before.functions["index"].ops] != [o.name for o in after.functions["index"].ops]
    assert after.functions["index"].ops[0].loc.line == before.functions["index"].ops[0].loc.line + 2


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("questt", "VX1018", "did you mean 'quest'?"),
        ("nowhere.py", "VX7002", "nowhere.py"),
        ("nowhere.py:x", "VX7002", "nowhere.py"),
        ("{file}:brokenn", "VX1018", "did you mean 'broken'?"),
        ("{bare}", "VX1018", '@vortex.register("Broken") above it'),
        ("{bare}:Broken", "VX1018", "class Broken is not registered"),
        ("{bare}:other", "VX1018", "no flow named 'other'"),
    ],
)
def test_flows_that_are_not_there(write: Write, tmp_path: Path, text: str, code: str, said: str) -> None:
    path, bare = write(flow_text()), tmp_path / "bare.py"
    bare.write_text(re.sub("@vortex.register.*", "", flow_text()))
    with pytest.raises(VortexError) as caught:
        find_flow(text.format(file=path, bare=bare))
    assert caught.value.code == code
    assert said in str(caught.value)


def test_several_flows_in_a_file_need_a_name(write: Write) -> None:
    again = flow_text().replace('"broken"', '"broken_b"').replace("import torch\n", "")
    path = write(flow_text() + again)
    with pytest.raises(VortexError, match=r"VX1018.*has 2 flows, broken, broken_b: say which"):
        find_flow(str(path))
    assert find_flow(f"{path}:broken_b").flow_name == "broken_b"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("import vortex\nvortex.register('x')(int)\n", "VX1019", "does not derive"),
        ("import vortex\n@vortex.register('x')\nclass A(vortex.vFlow):\n    pass\n", "VX1019", "no create_cache"),
        ("import vortex\n@vortex.register('a b')\nclass A(vortex.vFlow):\n    pass\n", "VX1019", "cannot be named"),
        ("import vortex\nx = (1 +\n", "VX1013", "SyntaxError"),
        ("import vortex\nx = 1 / 0\n", "VX1013", "ZeroDivisionError"),
        ("import sys\nsys.exit()\n", "VX1013", "SystemExit: no message"),
        ("x = 1\n", "VX1018", "registers no flow"),
    ],
)
def test_files_that_hold_no_flow(write: Write, text: str, code: str, said: str) -> None:
    with pytest.raises(VortexError) as caught:
        find_flow(str(write(text)))
    assert caught.value.code == code
    assert said in str(caught.value)


def test_an_instance_without_methods() -> None:
    class Nothing(vortex.vFlow):
        pass

    with pytest.raises(VortexError, match="VX1019"):
        trace(Nothing, SPEC)


def test_layer_outside_a_step() -> None:
    with pytest.raises(VortexError, match="VX1013"):
        vortex.layer()


WARNINGS = [
    ("VX1073", "return vortex.topp(cache.a @ q[0], 0.9)", "vortex.topp(cache.a @ q[0], 0.9)", "may be negative"),
    ("VX1074", "return vortex.topk(score.softmax(0))", "score.softmax(0)", "topp"),
    ("VX1074", "return vortex.topk(score - score.mean(0))", "score - score.mean(0)", "sub"),
    ("VX1074", "return vortex.topk((2 * score).float())", "2 * score", "mul"),
    ("VX1095", "return vortex.topk((cache.a @ q.T).softmax(0).sum(-1))", "(cache.a @ q.T).softmax(0)", "softmax"),
    ("VX1095", "return vortex.topp((cache.a @ q[0]).exp(), 0.9)", "(cache.a @ q[0]).exp()", "exp"),
    (
        "VX1096",
        "return vortex.topk(vortex.page_index()[vortex.shortlist(score, pages=4)], pages=8)",
        "vortex.topk(vortex.page_index()[vortex.shortlist(score, pages=4)], pages=8)",
        "up to 8 pages are kept, and the shortlist has 4",
    ),
]


@pytest.mark.parametrize(("code", "index", "culprit", "said"), WARNINGS)
def test_what_is_most_likely_not_meant_is_said(write: Write, code: str, index: str, culprit: str, said: str) -> None:
    path = write(flow_text(index=index))
    with pytest.warns(VortexWarning) as heard:
        trace(find_flow(str(path)), SPEC)
    mistakes = {str(w.message): w.message.mistake for w in heard if isinstance(w.message, VortexWarning)}
    assert len(mistakes) == 1, "one for each line, however often a flow is traced"
    check(*mistakes.values(), code, path, culprit, said)


@pytest.mark.parametrize(
    "index",
    [
        "return vortex.topp((score * 0.1).exp(), 0.9)",
        "return vortex.topp((cache.a @ q.T / 8).softmax(0).sum(-1), 0.9)",
        "return vortex.topk(score.clamp(min=0))",
        "return vortex.topk((cache.a @ (q * 0.125).T).softmax(0).amax(-1))",
        "return vortex.topk((cache.a @ (q / q.norm(dim=-1, keepdim=True)).T).softmax(0).amax(-1))",
        "return vortex.topk(vortex.page_index()[vortex.shortlist(score, pages=8)], pages=8)",
    ],
)
def test_nothing_is_said_of_what_has_its_sense(write: Write, index: str) -> None:
    path = write(flow_text(index=index))
    with warnings.catch_warnings():
        warnings.simplefilter("error", VortexWarning)
        trace(find_flow(str(path)), SPEC)


def test_a_flow_of_exec_without_its_text() -> None:
    """Line and column are those of the text, which nobody kept."""
    scope: dict[str, type] = {"vortex": vortex}  # type: ignore[dict-item]
    lines = ["class Asks(vortex.vFlow):", "    def create_cache(self, spec):", "        return {'a': vortex.Field()}"]
    lines += ["    def forward_cache(self, page):", "        return {'a': page.k.mean()}"]
    lines += ["    def forward_indexer(self, q, cache):", "        if cache.a.sum() > 0: pass"]
    exec("\n".join(lines), scope)
    with pytest.raises(VortexError) as caught:
        trace(scope["Asks"](), vortex.Spec())
    assert caught.value.loc is not None
    assert (caught.value.loc.line, caught.value.loc.col, caught.value.loc.end) == (7, 12, 29)
