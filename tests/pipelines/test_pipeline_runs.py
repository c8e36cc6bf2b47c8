"""What runs, what is skipped and what runs again; every stage trains, in this process instead of one of its own."""

import json
import os
import signal
import threading

import pytest
import yaml
from docs_commands import PAGES, commands
from processes import reproducible
from small_pipelines import STAGES, declared

import tpg.pipeline
from tpg.errors import Interrupted
from tpg.pipelines import running

ALL = list(STAGES)


@pytest.fixture
def ran(in_process, tmp_path):
    """Runs the small pipeline, and goes on with it."""
    given = declared(tmp_path)

    def call(*arguments):
        chosen = [] if any(word.startswith("resume=") for word in arguments) else given
        return in_process(*chosen, *arguments)

    call.here = in_process.here
    return call


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_what_has_not_changed_is_skipped_and_what_has_runs_again_with_what_depends_on_it(ran, tmp_path):
    run = tmp_path / "run"
    code, begun, _, err = ran("run_dir=run")
    assert (code, begun, err) == (0, ALL, [])
    assert "reward" in (run / "judged" / "output.txt").read_text()
    source = json.loads((run / "second" / "policy" / "config.json").read_text())
    assert source["hidden_size"] == 16  # the policy that the first stage left

    before = contents(run / "first") | contents(run / "apart")
    everything = contents(run)
    code, begun, out, _ = ran("run_dir=run")
    assert (code, begun) == (0, [])
    assert out.count("nothing has changed, skipped") == 4
    changed = {path for path, time in contents(run).items() if everything.get(path) != time}
    assert changed == {run / "pipeline.yaml", run / "pipeline" / "lock"}

    old = reproducible(run / "second")
    code, begun, out, _ = ran("run_dir=run", "second:optimizer.lr=1e-3")
    assert (code, begun) == (0, ["second", "judged"])
    assert f"optimizer.lr is 0.001 and was 0.01; what it left is kept in {run}/outdated/second-1" in out
    assert f"judged: second/policy is another; what it left is kept in {run}/outdated/judged-1" in out
    assert reproducible(run / "outdated" / "second-1") == old != reproducible(run / "second")
    assert contents(run / "first") | contents(run / "apart") == before

    assert ran("run_dir=run", "second:optimizer.lr=1e-3", "second:trainer.timeout_s=9")[1] == []  # it changes no number
    assert ran(f"resume={run}")[1] == []  # it knows what was given
    code, begun, _, _ = ran("run_dir=run", "second:optimizer.lr=1e-3", "seed=1")
    assert (code, begun) == (0, ["first", "second", "judged"])


@pytest.mark.long
def test_a_stage_whose_folder_is_gone_or_that_is_asked_for_runs_again(ran, tmp_path):
    run = tmp_path / "run"
    assert ran("run_dir=run")[0] == 0
    (run / "apart").rename(tmp_path / "elsewhere")
    (run / "judged" / "output.txt").unlink()
    assert ran("run_dir=run")[1] == ["apart", "judged"]
    code, begun, out, _ = ran("run_dir=run", "rerun=[apart]")
    assert (code, begun) == (0, ["apart"])
    assert f"it is to run again; what it left is kept in {run}/outdated/apart-1" in out
    assert reproducible(run / "apart") == reproducible(tmp_path / "elsewhere")


def test_a_failing_stage_ends_the_pipeline_and_its_resume_begins_there(ran, tmp_path, monkeypatch):
    run, here = tmp_path / "run", ran.here

    def failing(command, lock, variables, output=None):
        if f"run_dir={run}/second" in command:
            return 7
        return here(command, lock, variables, output)

    monkeypatch.setattr(running, "run_stage", failing)
    code, begun, _, err = ran("run_dir=run")
    assert (code, begun) == (7, ["first", "apart"])
    told = f"second: ended with code 7; once that is put right, continue with: python -m tpg.pipeline resume={run}"
    assert err == [f"error: {told}"]
    monkeypatch.setattr(running, "run_stage", here)
    begun_before = contents(run / "first")
    code, begun, _, err = ran(f"resume={run}")
    assert (code, begun, err) == (0, ["second", "judged"], [])
    assert contents(run / "first") == begun_before


@pytest.mark.long
def test_one_that_was_interrupted_is_continued_and_one_that_was_changed_meanwhile_is_not(ran, tmp_path, monkeypatch):
    run, here = tmp_path / "run", ran.here

    def interrupted(command, lock, variables, output=None):
        code = here(command, lock, variables, output)
        if f"run_dir={run}/second" in command:
            (run / "second" / "summary.json").unlink()  # the last that a stage writes
            raise Interrupted(15)
        return code

    monkeypatch.setattr(running, "run_stage", interrupted)
    code, begun, _, err = ran("run_dir=run")
    assert (code, begun) == (143, ["first", "apart", "second"])
    assert err == [f"interrupted; continue with: python -m tpg.pipeline resume={run}"]
    monkeypatch.setattr(running, "run_stage", here)
    assert ran("run_dir=run")[1] == ["second again", "judged"]
    (run / "second" / "summary.json").unlink()
    assert ran("run_dir=run", "second:seed=3")[1] == ["second", "judged"]
    assert (run / "outdated" / "second-1" / "checkpoints").is_dir()


