"""The page, the Markdown table and the JSON of a report."""

import json
import re
from html.parser import HTMLParser

import pytest
from made_runs import completion, config, grpo, make_run, rows
from token_lines import line, write

from tpg.reporting.comparing import pictures
from tpg.reporting.comparing.analysis import analyse
from tpg.reporting.comparing.options import ReportOptions
from tpg.reporting.comparing.page import NOTHING, amount, headline, html, markdown, number, write_report
from tpg.reporting.comparing.runs import find_runs

EVIL = "</pre><script>alert('x')</script><img src=x onerror=alert(1)>"


class Reader(HTMLParser):
    """Tags with their attributes, and the text outside of style."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "br", "img", "use", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in ("use", "path"):
            assert self.open.pop() == tag
        # what is left open at the end would be a page that is put together wrongly

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def report(tmp_path):
    lines = [
        completion(1.0, EVIL, prompt=EVIL, answer=EVIL, rewards={EVIL: 1.0, "b": 0.0}),
        completion(0.0, "fine", finish=EVIL),
        completion(None, f"no number {EVIL}"),
    ]
    held_out = {"eval/reward": [0.1, "", 0.3, ""]}
    for seed, reward in enumerate((0.5, 0.6, 0.7)):
        make_run(tmp_path / f"a{seed}", config(seed), rows([0.1, 0.2, 0.4, reward], **held_out), final=reward)
        made = rows([0.2, 0.4, 0.7, reward + 0.2], tokens=50, **held_out)
        make_run(tmp_path / f"b{seed}", grpo(seed), made, lines, final=reward + 0.2)
    write(tmp_path / "b0", 4, [line(0, 0, EVIL, EVIL, 0, [EVIL], [-0.5], [1.0], [0.1], 1.0)])
    make_run(tmp_path / "c", grpo(3, optimizer__lr=EVIL), rows([0.1, 0.1], **{"eval/reward": [0.1, 0.2]}), lines)
    (tmp_path / "c" / "summary.json").unlink()
    asked = ReportOptions(runs=str(tmp_path))
    return analyse(find_runs(asked.places), asked)


def test_the_page_holds_nothing_that_runs_or_is_fetched(report):
    page = Reader(html(report, f"title {EVIL}"))
    assert page.open == []
    assert page.all("script") == page.all("img") == page.all("iframe") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("href", "src")]
    assert links
    assert all(link.startswith(("#", "data:,")) for link in links)
    assert page.text.count(EVIL) >= 8  # it is shown as text: title, prompt, response, answer, term, finish, setting
    assert "@import" not in html(report, "")
    assert "url(" not in re.sub(r"url\(#\w+\)", "", html(report, ""))


def test_every_place_that_is_linked_to_is_there(report):
    page = Reader(html(report, "title"))
    here = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    targets = {attributes["href"][1:] for attributes in page.all("a")}
    assert targets == {"runs", "curves", "final", "cost", "settings", "completions", "warnings"}
    assert targets <= here
    assert {each["aria-labelledby"] for each in page.all("section") if "aria-labelledby" in each} <= here
    assert {each["xlink:href"][1:] for each in page.all("use")} <= here


def test_the_page_is_said_as_well_as_shown(report):
    page = Reader(html(report, "title"))
    assert page.all("html")[0]["lang"] == "en"
    assert all("aria-label" in each or each.get("aria-hidden") == "true" for each in page.all("svg"))
    assert all(each.get("scope") in ("col", "row", "colgroup") for each in page.all("th"))
    assert len(page.all("h1")) == 1
    assert len([each for each in page.all("svg") if each.get("role") == "img"]) == 4


def test_pictures_take_the_pages_ink_and_width(report):
    page = html(report, "title")
    assert "currentColor" in page
    assert "#0a0b0c" not in page
    pictures = [each for each in Reader(page).all("svg") if each.get("role") == "img"]
    assert all("width" not in each and "viewbox" in each for each in pictures)


def test_the_headline_says_who_is_ahead(report):
    # The unfinished run with a key of its own is a third method, and ends with 0.2.
    told = headline(report)
    assert told.startswith(
        "7 runs of 3 methods, 1 of them unfinished. grpo · lr=1e-05 is ahead with a held-out reward of 0.800"
        " (95 % bootstrap interval 0.700 to 0.900); a run of it beats one of rloo · lr=1e-05 with probability 0.94"
        " (95 % bootstrap interval 0."
    )
    assert told.endswith(" to 1.000).")


def test_the_markdown_table_can_be_pasted(report):
    lines = markdown(report, "a|b").splitlines()
    assert lines[0] == "### a\\|b"
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 3
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    assert all(len(row) == 7 for row in cells)
    assert cells[2][:2] == ["grpo · lr=1e-05", "3"]
    assert cells[2][2] == "0.800 [0.700, 0.900, 95 % bootstrap interval]"
    # The seven runs start at 1/7 on average, the best method ends at 0.8: half-way is 0.471. Its means of three are
    # 0.2, 0.3, 0.43, 0.6.
    assert cells[2][4:] == ["4 iterations, 200 tokens", "200", "8 s"]
    assert cells[4][1] == "1 (1 unfinished)"
    assert "<script" not in markdown(report, "a").replace("\\<script", "")


def test_the_json_holds_the_numbers(report, tmp_path):
    written = write_report(report, tmp_path / "report", "title")
    assert [path.name for path in written] == ["report.html", "report.md", "report.json", "curves.png", "final.png"]
    assert all(path.stat().st_size > 300 for path in written)

    def refuse(constant):
        raise AssertionError(constant)

    numbers = json.loads(written[2].read_text(), parse_constant=refuse)
    best = numbers["methods"][0]
    assert best["settings"] == {"algorithm": "grpo", "optimizer.lr": "1e-05"}
    assert best["performance"]["scores"] == pytest.approx([0.7, 0.8, 0.9])
    assert best["cost"] == {"seconds": 8, "tokens": 200, "throughput": 25}
    assert best["curves"]["training reward by iteration"]["x"] == [1, 2, 3, 4]
    assert numbers["measure"] == "eval/reward"
    assert {each["name"]: each["finished"] for each in numbers["runs"]}["c"] is False
    assert numbers["warnings"][0]["title"] == "Unfinished"


def test_a_single_run_without_evaluation_makes_a_page_too(tmp_path):
    make_run(tmp_path / "a", config(), rows([0.5, 0.4]), finished=False)
    asked = ReportOptions(runs=str(tmp_path))
    report = analyse(find_runs(asked.places), asked)
    page = Reader(html(report, "title"))
    assert headline(report) == (
        "1 run of 1 method, 1 of them unfinished. rloo ends at a training reward of 0.400 (one run)."
    )
    assert len([each for each in page.all("svg") if each.get("role") == "img"]) == 2
    assert "No completions were found" in page.text
    assert "settings" not in {each.get("id") for each in page.all("section")}


@pytest.mark.parametrize("shown", [1, 2, 3, 4])
def test_any_number_of_pictures_makes_one(tmp_path, monkeypatch, shown):
    make_run(tmp_path / "a", config(), rows([0.5, 0.4]))
    asked = ReportOptions(runs=str(tmp_path))
    report = analyse(find_runs(asked.places), asked)
    monkeypatch.setattr(pictures, "panels", lambda report: pictures.PANELS[:shown])
    pictures.draw_curves(tmp_path / "curves.png", report)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_no_method_is_said_to_be_ahead_of_its_equal(tmp_path):
    make_run(tmp_path / "a", config(), rows([0.1, 0.4]))
    make_run(tmp_path / "b", grpo(), rows([0.2, 0.4]))
    asked = ReportOptions(runs=str(tmp_path))
    assert headline(analyse(find_runs(asked.places), asked)) == (
        "2 runs of 2 methods, 2 of them unfinished. No method is ahead: rloo and grpo both end at a training reward of"
        " 0.400 (one run)."
    )


def test_many_methods_make_a_page_too(tmp_path):
    for i in range(12):
        make_run(tmp_path / f"{i}", config(optimizer__lr=10.0**-i), rows([0.1, 0.2, 0.3, i / 12]))
    asked = ReportOptions(runs=str(tmp_path))
    report = analyse(find_runs(asked.places), asked)
    assert len(report.improvements) == 11  # the best with each
    assert "4 others" in Reader(html(report, "title")).text
    write_report(report, tmp_path / "report", "title")


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0"), (7.0, "7"), (71.46, "71.5"), (123.4, "123"), (12345.0, "12.3k"), (4.56e6, "4.56M")]
)
def test_amounts_are_short(value, shown):
    assert amount(value) == shown


def test_numbers_have_three_digits_and_nothing_has_a_dash():
    assert (number(0.12345), number(12345.6), number(None), number(float("nan"))) == (
        "0.123",
        "1.235e+04",
        NOTHING,
        NOTHING,
    )
