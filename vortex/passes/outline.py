"""From an algorithm to a program: which values live per page, per row, per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vortex.errors import IR_STRUCTURE
from vortex.ir.core import Attr, Decl, Function, Module, Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.staging import over_pages
from vortex.ir.types import DTYPES, S, TensorType, bool_, f32, i32, selection
from vortex.kinds.kind import KINDS
from vortex.passes.manager import Pass, PassContext, register

if TYPE_CHECKING:
    from vortex.budget import Cap


@register("outline", stage="flow", tag="exact", version=1, needed=True)
@dataclass(frozen=True, slots=True)
class Outline(Pass):
    """Turn a flow module into a page program in which every op is a kernel of its own.

    Each op over pages or per row becomes a ``select`` kernel that reads and writes memory, each field an
    ``append`` kernel; ``fuse`` joins them. Views and leaves are repeated where they are used. What state becomes is
    written after everything that reads what it was.

        func @index(%q, %c) {
          %d = flow.dot(%q, %c)
          %s = flow.reduce_max(%d)
          %p = flow.topk(%s)
          flow.return(%p)
        }
          ->
        buffer @d : f32[4] {layout = "ragged", role = "workspace"}
        kernel @select_d {kind = "select", domain = "rows"} {
          %q = page.load() {buffer = "q"}
          %c = page.load() {buffer = "c"}
          %d = flow.dot(%q, %c)
          page.store(%d) {buffer = "d"}
        }
        ...
    """

    def run(self, module: Module, ctx: PassContext) -> Module:
        for name in ("cache", "index"):
            if name not in module.functions:
                raise IR_STRUCTURE.at(why=f"outline needs func @{name}; this module has {list(module.functions)}")
        for name in ("page_size", "head_dim", "group"):
            if not isinstance(module.attrs.get(name), int) or module.attrs[name] < 1:
                raise IR_STRUCTURE.at(why=f"outline needs the module's '{name}', a positive integer")
        block = module.attrs.get("block_size", 1)
        if not isinstance(block, int) or block < 1 or module.attrs["page_size"] % block:
            raise IR_STRUCTURE.at(
                why="outline needs the module's 'block_size', where it has one, to divide 'page_size'"
            )
        if module.attrs.get("dtype") not in DTYPES or module.attrs.get("kv_dtype", "f32") not in DTYPES:
            raise IR_STRUCTURE.at(why=f"outline needs the module's 'dtype' (and 'kv_dtype') of {', '.join(DTYPES)}")
        program = Module("page", module.name, dict(module.attrs))
        _declare_buffers(program, module)
        program.define(_plan(program, flow.cap_of(module)))
        _outline_cache(program, module.functions["cache"])
        _outline_index(program, module.functions["index"])
        program.define(_attend(program))
        return program


def _declare_buffers(program: Module, module: Module) -> None:
    size = page.block_size(module)
    dim, group = (int(module.attrs[k]) for k in ("head_dim", "group"))
    rank = int(module.attrs.get("kv_lora_rank", 0))
    kv = DTYPES[module.attrs["dtype"]]
    kept = DTYPES[module.attrs.get("kv_dtype", kv.name)]

    def buffer(name: str, type: TensorType, layout: str, role: str) -> None:
        program.declare(Decl("buffer", name, type, {"layout": layout, "role": role}))

    buffer("q", TensorType(kv, (group, dim)), "batched", "input")
    pools = ("latent",) if rank else ("k", "v")
    for name in pools:
        buffer(name, TensorType(kept, (size, dim)), "paged", "pool")
    for name in pools:
        buffer(f"{name}_new", TensorType(kv, (dim,)), "token", "input")
    buffer("plan", TensorType(i32, (4,)), "request", "plan")
    program.declare(Decl("buffer", "pages", selection, {"layout": "batched", "role": "output"}))
    buffer("out", TensorType(kv, (group, rank or dim)), "batched", "output")
    buffer("lse", TensorType(f32, (group,)), "batched", "output")
    for d in module.declared("field"):
        if d.name in program.decls:
            raise IR_STRUCTURE.at(why=f"a field may not be called '{d.name}': the kernels have a buffer of that name")
        attrs: dict[str, Attr] = {"layout": "paged", "role": "field"}
        if "per" in d.attrs:
            attrs["pages"] = page.pages_axis(module)
        if "state" in d.attrs:
            attrs = {"layout": page.STATE_LAYOUTS[d.attrs["state"]], "role": "state", "init": d.attrs["init"]}
        program.declare(Decl("buffer", d.name, d.type, attrs))
    for d in module.declared("param"):
        if d.name in program.decls:
            raise IR_STRUCTURE.at(why=f"a parameter may not be called '{d.name}': a buffer or field has that name")
        program.declare(Decl("param", d.name, d.type, dict(d.attrs)))
    for d in module.declared("resource"):
        program.declare(Decl("resource", d.name, d.type, dict(d.attrs)))


def kernel(name: str, kind: str) -> Function:
    """An empty kernel of that kind, in its domain."""
    return Function("kernel", name, attrs={"kind": kind, "domain": KINDS[kind].domain})


def _plan(program: Module, cap: Cap) -> Function:
    f = kernel("plan", "plan")
    f.append(page.Plan("plan", page.block_size(program), cap.budgets, cap.pages, cap.always, cap.whole))
    return f


def _attend(program: Module) -> Function:
    f = kernel("attend", "attend")
    query, out = program.decls["q"].type, program.decls["out"].type
    assert isinstance(query, TensorType) and isinstance(out, TensorType)
    q = f.add(page.Load("q", query), "q")
    pages = f.add(page.LoadSelection("pages"), "pages")
    pools = [d.name for d in program.declared("buffer") if d.attrs["role"] == "pool"]
    # of a latent row all is key and the beginning is value
    o = f.add(page.Attend(q, pages, pools[0], pools[-1], "lse", out.with_dtype(f32)), "o")
    f.append(page.Store(o, "out"))
    return f


class _Outliner:
    """Copies ops into kernels, fetching operands from buffers or by repeating cheap ops."""

    def __init__(self, program: Module, homes: dict[Value, str], pages: dict[Value, str] | None = None) -> None:
        self.program = program
        self.homes = homes
        """The buffer in which each value can be found."""
        self.pages = pages or {}
        """The pool in which the rows of the whole page can be found, where pages have several blocks."""

    def copy(self, f: Function, o: Op, made: dict[Value, Value]) -> Value:
        """Append ``o`` to ``f`` with its operands fetched; returns the copied result."""
        twin = o.with_operands([self.fetch(f, v, made) for v in o.operands])
        f.append(twin, o.result.name if o.result else "", o.loc)
        if o.result is not None:
            made[o.result] = twin.value
        return made[o.value] if o.result is not None else o.operands[0]

    def fetch(self, f: Function, v: Value, made: dict[Value, Value]) -> Value:
        if v in made:
            return made[v]
        if v in self.pages:
            rows = page.whole_tile(self.program, self.program.decls[self.pages[v]])
            assert rows is not None
            made[v] = f.add(page.LoadPage(self.pages[v], rows), f"page_{self.pages[v]}")
            return made[v]
        if v in self.homes:
            made[v] = self.load(f, v, self.program.decls[self.homes[v]])
            return made[v]
        assert v.owner is not None
        return self.copy(f, v.owner, made)

    def load(self, f: Function, v: Value, d: Decl) -> Value:
        """``v`` from its buffer, with the page axis where ``v`` has it."""
        loaded = self._loaded(f, v, d)
        if v.owner is None and d.attrs["role"] != "workspace" and loaded.type != v.type:
            why = f"%{v.name} is {v.type}, and by the module's attributes and fields {loaded.type}"
            raise IR_STRUCTURE.at(why=why)
        return loaded

    def _loaded(self, f: Function, v: Value, d: Decl) -> Value:
        assert isinstance(v.type, TensorType)
        axis = v.type.page_axis
        loc = v.owner.loc if v.owner is not None else None
        tile = page.tile_of(d)
        assert isinstance(tile, TensorType)
        if axis is None:
            return f.add(page.Load(d.name, tile), d.name, loc)
        whole = TensorType(tile.dtype, (page.pages_of(d), *tile.tile))
        if isinstance(v.owner, flow.PackBits) and (words := page.words_of(whole)) is not None:
            return f.add(page.LoadWords(d.name, words), v.name, loc)
        loaded = f.add(page.Load(d.name, whole), d.name, loc)
        if axis == 0:
            return loaded
        back = (*range(1, axis + 1), 0, *range(axis + 1, len(v.type.shape)))
        return f.add(flow.Transpose(loaded, back), v.name, loc)


def _outline_cache(program: Module, cache: Function) -> None:
    store = kernel("append_store", "append")
    pools = [d.name for d in program.declared("buffer") if d.attrs["role"] == "pool"]
    for name in pools:
        store.append(page.Scatter(f"{name}_new", name))
    program.define(store)
    twice = any(page.of_whole_pages(d) for d in program.declared("buffer"))
    if len(cache.args) != len(pools) * (1 + twice):
        raise IR_STRUCTURE.at(cache.loc, why=f"func @cache takes {len(cache.args)} tensors; the pages hold {pools}")
    of_block, of_page = cache.args[: len(pools)], cache.args[len(pools) :]
    if [a.name for a in of_block] != pools:
        took = ", ".join(f"%{a.name}" for a in of_block)
        raise IR_STRUCTURE.at(cache.loc, why=f"func @cache takes {took}; it takes {', '.join(f'%{n}' for n in pools)}")
    outliner = _Outliner(program, dict(zip(of_block, pools, strict=True)), dict(zip(of_page, pools, strict=twice)))
    end = cache.ops[-1]
    assert isinstance(end, flow.Return)
    for name, v in zip(end.names, end.values, strict=True):
        f = kernel(f"append_{name}", "append")
        made: dict[Value, Value] = {}
        f.append(page.Store(outliner.fetch(f, v, made), name))
        program.define(f)
    for d in program.declared("buffer"):
        if d.attrs["role"] == "state":
            f = kernel(f"append_{d.name}", "append")
            f.append(page.Reset(d.name))
            program.define(f)


def _outline_index(program: Module, index: Function) -> None:
    read = [d.name for d in program.declared("buffer") if d.attrs["role"] in ("pool", "field", "state")]
    for a in index.args:
        if a.name not in ("q", *read):
            why = f"func @index takes %{a.name}; it may take {', '.join(f'%{n}' for n in ('q', *read))}"
            raise IR_STRUCTURE.at(index.loc, why=why)
    outliner = _Outliner(program, {a: a.name for a in index.args})
    end = index.ops[-1]
    assert isinstance(end, flow.Return)
    new = dict(zip(end.names[1:], end.values[1:], strict=True))
    selected = flow.selected(index)
    for o in index.ops:
        if o is selected:
            f = kernel("select_topk", "select")
            f.append(page.Store(outliner.copy(f, o, {}), "pages"))
            program.define(f)
        elif isinstance(o, flow.PackBits) and _in_words(program, outliner, o):
            outliner.homes[o.value] = outliner.homes[o.x]
        elif isinstance(o, flow.Selection):
            continue  # a part of it, which is copied with it
        elif o.result is not None and o.role not in ("leaf", "view"):
            _outline_op(program, outliner, o)
    # all that state becomes is known before any of it is written: one may be what another was
    for v in new.values():
        if v not in outliner.homes or program.decls[outliner.homes[v]].attrs["role"] != "workspace":
            copied = flow.Cast(v, f32)
            copied.value.name = f"{v.name}_kept"
            copied.loc = end.loc
            _outline_op(program, outliner, copied)
            outliner.homes[v] = outliner.homes[copied.value]
    for name, v in new.items():
        f = kernel(f"select_to_{name}", "select")
        f.append(page.Store(outliner.fetch(f, v, {}), name), loc=end.loc)
        program.define(f)


def _in_words(program: Module, outliner: _Outliner, o: flow.PackBits) -> bool:
    """Whether the bits that are packed lie in memory as words already."""
    name = outliner.homes.get(o.x)
    d = program.decls[name] if name is not None else None
    return d is not None and d.attrs["role"] == "field" and page.words_of(d.type) is not None


def _outline_op(program: Module, outliner: _Outliner, o: Op) -> None:
    """One op as a kernel that leaves its result in a workspace buffer."""
    v = o.value
    assert isinstance(v.type, TensorType)
    name = v.name
    ends = {"topk", *(f"to_{d.name}" for d in program.decls.values() if d.attrs.get("role") == "state")}
    while name in program.decls or name in ends or f"select_{name}" in program.functions:
        name += "_"  # the kernels of ``ends`` are defined later
    f = kernel(f"select_{name}", "select")
    result = outliner.copy(f, o, {})
    layout: dict[str, Attr] = {"layout": "batched", "role": "workspace"}
    if over_pages(v):
        layout["layout"] = "ragged"
        result = _page_major(f, result)
        if v.type.pages != S:
            layout["pages"] = v.type.pages
    assert isinstance(result.type, TensorType)
    kept = result.type.dtype if result.type.dtype in (i32, bool_) else f32
    program.declare(Decl("buffer", name, TensorType(kept, result.type.tile), layout))
    f.append(page.Store(result, name))
    program.define(f)
    outliner.homes[v] = name


def _page_major(f: Function, v: Value) -> Value:
    """``v`` with its page axis first, as buffers keep it."""
    assert isinstance(v.type, TensorType) and v.type.page_axis is not None
    axis, rank = v.type.page_axis, len(v.type.shape)
    if axis == 0:
        return v
    return f.add(flow.Transpose(v, (axis, *(i for i in range(rank) if i != axis))), f"{v.name}_by_page")
