"""`report.html` in a real browser: quiet, readable in either scheme, on a phone, on paper, and by who cannot see it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from exporter.verification.report.page import html_from_sections
from exporter.verification.report.records import DriftChart, DriftSeries
from exporter.verification.report.sections import section_from_check

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the package playwright is not here; it is among the tools of the dev group"
)
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")

WIDE, PHONE = 1100, 360
Scheme = Literal["light", "dark"]
CONTRASTS = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const ratio = (one, other) => { const [low, high] = [light(one), light(other)].sort((a, b) => a - b); return (high + 0.05) / (low + 0.05); };
  const behind = node => { for (; node; node = node.parentElement) {
    const found = channels(getComputedStyle(node).backgroundColor); if (found.length === 3 || found[3] > 0) return found; } };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const style = getComputedStyle(node), drawn = node instanceof SVGElement, text = node.textContent.trim();
    const says = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (says && node.getClientRects().length) found.push([text, 'text', ratio(channels(drawn ? style.fill : style.color), behind(node))]);
    if (node.matches('[style*="stroke: var(--series"]')) found.push([node.tagName, style.stroke, ratio(channels(style.stroke), behind(node))]);
  }
  return found;
}"""
"""Of all that is shown: [what, `text` or a series' colour, contrast to what is behind] (WCAG 2.2, 1.4.3, 1.4.11)."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(good: Any, turned: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles: one with nothing to complain of, one with flips and drift."""
    blocks = ("stem", *(f"layer{stage}.{block}" for stage in range(1, 5) for block in range(12)), "head")
    steps = [
        DriftSeries(step, blocks, tuple(1e-3 * scale for scale in range(1, 51)), (60.0,) * 50)
        for step in ("FP32 ONNX", "model.onnx", "simulation")
    ]
    path = tmp_path_factory.mktemp("page") / "report.html"
    drifting = replace(
        section_from_check(*turned), drift=DriftChart(tuple(steps), "Block layer1.0 is the first out of line.")
    )
    path.write_bytes(html_from_sections([section_from_check(*good), drifting]))
    return path


def opened(browser: Browser, path: Path, *, scheme: Scheme = "light", width: int = WIDE) -> tuple[Page, list[str]]:
    """The page, and all that it complained of or asked for beside itself."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []

    def asked(request: Request) -> None:
        if not request.url.startswith(("data:", path.as_uri())):
            said.append(request.url)

    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", asked)
    page.goto(path.as_uri())
    return page, said


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_quiet_and_no_wider_than_the_screen(
    browser: Browser, page_file: Path, scheme: Scheme, width: int
) -> None:
    page, said = opened(browser, page_file, scheme=scheme, width=width)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert said == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_what_is_behind_them(browser: Browser, page_file: Path, scheme: Scheme) -> None:
    page, _ = opened(browser, page_file, scheme=scheme)
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    found = page.evaluate(CONTRASTS)
    texts = [(ratio, what) for what, kind, ratio in found if kind == "text"]
    lines = [(ratio, kind) for _, kind, ratio in found if kind != "text"]
    assert len(texts) > 300
    assert len({kind for _, kind in lines}) == 3
    assert min(texts)[0] >= 4.5, min(texts)
    assert min(lines)[0] >= 3, min(lines)
    page.close()


def test_plots_follow_the_scheme(browser: Browser, page_file: Path) -> None:
    page, _ = opened(browser, page_file)
    asked = "() => ['svg text', 'svg path[style*=series-1]'].map(one => getComputedStyle(document.querySelector(one))).map(one => one.fill + one.stroke)"
    light = page.evaluate(asked)
    page.emulate_media(color_scheme="dark")
    assert all(one != other for one, other in zip(light, page.evaluate(asked), strict=True))
    page.close()


def test_who_cannot_see_the_page_is_told_all_of_it(browser: Browser, page_file: Path) -> None:
    page, _ = opened(browser, page_file)
    tree = page.locator("body").aria_snapshot()
    for line in (
        "- banner:",
        '- navigation "Bundles":',
        "- main:",
        "- contentinfo:",
        '- heading "Parity of 2 bundles" [level=1]',
        '- region "tiny-turned":',
        '- img "How far the outputs of tiny-turned are off"',
        '- img "Relative error after each block"',
        '- table "What the budget allows, and what each backend needed of it":',
        '- columnheader "onnxruntime"',
        '- rowheader "Top-1 agreement"',
    ):
        assert line in tree
    levels = page.locator("h1, h2, h3, h4, h5, h6").evaluate_all("all => all.map(one => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(level <= before + 1 for before, level in pairwise(levels))
    nameless = {
        "table:not(:has(> caption))": "tables",
        "th:not([scope])": "headings of tables",
        "img:not([alt])": "pictures",
        "svg:not([role=img][aria-labelledby])": "plots",
        ".scroll:not([tabindex='0'][role=group][aria-label])": "what only a mouse could scroll",
    }
    assert {what: page.locator(wrong).count() for wrong, what in nameless.items()} == dict.fromkeys(
        nameless.values(), 0
    )
    page.close()


def test_on_paper_it_is_black_on_white_and_nothing_stays_folded(browser: Browser, page_file: Path) -> None:
    page, _ = opened(browser, page_file, scheme="dark")
    row = page.locator("details td", has_text="FP32").first
    assert not row.is_visible()
    page.emulate_media(media="print", color_scheme="dark")
    assert row.is_visible()
    assert not page.locator("nav").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF-")
    page.close()


def test_the_browser_itself_would_refuse_the_network_and_scripts(
    browser: Browser, page_file: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed.html"
    hostile = '<img src="https://example.invalid/x.png" alt=""><script>console.log("it ran")</script></body>'
    changed.write_text(page_file.read_text(encoding="utf-8").replace("</body>", hostile), encoding="utf-8")
    page, said = opened(browser, changed)
    refused = [one for one in said if "Content Security Policy" in one]
    assert [any(kind in one for one in refused) for kind in ("img-src", "script-src", "example.invalid")] == [True] * 3
    assert "it ran" not in said
    page.close()
