"""What holds of every module between passes: types as inferred, definitions before uses, buffers as declared."""

from __future__ import annotations

from vortex.errors import IR_REDEFINED, IR_STRUCTURE, IR_TYPE, IR_UNDEFINED
from vortex.ir.core import Decl, Function, Module, Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.rewrite import behind
from vortex.ir.scratch import is_scratch, verify_scratch
from vortex.ir.types import KEY_PADDING, S, SelectionType, Sym, TensorType, Type, f32, selection, whole_pages
from vortex.kinds.kind import KINDS, KernelKind


def verify(module: Module) -> None:
    """Check the module.

    Raises:
        VortexError: VX2003 to VX2008, located at the op's place in the flow's source where it has one.
    """
    for f in module.functions.values():
        _verify_function(f)
    for d in module.declared("param"):
        if (
            not isinstance(d.type, TensorType)
            or d.type.page_axis is not None
            or d.attrs.get("per") not in flow.Param.PER
        ):
            _no(f"param @{d.name} needs a shape without pages, and per = {' or '.join(flow.Param.PER)}")
    if module.stage == "flow":
        _verify_flow(module)
    else:
        _verify_program(module)


def _verify_function(f: Function) -> None:
    defined: set[Value] = set()
    names: set[str] = set()

    def define(v: Value, o: Op | None) -> None:
        if v.name in names:
            raise IR_REDEFINED.at(o.loc if o else f.loc, what="value", name=v.name)
        names.add(v.name)
        defined.add(v)

    for a in f.args:
        define(a, None)
    for o in f.ops:
        for v in o.operands:
            if v not in defined:
                where = f"in {f.keyword} @{f.name}, used by {o.name}"
                raise IR_UNDEFINED.at(o.loc, name=v.name, nearest="").note(where)
        inferred = o.infer()
        if inferred != (o.result.type if o.result else None):
            declared = o.result.type if o.result else "nothing"
            raise IR_TYPE.at(o.loc, op=o.name, inferred=inferred, declared=declared)
        if o.result is not None:
            define(o.result, o)
    _verify_page_axes(f)


def _verify_page_axes(f: Function) -> None:
    """One shortlist makes each page axis beside the candidates, and lists of pages come from shortlists."""
    made = {S}
    for o in f.ops:
        if isinstance(o, flow.Shortlist):
            if o.listed in made or o.listed.name in {axis.name for axis in made}:
                _no(f"a second shortlist makes the page axis {o.listed}", o)
            made |= {o.listed, o.listed.in_blocks}
        for at in (o.at,) if isinstance(o, flow.Pick) else (o.near,) if isinstance(o, flow.Part) else ():
            if at is not None and not flow.is_list(at):
                _no(f"%{at.name} is no list of pages: flow.shortlist makes one", o)
        axis = o.result.type.pages if o.result is not None and isinstance(o.result.type, TensorType) else None
        if isinstance(o, page.Load) and axis is not None:
            made |= {axis, axis.in_blocks}
        if axis is not None and axis not in made and axis != whole_pages(axis.blocks):
            _no(f"no shortlist makes the page axis {axis}", o)


def _no(why: str, o: Op | Function | None = None) -> None:
    raise IR_STRUCTURE.at(o.loc if o is not None else None, why=why)


def _verify_flow(m: Module) -> None:
    for f in m.functions.values():
        if f.keyword != "func":
            _no(f"a flow module holds functions, not '{f.keyword} @{f.name}'", f)
        if not f.ops or not isinstance(f.ops[-1], flow.Return):
            _no(f"func @{f.name} does not end in flow.return", f)
        for o in f.ops[:-1]:
            if isinstance(o, flow.Return) or not o.name.startswith("flow."):
                _no(f"{o.name} inside func @{f.name}", o)
            _verify_resource(m, o)
    for d in m.declared("field"):
        _verify_state(d)
    _verify_units(m)
    if "cache" in m.functions:
        _verify_fields(m, m.functions["cache"])
    if "index" in m.functions:
        _verify_updates(m, m.functions["index"])


def _verify_state(d: Decl) -> None:
    """What state belongs to, and what it is before it is first written."""
    state, init = d.attrs.get("state"), d.attrs.get("init")
    if state is None and init is None:
        return
    if state not in flow.STATES or not _is_init(init):
        _no(f'state @{d.name} needs state = "page" or "request" and a number as init')