def test_a_signal_between_two_stages_ends_the_pipeline_too(ran, tmp_path, monkeypatch):
    run, here = tmp_path / "run", ran.here

    def last_moment(command, lock, variables, output=None):
        listening = signal.getsignal(signal.SIGTERM)
        code = here(command, lock, variables, output)
        signal.signal(signal.SIGTERM, listening)  # which a process of its own leaves as it was
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return code

    monkeypatch.setattr(running, "run_stage", last_moment)
    code, begun, _, err = ran("run_dir=run")
    assert (code, begun) == (143, ["first"])
    assert err == [f"interrupted; continue with: python -m tpg.pipeline resume={run}"]


MISTAKES = [
    (["judged:evaluation.promts=3"], "judged: evaluation.promts: no such key; evaluation has", "did you mean prompts?"),
    (["second:optimizer.lr=-1"], "second: optimizer.lr=-1", "greater than 0"),
    (["second:rollout.responses_per_prompt=1"], "second: rollout.responses_per_prompt=1: estimator RLOO", "at least 2"),
    (["second:task=dataset", "second:task.path=absent.jsonl"], "second: task.path=absent.jsonl: no such file", ""),
    (["second:policy.path=${stage:frist}/policy"], "second: ${stage:frist}: no stage of this name", "mean first?"),
    (["secnd:seed=1"], "secnd:seed=1: no stage of this name; there are first, apart, second, judged", "mean second?"),
    (["second:policy.path=./absent"], "second: policy.path=./absent: no such folder", ""),
    (["rerun=[x]"], "rerun=x: no stage of this name", ""),
    (["-m", "seed=1,2"], "-m: a pipeline runs one stage after the other", ""),
    (["resume=absent"], "resume=absent: holds no pipeline", ""),
    (["pipelin=small"], "pipelin", ""),
    (["second:logger.csv.api_key=hf_abcdefghijklmnopqrstuvwxyz"], "logger.csv.api_key", ""),
]


@pytest.mark.parametrize(("arguments", "begins", "holds"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_in_any_stage_ends_in_one_line_before_the_first(ran, tmp_path, arguments, begins, holds):
    code, begun, out, err = ran("run_dir=run", *arguments)
    assert (code, begun, out, len(err)) == (2, [], "", 1), err
    assert err[0].startswith(f"error: {begins}")
    assert holds in err[0]
    assert not (tmp_path / "run").exists()


def test_a_declaration_is_checked_too(ran, tmp_path):
    file = tmp_path / "own" / "pipeline" / "small.yaml"
    for stages, told in (
        ({"a": {"entry": "trian"}}, "error: pipeline.stages.a.entry=trian: "),
        ({"a": {"entry": "train", "override": []}}, "error: pipeline.stages.a.override: no such key; Stage has entry"),
        ({}, "error: pipeline.stages"),
    ):
        file.write_text(yaml.safe_dump({"stages": stages}))
        code, _, _, err = ran("run_dir=run")
        assert (code, len(err)) == (2, 1)
        assert err[0].startswith(told)
    assert not (tmp_path / "run").exists()


SHIPPED = [
    (["pipeline=rlhf"], "trained"),
    (["pipeline=rlhf", "train:experiment=rlhf/ppo"], "trained"),
    (["pipeline=rlhf_far"], "far_trained"),
]


@pytest.mark.parametrize(("arguments", "last"), SHIPPED, ids=["p3o", "ppo", "far"])
def test_a_shipped_pipeline_is_right_up_to_its_last_stage(entry, tmp_path, arguments, last):
    code, out, err = entry(tpg.pipeline, "run_dir=run", *arguments, f"{last}:samplse=1")
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith(f"error: {last}: samplse: no such key")
    assert not (tmp_path / "run").exists()


def test_the_stages_of_every_command_in_the_docs_are_right(entry):
    found = [command for page in PAGES for command in commands(page) if command.entry == "tpg.pipeline"]
    begun = [command for command in found if not any(word.startswith("resume=") for word in command.arguments)]
    assert len(begun) >= 3
    for command in begun:
        last = "far_trained" if "pipeline=rlhf_far" in command.arguments else "trained"
        code, _, err = entry(tpg.pipeline, *command.arguments, f"{last}:samplse=1")
        assert (code, len(err)) == (2, 1), command
        assert err[0].startswith(f"error: {last}: samplse: no such key"), command
