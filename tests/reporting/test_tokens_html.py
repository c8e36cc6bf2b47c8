"""Groups of responses as a piece of a page."""

from html.parser import HTMLParser

import pytest
from token_lines import line, write

from tpg.reporting.tokens.html import groups_html
from tpg.reporting.tokens.record import read_groups


@pytest.fixture
def groups(tmp_path):
    return read_groups(write(tmp_path))


class Page(HTMLParser):
    """The text, the elements that are left open, and each token's style and title."""

    def __init__(self, page):
        super().__init__()
        self.text, self.open, self.tokens, self.names = "", [], [], set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.names.add(tag)
        if "title" in dict(attrs):
            self.tokens.append((dict(attrs)["title"], dict(attrs).get("style")))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_token_has_its_weight_as_ground_and_its_change_as_line(groups):
    page = groups_html(groups)
    assert (
        '<span title="weight +0.5, log-prob -0.5000, change +0.1" style="background:rgba(22,163,74,0.33);'
        'border-bottom:.18em solid rgba(22,163,74,0.33)">1</span>'
    ) in page
    # The least to be seen is a tenth: 0.02 of 0.3 is less.
    assert Page(page).tokens[1][1].endswith("solid rgba(22,163,74,0.10)")
    assert Page(page).tokens[2][1] == "background:rgba(22,163,74,0.33)"
    assert Page(page).tokens[3][1].startswith("background:rgba(220,38,38,0.33);")
    assert Page(page).tokens[9] == ("weight +1, log-prob -1.0000, change 0", "background:rgba(22,163,74,0.65)")
    unmoved = '<span title="weight 0, log-prob -1.5000, change 0">⇥␛[31m</span>'
    assert unmoved in page


def test_it_is_well_formed_and_stands_by_itself(groups):
    page = Page(groups_html(groups))
    assert page.open == []
    assert page.names == {"p", "span", "section", "div"}
    assert len(page.tokens) == 11
    assert "iteration 4, prompt 3 of 3 (row 4, draw 0): 3 responses, reward 0.625 ± 0.177, 1 unscored" in page.text
    assert "response 2: unscored (sorted failed, length 0.500)" in page.text
    assert "answer: 45" in page.text


def test_text_is_escaped_wherever_it_comes_from(tmp_path):
    evil = "<script>\"&'\x1b"
    lines = [line(1, 0, evil, evil, 0, [evil], [-1.0], [1.0], [0.0], 1.0, rewards={evil: 1.0})]
    page = groups_html(read_groups(write(tmp_path, lines=lines)))
    assert "<script" not in page
    assert "\x1b" not in page
    assert Page(page).text.count("<script>\"&'␛") == 4


def test_the_page_keeps_its_own_text_and_ground(groups):
    page = groups_html(groups)
    assert ";color:" not in page
    assert '"color:' not in page
    grounds = page.count("background:")
    assert grounds == page.count("background:rgba(")


def test_only_what_is_shown_and_nothing_of_nothing(groups):
    (picked,) = [group.showing(lambda response: response.truncated) for group in groups[:1]]
    assert len(Page(groups_html([picked])).tokens) == 2
    assert Page(groups_html([])).tokens == []