def _verify_units(m: Module) -> None:
    """What belongs to whole pages, how many blocks these have, and that its summaries are made from the page's rows."""
    for d in m.declared("field"):
        if "per" in d.attrs and (d.attrs["per"] != "page" or "state" in d.attrs):
            _no(f'field @{d.name}: per = "page" is for summaries of pages of several blocks')
    whole = flow.of_pages(m)
    if not whole:
        return
    if _page_blocks(m) == 1:
        _no(f"field @{whole[0]} belongs to pages of several blocks, and the module's have one")
    axes = {S, whole_pages(flow.blocks_of_page(m))}
    for a in m.functions["index"].args if "index" in m.functions else []:
        if isinstance(a.type, TensorType) and a.type.pages is not None and a.type.pages not in axes:
            _no(f"%{a.name} is {a.type}, and the module's pages have {flow.blocks_of_page(m)} blocks")
    if "cache" in m.functions:
        f = m.functions["cache"]
        end, of_page = f.ops[-1], set(f.args[len(f.args) // 2 :])
        assert isinstance(end, flow.Return)
        for name, v in zip(end.names, end.values, strict=True):
            others = set(f.args) - of_page if name in whole else of_page
            if behind(v) & others:
                _no(f"field @{name} is made from rows of {'blocks' if name in whole else 'whole pages'}", end)


def _page_blocks(m: Module) -> int:
    """Blocks of a page, from attributes that nobody vouches for."""
    size = m.attrs.get("page_size")
    block = m.attrs.get("block_size", size)
    if not isinstance(size, int) or not isinstance(block, int) or not 0 < block <= size or size % block:
        _no(f"page_size is {size} and block_size {block}; positive integers are needed that divide")
    assert isinstance(size, int) and isinstance(block, int)
    return size // block


def _is_init(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and x == x


def _verify_updates(m: Module, f: Function) -> None:
    """What @index returns beside the selection is the state, all of it."""
    end = f.ops[-1]
    assert isinstance(end, flow.Return)
    state = {d.name: d for d in m.declared("field") if "state" in d.attrs}
    if not state and not end.names:
        return
    if end.names[:1] != (flow.SELECTED,) or set(end.names[1:]) != set(state):
        _no(
            f"@index returns {list(end.names)}; the selection, '{flow.SELECTED}', and state {list(state)} are needed",
            end,
        )
    for name, v in zip(end.names[1:], end.values[1:], strict=True):
        if not _storable(v.type, state_seen(state[name])):
            _no(f"state @{name} is {state_seen(state[name])} in @index, which returns {v.type}", end)
    for a in f.args:
        if a.name in state and a.type != state_seen(state[a.name]):
            _no(f"state @{a.name} is {state_seen(state[a.name])} in @index, not {a.type}", f)


def state_seen(d: Decl) -> Type:
    """A state field as @index has it: of all candidate pages where it belongs to pages."""
    assert isinstance(d.type, TensorType)
    return TensorType(d.type.dtype, (S, *d.type.shape)) if d.attrs["state"] == "page" else d.type


def _verify_packed(d: Decl) -> None:
    """Elements that share bytes fill them."""
    if not isinstance(d.type, TensorType):
        return
    per, tile = d.type.dtype.per_byte, d.type.tile
    if per > 1 and (not tile or tile[-1] % per):
        _no(f"@{d.name} : {d.type} packs {per} elements a byte along its last axis, which is no multiple of that")


def _verify_fields(m: Module, f: Function) -> None:
    end = f.ops[-1]
    assert isinstance(end, flow.Return)
    for d in m.declared("field"):
        _verify_packed(d)
    fields = {d.name: d.type for d in m.declared("field") if "state" not in d.attrs}
    if set(end.names) != set(fields):
        _no(f"@cache returns {list(end.names)}, the declared fields are {list(fields)}", end)
    for name, v in zip(end.names, end.values, strict=True):
        if not _storable(v.type, fields[name]):
            _no(f"field @{name} is {fields[name]}, @cache returns {v.type}", end)


def _verify_resource(m: Module, o: Op) -> None:
    if isinstance(o, flow.Param):
        d = m.decls.get(o.symbol)
        if d is None or d.keyword != "param" or d.type != o.type or d.attrs.get("per") != o.per:
            _no(f"no param @{o.symbol} of type {o.type} per {o.per}", o)
    if isinstance(o, flow.Resource):
        d = m.decls.get(o.symbol)
        if d is None or d.keyword != "resource" or d.type != o.type:
            _no(f"no resource @{o.symbol} of type {o.type}", o)


def _storable(value: Type, buffer: Type) -> bool:
    """Whether a value can be kept in a buffer: same shape; the element type may narrow."""
    if isinstance(value, SelectionType) or isinstance(buffer, SelectionType):
        return value == buffer
    return value.shape == buffer.shape


def _verify_program(m: Module) -> None:
    for d in m.declared("buffer"):
        if d.attrs.get("layout") not in page.LAYOUTS or d.attrs.get("role") not in page.ROLES:
            _no(f"buffer @{d.name} needs a layout ({', '.join(page.LAYOUTS)}) and a role ({', '.join(page.ROLES)})")
        if (d.attrs["role"] == "state") != (d.attrs["layout"] in page.STATE_LAYOUTS.values()):
            _no(f"buffer @{d.name}: layouts {', '.join(page.STATE_LAYOUTS.values())} are for role 'state' alone")
        role = d.attrs["role"]
        if not {role, d.attrs["layout"]} & {"scratch", "step"} and d.attrs["layout"] not in page.ROLES[role]:
            _no(f"buffer @{d.name}: role '{role}' has layout {' or '.join(page.ROLES[role])}, not {d.attrs['layout']}")
        if d.attrs["role"] == "state" and not _is_init(d.attrs.get("init")):
            _no(f"buffer @{d.name}: state needs a number as init")
        if not isinstance(d.attrs.get("pages", S), Sym):
            _no(f"buffer @{d.name}: 'pages' must name a page axis such as S1<=64")
        of_cache = d.attrs["role"] in ("field", "pool", "state") and page.pages_of(d) != S
        if of_cache and page.pages_of(d) != whole_pages(_page_blocks(m)):
            _no(f"buffer @{d.name}: {page.pages_of(d)} are no pages of the module's")
        if isinstance(d.type, TensorType) and d.type.page_axis is not None:
            _no(f"buffer @{d.name}: a buffer's type is one tile, without the page axis")
        _verify_packed(d)
    for f in m.functions.values():
        kind = KINDS.get(str(f.attrs.get("kind")))
        if f.keyword != "kernel" or kind is None or f.attrs.get("domain") != kind.domain:
            known = {k.name: k.domain for k in KINDS.values()}
            raise IR_STRUCTURE.at(f.loc, why=f"@{f.name} is not a kernel of a known kind and its domain: {known}")
        if f.args:
            _no(f"kernel @{f.name} has arguments; kernels load from buffers", f)
        _verify_taken_in(m, f, kind)
        for o in f.ops:
            _verify_resource(m, o)
            if not kind.allows(o.name):
                _no(f"a kernel of kind '{kind.name}' holds {', '.join(kind.ops)}, and not {o.name}", o)
            _verify_access(m, kind, o)
        _verify_order(m, f)
        _verify_words(m, f)
    verify_scratch(m)


def _verify_taken_in(m: Module, f: Function, kind: KernelKind) -> None:
    """A kernel does the work of another, if at all, whose kind its own kind names."""
    if "takes_in" not in f.attrs:
        return
    if not kind.takes_in:
        _no(f"a kernel of kind '{kind.name}' takes in nothing, and @{f.name} has 'takes_in'", f)
    name = f.attrs["takes_in"]
    if not isinstance(name, str) or name not in m.functions or m.functions[name].attrs.get("kind") != kind.takes_in:
        _no(f"kernel @{f.name} takes in {ascii(name)[:40]}, which is no kernel of kind '{kind.takes_in}'", f)


def _verify_order(m: Module, f: Function) -> None:
    """State is written last: whatever stands before a write may still read what was there."""
    written: str = ""
    for o in f.ops:
        state = isinstance(o, page.Store) and m.decls[o.buffer].attrs["role"] == "state"
        if written and not state:
            _no(f"{o.name} after state @{written} is written; a kernel writes state last", o)
        written = o.buffer if isinstance(o, page.Store) and state else written


def _verify_words(m: Module, f: Function) -> None:
    """What ``plan-memory`` gave out lies within what a row has: as many words as a decoder reserves."""
    words = {name: f.attrs[name] for name in ("page_words", "row_words", "keys") if name in f.attrs}
    for name, n in words.items():
        if not isinstance(n, int) or isinstance(n, bool) or n < 0:
            _no(f"{name} of kernel @{f.name} is {ascii(n)[:40]}; a number of words is needed", f)
    if not {"page_words", "row_words"} <= words.keys():
        return
    of_page, of_row = int(words["page_words"]), int(words["row_words"])
    ends = {"the keys": int(words.get("keys", 0)) + sum(isinstance(o, flow.Part) for o in f.ops)}
    for o in f.ops:
        if "slot" in o.notes and o.result is not None:
            slot, t = o.notes["slot"], o.result.type
            numbers = t.numel if isinstance(t, TensorType) and not isinstance(o, flow.Shortlist) else 1
            ends[f"%{o.result.name}"] = slot + numbers if isinstance(slot, int) and slot >= 0 else of_page + 1
    rows = 0
    for d in m.declared("buffer"):
        if d.attrs["role"] == "workspace" and "offset" in d.attrs and isinstance(d.type, TensorType):
            at = d.attrs["offset"]
            end = at + d.type.numel if isinstance(at, int) and at >= 0 else max(of_page, of_row) + 1
            if d.attrs["layout"] == "ragged":
                ends[f"@{d.name}"] = end
            else:
                rows = max(rows, end)
    for what, end in ends.items():
        if end > of_page:
            _no(f"kernel @{f.name} has {of_page} words of a page (page_words), and {what} end beyond them", f)
    if rows > of_row or ("keys" in words and of_row < KEY_PADDING):
        _no(f"kernel @{f.name} has {of_row} words of a row (row_words); {max(rows, KEY_PADDING)} are needed", f)


def _verify_access(m: Module, kind: KernelKind, o: Op) -> None:
    if isinstance(o, page.Load):
        d = _buffer(m, o, o.buffer)
        expected = tile_in(d, kind)
        if isinstance(o, page.LoadWords):
            expected = page.words_of(expected) or selection
        elif isinstance(o, page.LoadPage):
            _page_blocks(m)
            expected = page.whole_tile(m, d) or selection
        if o.type != expected:
            _no(f"{o.name} of @{d.name} in domain {kind.domain} is {expected}, not {o.type}", o)
    elif isinstance(o, page.LoadSelection):
        if _buffer(m, o, o.buffer).type != selection:
            _no(f"@{o.buffer} holds no selection", o)
    elif isinstance(o, page.Store):
        d = _buffer(m, o, o.buffer)
        if not _storable(o.x.type, tile_in(d, kind)):
            _no(f"%{o.x.name} ({o.x.type}) does not fit @{d.name} ({d.type})", o)
    elif isinstance(o, page.Reset):
        if _buffer(m, o, o.buffer).attrs["role"] != "state":
            _no(f"page.reset is for state, and @{o.buffer} is none", o)
    elif isinstance(o, page.Scatter):
        if _buffer(m, o, o.source).attrs["layout"] != "token" or _buffer(m, o, o.buffer).attrs["layout"] != "paged":
            _no("page.scatter moves a token buffer into a paged one", o)
    elif isinstance(o, page.Attend):
        for name in (o.keys, o.values):
            if _buffer(m, o, name).attrs["layout"] != "paged":
                _no(f"page.attend reads paged buffers, @{name} is not", o)
        _verify_rows(m, o)
        logs = TensorType(f32, o.type.tile[:1])
        if (lse := _buffer(m, o, o.lse)).type != logs:
            _no(f"page.attend writes log-sum-exp, {logs}, and @{lse.name} is {lse.type}", o)
    elif isinstance(o, page.Plan):
        _buffer(m, o, o.buffer)
        _verify_plan(m, o)
    elif isinstance(o, flow.Return):
        _no("flow.return in a kernel", o)


def _verify_plan(m: Module, o: page.Plan) -> None:
    """``plan`` counts the pages that the module has."""
    if "page_size" not in m.attrs:
        return
    size = m.attrs.get("block_size", m.attrs["page_size"])
    if o.page_size != size:
        _no(f"page.plan counts pages of {o.page_size} tokens, and the module's have {size}", o)


def _verify_rows(m: Module, o: page.Attend) -> None:
    """Queries are as long as keys, and outputs no longer than the rows that hold the values."""
    keys, values = (m.decls[name].type for name in (o.keys, o.values))
    q = o.q.type
    assert isinstance(q, TensorType) and isinstance(keys, TensorType) and isinstance(values, TensorType)
    if len(keys.shape) != 2 or len(values.shape) != 2 or q.tile[1] != keys.tile[1] or o.type.tile[1] > values.tile[1]:
        _no(f"page.attend of {q} over keys {keys} and values {values} cannot give {o.type}", o)


def tile_in(d: Decl, kind: KernelKind) -> Type:
    """What loading ``d`` gives in a kernel of that kind: all candidates of a row, or the current tile."""
    tile = page.tile_of(d)
    if kind.candidates and d.attrs["layout"] in page.CANDIDATES and isinstance(tile, TensorType):
        return TensorType(tile.dtype, (page.pages_of(d), *tile.shape))
    return tile


def _buffer(m: Module, o: Op, name: str) -> Decl:
    d = m.decls.get(name)
    if d is None or d.keyword != "buffer":
        raise IR_STRUCTURE.at(o.loc, why=f"{o.name} names @{name}, which is no declared buffer")
    if is_scratch(d):
        _no(f"{o.name} names @{name}; scratch is for templates, which no op names", o)
    return d
