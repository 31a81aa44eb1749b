"""The report as a person uses it, in a headless Chromium: by pointer, by keys, by address."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.browser import Browser
from tests.report.conftest import EINSUM
from vortex.report.model import Compilation, Report, Text
from vortex.report.page import html

KIN = "[...document.querySelectorAll('#{side} .row.kin .number:first-child')].map((e) => Number(e.textContent))"
LINE = "[...document.querySelectorAll('#{side} .row')].find((r) => r.textContent.includes({text!r})).id = {id!r}"


@pytest.fixture
def shown(browser: Browser, page: Path) -> Browser:
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page)
    return browser


def test_it_opens_from_disk_and_asks_for_nothing(shown: Browser, page: Path) -> None:
    assert not shown.errors
    assert shown.requests == [page.as_uri()]
    assert shown.value("document.body.textContent.includes('vortex report: mass8')")
    assert not shown.value("document.querySelectorAll('main img').length")


def test_a_click_on_a_line_of_the_flow_lights_its_kin_everywhere(shown: Browser) -> None:
    shown.value(LINE.format(side="left", text="torch.einsum", id="einsum"))
    shown.click("#einsum")
    assert shown.value(KIN.format(side="left")) == [EINSUM]
    lit = shown.value("[...document.querySelectorAll('#right .row.kin')].map((r) => r.textContent)")
    assert any("flow.dot" in text for text in lit)
    drawn = shown.value("[...document.querySelectorAll('.drawing:not([hidden]) .op.kin')].map((o) => o.textContent)")
    assert any("dot" in text for text in drawn)
    assert "line=" in shown.value("location.hash")


def test_a_click_on_an_op_of_the_graph_lights_its_line_of_the_flow(shown: Browser) -> None:
    shown.press("3")
    shown.value("document.querySelector('.drawing:not([hidden]) .op.contraction[data-p]').id = 'dot'")
    shown.click("#dot rect")
    assert shown.value(KIN.format(side="left")) == [EINSUM]


@pytest.mark.full
def test_a_line_of_tensor_ir_lights_its_line_of_the_flow(shown: Browser) -> None:
    """The first line that computes the contraction alone, found by its comment."""
    shown.value("page.show(1, page.choices.findIndex((x) => x.text.title === 'TensorIR of select for sm_90a'))")
    shown.value(
        "page.panes[1].revealLine(page.panes[1].text.ids.findIndex((id) => page.lines[id].includes('# %logits @')))"
    )
    shown.press("Escape")
    shown.value(LINE.format(side="right", text="# %logits @", id="tir"))
    shown.click("#tir .number")
    assert shown.value(KIN.format(side="left")) == [EINSUM]


def test_keys_walk_the_passes_side_by_side(shown: Browser) -> None:
    for _ in range(20):
        shown.press("k")
    shown.press("j")
    title = "[...document.querySelectorAll('.pane select')].map((s) => s.selectedOptions[0].textContent)"
    assert shown.value(title) == ["after trace", "after outline"]
    assert shown.value("document.getElementById('diff').getAttribute('aria-pressed')") == "true"
    assert "rows differ" in shown.value("document.getElementById('differing').textContent")
    assert shown.value("document.querySelectorAll('#right .row.added').length") > 3
    shown.press("d")
    assert shown.value("document.getElementById('diff').getAttribute('aria-pressed')") == "false"


@pytest.mark.full
def test_every_pass_that_changed_something_opens(shown: Browser) -> None:
    count = shown.value("document.querySelectorAll('#steps button').length")
    assert count == shown.value("page.compilations[0].steps.filter((s) => s.changed).length")
    for n in range(count):
        shown.value(f"document.querySelectorAll('#steps button')[{n}].click()")
        name = shown.value(f"document.querySelectorAll('#steps button')[{n}].textContent")
        assert name in shown.value("page.choices[page.at[1]].text.title")
    assert not shown.errors


@pytest.mark.full
def test_search_finds_lines_of_all_texts(shown: Browser) -> None:
    shown.press("/")
    shown.call("Input.insertText", text="flow.dot spd")
    shown.wait("document.querySelectorAll('#found .hit').length > 2")
    shown.press("Enter")
    shown.click("#found .hit")
    assert shown.value(
        "[...document.querySelectorAll('#right .row.cursor')].some((r) => r.textContent.includes('flow.dot'))"
    )
    shown.press("Escape")
    assert shown.value("document.getElementById('found').hidden")


@pytest.mark.full
def test_kernels_open_with_their_numbers(shown: Browser) -> None:
    shown.value(
        "[...document.querySelectorAll('#kernel-table button')].find((b) => b.textContent === 'select').id = 's'"
    )
    shown.click("#s")
    told = shown.value("document.getElementById('kernel').textContent")
    assert "select for" in told
    assert "kq" in told
    before = shown.value("document.getElementById('kernel-table').textContent")
    shown.value("(document.getElementById('machine').value = 'B200', page.kernels.draw())")
    assert shown.value("document.getElementById('kernel-table').textContent") != before


@pytest.mark.full
def test_themes_help_and_letters(shown: Browser) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    before = shown.value(colour)
    shown.press("t")
    assert shown.value(colour) != before
    shown.press("?")
    assert shown.value("document.getElementById('help').open")
    assert shown.value("document.querySelectorAll('#keys dt').length") == shown.value("Object.keys(ACTIONS).length")
    shown.value("document.getElementById('help').close()")
    size = shown.value("getComputedStyle(document.querySelector('.row')).height")
    shown.press("+")
    assert shown.value("getComputedStyle(document.querySelector('.row')).height") != size
    shown.press("x")
    assert shown.value("document.body.dataset.dock") == "tall"
    assert not shown.errors


@pytest.mark.full
def test_an_address_brings_back_what_was_looked_at(browser: Browser, page: Path) -> None:
    browser.open(page, f"left=2&right=3&diff=1&theme=dark&line=x.py:{EINSUM}&find=topk")
    assert browser.value("page.at") == [2, 3]
    assert browser.value("page.diff")
    assert browser.value("document.documentElement.dataset.theme") == "dark"
    assert not browser.value("document.getElementById('found').hidden")
    browser.open(page, "left=99999&right=-1&diff=yes&theme=%3Cscript%3E&line=%3Cb%3E")
    assert browser.value("page.at.every((n) => n >= 0 && n < page.choices.length)")
    assert browser.value("document.documentElement.dataset.theme ?? null") is None


@pytest.mark.parametrize("width", [1600, 1280, 800])
def test_every_button_of_two_compilations_is_in_sight(
    browser: Browser, compilation: Compilation, tmp_path: Path, width: int
) -> None:
    """A projector is 1280 pixels wide, and larger letters make a screen smaller."""
    file = tmp_path / "report.html"
    file.write_text(html(Report((compilation, replace(compilation, name="other")))), "utf-8")
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=720, deviceScaleFactor=1, mobile=False)
    try:
        browser.open(file)
        found = browser.value(
            "[...document.querySelectorAll('header *, #dock button, #dock select')]"
            ".filter((e) => e.getBoundingClientRect().right > innerWidth).map((e) => e.outerHTML)"
        )
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
    assert found == []


@pytest.mark.full
def test_texts_of_5000_ops_stay_quick(browser: Browser, compilation: Compilation, tmp_path: Path) -> None:
    """Each op from a line of its own; a move of the pointer, a difference and a search take no longer than a blink."""
    lines = tuple(f"  %x{n} = flow.exp(%x{n - 1}) : f32[S, {n % 7}]" for n in range(5000))
    long = Text("long", "ir", lines, tuple((n % len(compilation.places),) for n in range(5000)))
    other = Text("other", "ir", tuple(x.replace("3]", "9]") for x in lines), long.places)
    report = Report((replace(compilation, texts=(*compilation.texts, long, other)),))
    file = tmp_path / "long.html"
    file.write_text(html(report), "utf-8")
    browser.open(file)
    assert not browser.errors
    browser.value("page.show(1, page.choices.length - 2)")
    assert browser.value("document.querySelectorAll('.row').length") < 300
    act = "page.hover([keyOf(page.compilations[0], {n})]); page.panes[1].revealLine({n} * 900); page.pin(page.hovered)"
    steps = ";".join(act.format(n=n) for n in range(5))
    took = browser.value(f"(() => {{ const t = performance.now(); {steps}; return performance.now() - t; }})()")
    assert took < 2000, "five times hover, scroll and choose"
    took = browser.value(
        "(() => { const t = performance.now(); page.compare(page.choices.length - 2, page.choices.length - 1);"
        " document.getElementById('search').value = 'exp x49'; page.search.run(); return performance.now() - t; })()"
    )
    assert took < 2000
    assert "rows differ" in browser.value("document.getElementById('differing').textContent")
    browser.press("Escape")


@pytest.mark.full
def test_a_damaged_page_says_so(browser: Browser, page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    broken = tmp_path / "broken.html"
    at = text.index('id="data">') + 1000
    broken.write_text(text[:at] + text[at + 5000 :])
    browser.open(broken)
    assert "damaged" in browser.value("document.getElementById('broken').textContent")
