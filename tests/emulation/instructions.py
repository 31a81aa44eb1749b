"""PTX in the functions that TVM wraps it in, as calls of the emulator: one row an instruction."""

from __future__ import annotations

import re

INSTRUCTIONS: tuple[tuple[str, str], ...] = (
    (r"cp\.async\.wait_group (\d+);", "emu::wait_copies({0});"),
    (r"cp\.async\.wait_all;", "emu::commit_copies(); emu::wait_copies(0);"),
    (r"cp\.async\.commit_group;", "emu::commit_copies();"),
    (r"cp\.async\.c[ag]\.shared\.global(?:\.L2::\w+)? \[%0\], \[%1\], (\d+);", "emu::copy_async({a}, {b}, {0}, {0});"),
    (
        r"cp\.async\.c[ag]\.shared\.global(?:\.L2::\w+)? \[%0\], \[%1\], (\d+), %2;",
        "emu::copy_async({a}, {b}, {0}, {c});",
    ),
    (
        r"ldmatrix\.sync\.aligned\.m8n8\.x4(\.trans)?\.shared(?:::cta)?\.b16",
        "uint32_t r[4]; emu::load_matrix(r, 4, {t}, {e}); {a} = r[0]; {b} = r[1]; {c} = r[2]; {d} = r[3];",
    ),
    (
        r"ldmatrix\.sync\.aligned\.m8n8\.x2(\.trans)?\.shared(?:::cta)?\.b16",
        "uint32_t r[2]; emu::load_matrix(r, 2, {t}, {c}); {a} = r[0]; {b} = r[1];",
    ),
    (r"movmatrix\.sync\.aligned\.m8n8\.trans\.b16", "{a} = emu::transpose_matrix({b});"),
    (
        r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(bf16|f16)\.\w+\.f32",
        "float r[4], c[4] = {{{k}, {l}, {m}, {n}}}; uint32_t x[4] = {{{e}, {f}, {g}, {h}}}, y[2] = {{{i}, {j}}}; "
        "emu::multiply(r, x, y, c, {bf16}); {a} = r[0]; {b} = r[1]; {c} = r[2]; {d} = r[3];",
    ),
    (r"cvt\.rn\.bf16x2\.f32", "{a} = emu::pack_bf16({b}, {c});"),
    (r"cvt\.rn\.f16x2\.f32", "{a} = emu::pack_f16({b}, {c});"),
    (r"mov\.b32 \{%0, ?%1\}, %2", "{a} = (uint16_t){c}; {b} = (uint16_t)({c} >> 16);"),
    (r"cvt\.rn\.f16x2\.e4m3x2", "{a} = emu::from_e4m3({b}) | (uint32_t)emu::from_e4m3({b} >> 8) << 16;"),
    (r"sub\.rn\.f16x2", "{a} = emu::each_f16({b}, {c}, 0, [](float x, float y, float) {{ return x - y; }});"),
    (r"fma\.rn\.f16x2", "{a} = emu::each_f16({b}, {c}, {d}, [](float x, float y, float z) {{ return x * y + z; }});"),
    (r"lop3\.b32 %0, %1, %2, %3, (?:106|0x6a)", "{a} = {b} & {c} ^ {d};"),
    (r"prmt\.b32 %0, %1, %2, %3", "{a} = emu::permuted({b}, {c}, {d});"),
    (r"ex2\.approx\.ftz\.f32", "{a} = emu::exp2_flush({b});"),
    (
        r"atom(?:\.(relaxed|acquire|release|acq_rel))?(?:\.gpu|\.cta)?(?:\.global|\.shared)?\.add\.[us]32",
        "auto add = {c}; "
        "{a} = emu::atomic((decltype(add)*){b}, [=](auto o) {{ return o + add; }}, {acquire}, {release});",
    ),
    (r"(max|min)\.NaN\.f32", "{a} = {b} != {b} || {c} != {c} ? NAN : f{0}f({b}, {c});"),
    (r"redux\.sync\.add\.u32", "{a} = emu::summed({b});"),
    (r"redux\.sync\.(min|max)\.u32", "{a} = emu::reduced({b}, \"{0}\"[1] == 'a');"),
    (r"griddepcontrol\.\w+", ""),
    (r"barrier\.cluster\.arrive\.release", "emu::arrive_cluster();"),
    (r"barrier\.cluster\.wait\.acquire", "emu::wait_cluster();"),
    (r"fence\.acq_rel\.gpu", "emu::fence();"),
    (
        r"st\.global(?:\.\w+)*?\.v4\.(f32|b32|u32)",
        "auto r0 = {b}; decltype(r0) r[4] = {{{b}, {c}, {d}, {e}}}; emu::store({a}, r, 4);",
    ),
    (
        r"st\.global(?:\.\w+)*?\.v2\.(f32|b32|u32)",
        "auto r0 = {b}; decltype(r0) r[2] = {{{b}, {c}}}; emu::store({a}, r, 2);",
    ),
    (
        r"ld\.global(?:\.\w+)*?\.v4\.(f32|b32|u32)",
        "auto r0 = {a}; decltype(r0) r[4]; emu::load(r, {e}, 4); {a} = r[0]; {b} = r[1]; {c} = r[2]; {d} = r[3];",
    ),
    (
        r"ld\.global(?:\.\w+)*?\.v2\.(f32|b32|u32)",
        "auto r0 = {a}; decltype(r0) r[2]; emu::load(r, {c}, 2); {a} = r[0]; {b} = r[1];",
    ),
    (r"ld\.relaxed\.gpu\.global\.s32", "int r0; emu::load(&r0, {b}, 1); {a} = r0;"),
    (r"ld\.global(?:\.\w+)*?\.(f32|b32|u32|s32)", "auto r0 = {a}; emu::load(&r0, {b}, 1); {a} = r0;"),
)
"""Regular expression over the assembly, body over the parameters ``{a}``, ``{b}``, ... and groups ``{0}``, ``{1}``."""


def body_of(assembly: str, parameters: list[str]) -> str:
    """C++ for one wrapped instruction; an instruction without a row is an error that shows it."""
    for pattern, body in INSTRUCTIONS:
        found = re.match(pattern, assembly)
        if found is None:
            continue
        names = dict(zip("abcdefghijklmnopqrst", parameters, strict=False))
        order = found.group(1) if found.re.groups else ""
        names |= {
            "t": "true" if ".trans" in found.group(0) else "false",
            "bf16": "true" if ".bf16." in found.group(0) else "false",
            "acquire": "true" if order in ("acquire", "acq_rel") else "false",
            "release": "true" if order in ("release", "acq_rel") else "false",
        }
        return body.format(*found.groups(), **names)
    raise NotImplementedError(f"the emulator has no '{assembly}': add a row to tests/emulation/instructions.py")
