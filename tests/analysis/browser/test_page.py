"""The report in a real browser: Chromium, headless, opening the file as a double click does.

Screenshots go to build/screenshots.
"""

import shutil

import pandas as pd
import pytest
from playwright.sync_api import expect, sync_playwright
from pypdf import PdfReader

from tests.analysis.made_up import made_up_grid, made_up_run
from tests.conftest import ROOT
from unlearn.cli.main import main

pytestmark = pytest.mark.browser
SCREENSHOTS = ROOT / "build" / "screenshots"
# As root in a container, and without Chromium's own calls home.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HANGS = 300_000  # ms: no test is about time, and a busy machine needs long for ten thousand runs
expect.set_options(timeout=HANGS)
SHOWN = """([column, texts]) => {
  const cells = [...document.querySelectorAll(`#runs tbody td:nth-child(${column})`)];
  return cells.map(cell => cell.innerText).filter(text => text !== "–").join() === texts;
}"""
FIGURES = ("figure_1", "figure_3", "figure_4", "trade_off", "training")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    main(["report", str(made_up_grid(folder / "runs")), "--paper", "-o", str(folder / "report.html")])
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium():
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    assert executable, "Chromium is not installed: make test-browser installs it."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Open a page; afterwards it must have complained of nothing and asked the network for nothing."""
    complaints, requests, contexts = [], [], []

    def open_page(file, *, width=1200, height=900, scheme="light"):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
        )
        contexts.append(context)
        context.set_default_timeout(HANGS)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def picture(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def column(page, number):
    """The cells of a column of the table of all runs, as they are shown."""
    return page.locator(f"#runs tbody tr td:nth-child({number})").all_inner_texts()


def headings(page):
    return [text.strip() for text in page.locator("#runs thead th").all_inner_texts()]


def test_all_figures_are_drawn(opened, report):
    page = opened(report)
    for name in FIGURES:
        marks = page.locator(f"#{name} svg [aria-roledescription]").count()
        assert marks > 5, name
        box = page.locator(f"#{name} svg").first.bounding_box()
        assert box["width"] > 300
        assert box["height"] > 150
    assert page.locator("#s-figure_2").count() == 0  # no coefficient varies
    titles = page.locator("main h2").all_inner_texts()
    assert titles[:2] == ["Forgetting against what is retained", "Results by setting"]
    picture(page, "light")


def test_sorting_and_filtering(opened, report):
    page = opened(report)
    names = headings(page)
    retained = names.index("retain, perturbed") + 1
    heading = page.locator(f"#runs thead th:nth-child({retained})")
    page.locator("#runs_wrapper .dt-length select").select_option("-1")
    for order, backwards in (("ascending", False), ("descending", True)):
        heading.locator(".dt-column-title").click()
        expect(heading).to_have_attribute("aria-sort", order)
        shown = [text for text in column(page, retained) if text != "–"]
        assert len(shown) == 34
        wanted = sorted(shown, key=float, reverse=backwards)
        page.wait_for_function(SHOWN, arg=[retained, ",".join(wanted)])  # the rows follow a moment later
    page.locator("#runs_wrapper .dt-search input").fill("adaptive")
    assert set(column(page, names.index("method") + 1)) == {"Adaptive RMU"}
    assert len(column(page, 1)) == 12
    page.locator("#runs_wrapper .dt-search input").fill("")
    seed = page.locator(f"#runs thead th:nth-child({names.index('seed') + 1})")
    seed.locator("button.dtcc-button_searchDropdown, .dtcc-button").first.click()
    page.locator(".dtcc-dropdown input").first.fill("2")
    assert set(column(page, names.index("seed") + 1)) == {"2"}


def test_without_scripts_the_tables_are_there(chromium, report):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri(), timeout=HANGS)
    assert page.locator("#runs").is_visible()
    assert page.locator("#runs tbody tr").count() == 35
    context.close()


@pytest.mark.parametrize("library", ['<script type="text/plain" id="datatables">', "<script>"])
def test_if_a_library_fails_the_tables_are_there(chromium, report, tmp_path, library):
    """The one for tables, which is text until it is imported, or the one for figures."""
    broken = tmp_path / "broken.html"
    before, found, after = report.read_text().partition(library)
    broken.write_text(f"{before}{found}]{after}")
    page = chromium.new_page()
    page.goto(broken.as_uri(), timeout=HANGS)
    expect(page.locator("#runs")).to_be_visible()
    assert page.locator("#runs tbody tr").count() == 35
    page.close()


def test_sorting_with_the_keyboard_alone(opened, report):
    page = opened(report)
    names = headings(page)
    page.locator("#runs thead th .dt-column-order").nth(names.index("ν")).focus()
    heading = page.locator("#runs thead th").nth(names.index("ν"))
    for order in ("ascending", "descending"):
        page.keyboard.press("Enter")
        expect(heading).to_have_attribute("aria-sort", order)
    expect(page.locator(f"#runs tbody tr:first-child td:nth-child({names.index('ν') + 1})")).to_have_text("0.3")


def test_the_first_tab_leads_to_a_link_past_the_navigation(opened, report):
    page = opened(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main"


def test_a_figure_tells_its_numbers_and_missing_seeds(opened, report):
    page = opened(report)
    point = page.locator("#figure_3 svg path[aria-roledescription='point'][aria-label*='seed 2 not there']").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "seed 2 not there" in page.locator("#vg-tooltip-element").inner_text()


def test_the_data_behind_a_figure_can_be_saved(opened, report, tmp_path):
    page = opened(report)
    with page.expect_download() as download:
        page.locator("#s-figure_3 .data a").click()
    download.value.save_as(tmp_path / "figure_3.csv")
    rows = pd.read_csv(tmp_path / "figure_3.csv")
    assert set(rows["method"]) == {"RMU", "Adaptive RMU", "RSV"}


def test_dark_and_light(opened, report):
    page = opened(report, scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 27)"
    label = "getComputedStyle(document.querySelector('#figure_3 svg text')).fill"
    assert page.evaluate(label) == "rgb(230, 231, 234)"
    picture(page, "dark")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(label) == "rgb(27, 27, 31)"


def test_on_a_phone_the_page_does_not_scroll_sideways(opened, report):
    page = opened(report, width=360, height=740)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for name in FIGURES:
        assert page.locator(f"#{name} svg").first.bounding_box()["width"] <= 360, name
    picture(page, "phone")


def test_printing_shows_all_rows_in_black_on_white(opened, report, tmp_path):
    page = opened(report, scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(column(page, 1)) == 35
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.emulate_media(media="print")
    assert page.get_by_label("Sections").is_hidden()
    page.pdf(path=SCREENSHOTS / "print.pdf", prefer_css_page_size=True)
    sheets = PdfReader(SCREENSHOTS / "print.pdf").pages
    text = "".join("".join(sheet.extract_text() for sheet in sheets).split())
    assert "rsv-0.3-1" in text  # the last column of the table
    assert float(sheets[0].mediabox.width) > float(sheets[0].mediabox.height)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert len(column(page, 1)) == 15


def test_two_thousand_runs(opened, tmp_path):
    for number in range(2_000):
        nu, seed = 0.001 * (number % 400), number // 400
        made_up_run(tmp_path / f"runs/{number}", nu=nu, seed=seed, samples=False)
    main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "report.html")])
    assert (tmp_path / "report.html").stat().st_size < 20 * 2**20
    page = opened(tmp_path / "report.html")
    assert "of 2,000 entries" in page.locator("#runs_wrapper .dt-info").inner_text()
    page.locator("#runs_wrapper .dt-search input").fill("0.123")
    assert page.locator("#runs tbody tr").count() == 5
