"""The page as a browser shows it: on a phone and on a desk, in light and in dark."""

import shutil

import pytest
from made_runs import completion, config, grpo, make_run, rows
from token_lines import write

from tpg.reporting.comparing.analysis import analyse
from tpg.reporting.comparing.options import ReportOptions
from tpg.reporting.comparing.page import write_report
from tpg.reporting.comparing.runs import find_runs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
LONG = "supercalifragilistic" * 12
CONTRASTS = """() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(c => c / 255)
      .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!colour.endsWith(', 0)')) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const told = 'h1, h2, h3, p, a, td, th, li, summary, pre, dt, figcaption, strong, figure svg text';
  return [...document.querySelectorAll(told)].map(node => {
      const style = getComputedStyle(node);
      const own = node.closest('svg') ? style.fill : style.color;
      const [a, b] = [light(own), light(behind(node))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), node.tagName, node.textContent.slice(0, 40)];
    });
}"""
WIDTHS = "[...document.querySelectorAll('figure svg')].map(each => each.getBoundingClientRect().width)"
OVERFLOWING = """() => [...document.querySelectorAll('body *')]
  .filter(node => !node.closest('.scroll') && !node.closest('svg')
    && (node.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
      || node.tagName === 'PRE' && node.scrollWidth > node.clientWidth))
  .map(node => node.tagName + ' ' + node.className)"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report with long names, long words and hostile completions."""
    top = tmp_path_factory.mktemp("sweep")
    hostile = (
        "</pre><script>document.title = 'taken'; fetch('http://127.0.0.1:9/')</script><img src='http://127.0.0.1:9/a'>"
    )
    lines = [completion(1.0, hostile), completion(0.0, LONG), completion(None, "\u202e" + LONG)]
    for seed in range(3):
        for make in (config, grpo):
            made = rows([0.1, 0.3, 0.5, 0.6 + seed / 20], **{"eval/reward": [0.1, "", 0.4, ""]})
            given = make(seed, policy__path=f"/models/{LONG}" if make is grpo else "short")
            folder = top / f"{make.__name__}-{LONG[:60]}-seed{seed}"
            write(make_run(folder, given, made, lines, final=0.6 + seed / 20))
    make_run(top / "stopped", config(9), rows([0.1, 0.3], **{"eval/reward": [0.1, ""]}), finished=False)
    asked = ReportOptions(runs=str(top))
    return write_report(analyse(find_runs(asked.places), asked), top / "report", f"tpg report: {top}")[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_is_quiet_and_can_be_read(browser, page_file, width, scheme, tmp_path):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said, asked_for = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked_for.append(request.url))
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert said == []
    assert asked_for == [page_file.as_uri()]
    assert page.title().startswith("tpg report: ")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(OVERFLOWING) == []
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert [each for each in contrasts if each[0] < 4.5] == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(ground.removeprefix("rgb(").split(",")[0])
    assert red > 200 if scheme == "light" else red < 50
    boxes = page.evaluate(
        "[...document.querySelectorAll('figure svg')].map(each => each.getBoundingClientRect().width)"
    )
    assert len(boxes) == 4
    assert all(250 < box <= width for box in boxes)
    page.close()
