"""Lines of a kernel's texts name the ops that they compute, and nothing that they do not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vortex
from vortex.codegen.build.cuda_lines import ptx_lines, sass_lines
from vortex.compilation.kin import Kin, kin
from vortex.compilation.stored import Stored, read_stored
from vortex.driver import compile_flow
from vortex.ir.op_labels import commented, labels_of_tir, origin_of, uncommented, values_named
from vortex.ir.parser import parse_module
from vortex.targets.target import TARGETS

QUEST = Path(vortex.__file__).parent / "flow/library/quest.py"


@pytest.fixture(scope="module")
def quest(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return _lowered("quest", tmp_path_factory.mktemp("kin"))


def _lowered(flow: str, folder: Path) -> Stored:
    targets = [TARGETS["cpu"], TARGETS["sm_90a"]]
    made = compile_flow(flow, targets=targets, to="tir", dump=folder / "dump")
    assert made.dumps
    return read_stored(made.dumps)


def _kin(stored: Stored, name: str, target: str) -> Kin:
    [kernel] = [k for k in stored.kernels if (k.name, k.target) == (name, target)]
    return kin(stored, kernel, machine=False)


def _named(found: Kin, pattern: str) -> set[tuple[str, ...]]:
    """What the lines of TensorIR name in which ``pattern`` is found."""
    lines = found.texts["tir"]
    return {v for text, v in zip(lines.text.splitlines(), lines.values, strict=True) if re.search(pattern, text)}


def test_contractions_on_tensor_cores_are_the_line_of_the_flow_that_multiplies(quest: Stored) -> None:
    select = _kin(quest, "select", "sm_90a")
    assert _named(select, r"T\.ptx\.mma\(") == {("bound_a",), ("bound_b",)}
    loc = select.loc("bound_a")
    assert loc and "torch.maximum(" in QUEST.read_text().splitlines()[loc.line - 1]
    assert _named(select, r"held0_0\[") == {("bound_a",)} and _named(select, r"held1_0\[") == {("bound_b",)}
    assert _named(select, r"T\.ptx\.max\(maximum\[0\], x,") == {("bound_up",)}


def test_contractions_by_scalars_are_too(quest: Stored) -> None:
    select = _kin(quest, "select", "cpu")
    assert _named(select, r"acc\[l\] = acc\[l\] \+ bound_up") == {("bound_a",)}
    assert _named(select, r"acc_1\[l\] = acc_1\[l\] \+ bound_down") == {("bound_b",)}
    # a sum that is kept nowhere is computed where the largest is looked for
    assert _named(select, r"Select\(acc_2\[l\] > bound_a\[l\] \+ bound_b\[l\]") == {("reduce_max", "bound")}
    assert _named(select, r"threshold|counts\[r, h\]") == {("pages",)}
    assert _named(select, r"plan\[0, r\]|page: T\.let|T\.parallel") == {()}


def test_summaries_are_the_lines_that_make_them(quest: Stored) -> None:
    append = _kin(quest, "append", "cpu")
    assert (_named(append, r"field_lo\["), _named(append, r"field_hi\[")) == ({("lo",)}, {("hi",)})
    assert _named(append, r"k_new\[|v_new\[|to_page") == {()}


def test_every_op_of_a_kernel_that_computes_has_lines(quest: Stored, tmp_path: Path) -> None:
    for stored in (quest, _lowered("gqa_block", tmp_path)):
        for k in stored.kernels:
            if k.kind in ("append", "select"):
                found = kin(stored, k, machine=False)
                lines = {v for values in found.texts["tir"].values for v in values}
                computed = {n for n, o in found.ops.items() if o.name not in ("page.load", "flow.constant")}
                assert computed <= lines <= found.ops.keys(), (stored.name, k.target, k.name)


def test_texts_do_not_depend_on_where_a_flow_lies(quest: Stored) -> None:
    moved = quest.flow.replace(f"{QUEST.resolve().parent}/", "/elsewhere/")
    assert moved != quest.flow
    made = compile_flow(parse_module(moved), to="tir")
    texts = {name: k.text for name, k in made.lowered[0].kernels.items()}
    assert texts == {k.name: k.texts["tir"] for k in quest.kernels if k.target == "cpu"}


def test_comments_change_nothing_that_is_compiled(quest: Stored) -> None:
    from vortex.codegen.emit import parse_tir

    [append] = [k for k in quest.kernels if (k.name, k.target) == ("append", "cpu")]
    text = append.texts["tir"]
    assert str(parse_tir(text, "append").script()) == re.sub(r"  # %.*$", "", text, flags=re.M) != text  # type: ignore[attr-defined]


def test_lines_of_cuda_are_found_without_changing_it(quest: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    from vortex.codegen.build import tir_lines
    from vortex.codegen.build.nvcc import emit_cuda, emit_cuda_lines
    from vortex.codegen.emit import parse_tir

    [append] = [k for k in quest.kernels if (k.name, k.target) == ("append", "sm_90a")]
    tir = append.texts["tir"]
    f = parse_tir(tir, "append")
    source, lines = emit_cuda_lines("quest_append", f, "sm_90a")  # type: ignore[arg-type]
    with monkeypatch.context() as unmarked:
        unmarked.setattr(tir_lines, "_mark", lambda mod, _: mod)
        assert emit_cuda("quest_append", f, "sm_90a") == source  # type: ignore[arg-type]
    labels = ["", *labels_of_tir(tir)]
    text = commented(source, [labels[n] for n in lines])
    named = {(x, values_named(line)) for line in text.splitlines() for x in ("lo", "hi") if f"  field_{x}_ptr[" in line}
    assert named == {("lo", ("lo",)), ("hi", ("hi",))}
    assert not any(values_named(line) for line in text.splitlines() if "page_table_ptr" in line or "loc_ptr[" in line)


def test_a_comment_holds_for_its_block() -> None:
    text = (
        "a = 1  # %a @ f.py:1\nfor i in range(3):  # %b\n    x = 2\n\n"
        "    if c:\n        y = 1  # %c, %d @ f.py:2\n    z = 1\nw = 1\n"
    )
    assert labels_of_tir(text) == ["%a @ f.py:1", "%b", "%b", "", "%b", "%c, %d @ f.py:2", "%b", ""]
    assert values_named("y = 1  # %c, %d @ f.py:2") == ("c", "d")
    assert values_named("y = a % b  # a % of it") == values_named("x %= 2") == ()


def test_lines_of_ptx_are_where_functions_were_inlined() -> None:
    plain = "\n.version 9.0\n\nk()\n{\n\tmov.u32 %r1, %r2;\n\n$L1:\n\tmma.sync;\n\tret;\n}\n"
    told = (
        ".version 9.0\nk()\n{\n\t.loc\t1 7 3\n\tmov.u32 %r1, %r2;\n$L1:\n\t.loc\t1 9 1\n"
        "\t.loc\t1 2 3, function_name $L__s0, inlined_at 1 9 1\n\tmma.sync;\n\t.loc\t2 9 1\n\tret;\n}\n"
        '\t.file\t1 "/x/kernel.cu"\n\t.file\t2 "/x/other.hpp"\n\t.section\t.debug_str\n'
    )
    assert ptx_lines(plain, told) == (0, 0, 0, 0, 0, 7, 0, 0, 9, 0, 0)
    assert ptx_lines(plain.replace("mov", "add"), told) is None


def test_lines_of_machine_code_are_where_functions_were_inlined() -> None:
    said = (
        'k:\n\t//## File "/x/kernel.cu", line 2 inlined at "/x/kernel.cu", line 9\n\t//## File "/x/kernel.cu", line 9\n'
        '        /*0000*/  HMMA ;\n\t//## File "/x/other.hpp", line 4\n        /*0010*/  EXIT ;\n'
    )
    assert sass_lines(said) == ("k:\n        /*0000*/  HMMA ;\n        /*0010*/  EXIT ;\n", (0, 9, 0))


def test_a_kernel_without_a_line_of_the_flow_says_where_it_comes_from() -> None:
    from vortex.codegen.emit import emit_program, parse_tir

    program = compile_flow("quest", targets=[TARGETS["sm_90a"]], to="page").programs["sm_90a"]
    for name, k in emit_program(program, "sm_90a").items():
        kind = name.partition("_v")[0]
        told = origin_of(k.text)
        assert bool(told) == (kind in ("plan", "attend"))
        if told:
            assert told.startswith("origin: ") and f"by template cuda.{kind}" in told
            assert not any(labels_of_tir(k.text)), "it is no op's"
            assert parse_tir(k.text, name)
            assert uncommented(k.text).startswith("# origin: "), "it names no place"
