"""Pipelines in processes of their own, killed or told to stop inside a stage and continued."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from processes import VARIABLES, has_rows, reproducible
from small_pipelines import declared

LONGER = ["second:iterations=30", "first:iterations=2", "judged:evaluation.prompts=4"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return tmp_path_factory.mktemp("here")


def start(here, *arguments):
    with (here / "log").open("w") as log:
        command = [sys.executable, "-m", "tpg.pipeline", *arguments]
        environment = {**os.environ, **VARIABLES, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=here)


def finished(here, *arguments):
    process = start(here, *arguments)
    assert process.wait(timeout=400) == 0, (here / "log").read_text()[-3000:]
    return (here / "log").read_text()


@pytest.fixture(scope="module")
def undisturbed(here):
    finished(here, *declared(here), "run_dir=undisturbed", *LONGER)
    return here / "undisturbed"


def same(run, other):
    for stage in ("first", "apart", "second"):
        assert reproducible(run / stage) == reproducible(other / stage)
        for place in sorted((other / stage / "policy").glob("*.safetensors")):
            assert (run / stage / "policy" / place.name).read_bytes() == place.read_bytes()
    reports = [json.loads((each / "judged" / "report.json").read_text()) for each in (run, other)]
    assert reports[0] == reports[1]
    assert len(reports[0]["estimates"]) > 1


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_continued_inside_a_stage_the_numbers_are_those_of_an_undisturbed_pipeline(here, undisturbed, number):
    run = here / number.name
    given = [*declared(here), f"run_dir={run.name}", *LONGER]
    process = start(here, *given)
    deadline = time.monotonic() + 400
    while process.poll() is None and not has_rows(3)(run / "second") and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    code = process.wait(timeout=100)
    said = (here / "log").read_text()
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], said[-3000:]
    assert not (run / "second" / "summary.json").exists()
    begun = {stage: (run / stage / "summary.json").stat().st_mtime_ns for stage in ("first", "apart")}
    if number == signal.SIGKILL:
        said = finished(here, *given)
    else:
        assert f"interrupted; continue with: python -m tpg.pipeline resume={run}" in said
        said = finished(here, f"resume={run}")
    assert "apart: nothing has changed, skipped" in said
    assert "second: goes on" in said
    assert "continuing after iteration" in said
    assert {stage: (run / stage / "summary.json").stat().st_mtime_ns for stage in begun} == begun
    assert not (run / "outdated").exists()
    same(run, undisturbed)
