"""What a policy or a config says is shown, and neither a page nor a terminal obeys it; no name leaves its folder."""

import ast
import io
import json
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

import tpg
import tpg.report
import tpg.train
from tpg.jobs.records import job_name
from tpg.training.judging_report import plain
from tpg.training.recording import ProgressLine

FILES = sorted(Path(tpg.__file__).parent.rglob("*.py"))
EVIL = '</script></pre><script>alert(1)</script><img src=x onerror=alert(1)>"\' onmouseover="x'
SMALL = [
    "debug=fast", "iterations=1", "task=sort", "task.train_size=16", "reward_model=[sorted_digits]", "logger=[csv]",
    "trainer=cpu", "reward_workers=1", "policy.hidden_size=32", "policy.layers=2", "evaluation.every=0",
]  # fmt: skip


def test_every_template_environment_escapes():
    found = 0
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("jinja2.Environment", "jinja2.Template")
            ):
                found += 1
                assert {each.arg: ast.unparse(each.value) for each in node.keywords}["autoescape"] == "True", file
    assert found == 1
    for template in Path(tpg.__file__).parent.rglob("*.j2"):
        assert "|safe" not in template.read_text().replace(" ", ""), template


class Elements(HTMLParser):
    """Tags and attributes that a browser would make."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_a_report_of_a_run_obeys_nothing_that_the_run_says(entry, tmp_path):
    run = tmp_path / "run"
    assert entry(tpg.train, *SMALL, f"run_dir={run}")[0] == 0
    (completion, *_) = (run / "completions.jsonl").read_text().splitlines()
    evil = {**json.loads(completion), "prompt": EVIL, "response": EVIL, "answer": EVIL, "reward": 1.0}
    (run / "completions.jsonl").write_text(json.dumps(evil) + "\n")
    for file in (run / "tokens").iterdir():
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [{**line, "prompt": EVIL, "tokens": [EVIL] * len(line["tokens"])} for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = {"iteration": 1, "guard": EVIL, "event": "began", "told": EVIL, "remedy": EVIL}
    (run / "guards.jsonl").write_text(json.dumps(said) + "\n")
    code, _, err = entry(tpg.report, f"runs={run}")
    assert (code, err) == (0, [])
    page = (run / "report" / "report.html").read_text()
    assert page.count("&lt;script&gt;alert(1)") >= 5
    seen = Elements(page)
    assert not {"script", "img", "iframe"} & seen.tags
    assert not {name for name in seen.attributes if name.startswith("on")}


MARKUP = ["[bold]x[/bold]", "[/]", "[/nope]", r"\[red]x", r"\\[red]x", "[link=file:///etc]x", "plain"]


@pytest.mark.parametrize("text", MARKUP, ids=range(len(MARKUP)))
def test_an_answer_is_printed_as_it_is(text):
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor")
    table = Table("answer", header_style="none", border_style="none")
    table.add_row(plain(text))
    console.print(table)
    assert f" {text} " in console.file.getvalue()


def test_an_answer_does_not_steer_the_terminal():
    console = Console(file=io.StringIO(), width=80)
    console.print(plain("a\x1b]0;title\x07b\x1b[2Jc\rd"))
    assert not set(console.file.getvalue()) & {"\x1b", "\x07", "\r"}


def test_a_warning_with_a_response_in_it_is_printed_as_it_is():
    console = Console(file=io.StringIO(), width=200)
    ProgressLine(1, console)._warn("ValueError: [/] [bold]x", "term")
    assert console.file.getvalue() == "warning: ValueError: [/] [bold]x\n"


def test_a_runs_own_folder_lies_in_outputs(monkeypatch, tmp_path):
    from types import SimpleNamespace

    from hydra.types import RunMode

    from tpg.jobs.configs import new_folder

    monkeypatch.chdir(tmp_path)
    hydra = SimpleNamespace(mode=RunMode.RUN)
    monkeypatch.setattr("tpg.jobs.configs.HydraConfig", SimpleNamespace(get=lambda: hydra))
    for method, name in {"../../etc/x-sort": "etc-x-sort", "/a-sort": "a-sort", "grpo-sort": "grpo-sort"}.items():
        folder = new_folder(SimpleNamespace(run_dir=None), method)
        assert folder.parent == tmp_path / "outputs" / name
        assert folder.name.startswith(str(datetime.now().year))


def test_a_jobs_folder_lies_in_the_sweep():
    for swept in (["task.path=../../x"], ["+a=/etc/passwd"], ["a=.."], ["../x=1"], ["a=..", "b=../.."]):
        name = job_name(swept)
        assert name == Path(name).name
        assert name not in ("", ".", "..")
