"""Stages and their words, fingerprints, and a pipeline's folder."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tpg.errors import Interrupted, UserError
from tpg.pipelines import folder as folders
from tpg.pipelines.checks import _exempt
from tpg.pipelines.definition import Pipeline, Stage, stage_words
from tpg.pipelines.fingerprints import Inputs, digest, inputs_of
from tpg.pipelines.folder import PipelineFolder
from tpg.pipelines.processes import run_stage
from tpg.policies.huggingface import HuggingFace

VARIABLES = dict(os.environ)


def test_words_for_a_stage_are_told_from_the_pipelines_own():
    given = [
        "pipeline=rlhf",
        "train:optimizer.lr=1e-3",
        "run_dir=a:b",
        "train:+x=${stage:sft}/y",
        "--config-dir",
        "c:d",
    ]
    own, for_stages = stage_words([*given, "sft:~logger.csv"])
    assert for_stages == {
        "train": ["optimizer.lr=1e-3", "+x=${stage:sft}/y"],
        "sft": ["~logger.csv"],
    }
    assert own == ["pipeline=rlhf", "run_dir=a:b", "--config-dir", "c:d"]
    assert stage_words(["--config-dir=c:d"]) == (["--config-dir=c:d"], {})


def test_a_later_word_for_a_key_stands_in_place_of_the_earlier():
    stage = Stage(entry="train", overrides=["task=sort", "iterations=3", "+x.y=1"])
    assert stage.with_words(["iterations=5", "seed=1", "x.y=2"]).overrides == [
        "task=sort",
        "iterations=5",
        "seed=1",
        "x.y=2",
    ]


def test_a_reference_becomes_the_folder_of_the_stage():
    stage = Stage(entry="train", overrides=["policy.path=${stage:sft}/policy", "a=${stage:reward}", "b=${oc.env:HOME}"])
    assert stage.references() == [("sft", "policy"), ("reward", "")]
    assert stage.words(Path("/runs/one")) == [
        "policy.path=/runs/one/sft/policy",
        "a=/runs/one/reward",
        "b=${oc.env:HOME}",
    ]
    assert stage.words(Path("/my runs/a=b"))[1] == r"a=/my\ runs/a\=b/reward"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": ["x=${stage:a}"]}, r"a: \$\{stage:a\}: no stage of this name comes before it; this is the first"),
        ({"one": [], "b": ["x=${stage:on}"]}, r"there are one; did you mean one\?"),
        ({"a": ["x=${stage:b}"], "b": []}, "no stage of this name comes before it"),
        ({"outdated": []}, r"pipeline\.stages\.outdated: is no name"),
        ({"a/b": []}, "is no name for a stage"),
        ({"a": ["run_dir=x"]}, "a:run_dir=x: the pipeline gives each stage its folder"),
    ],
)
def test_mistakes_in_stages(stages, message):
    made = {name: Stage(entry="train", overrides=words) for name, words in stages.items()}
    with pytest.raises(UserError, match=message):
        Pipeline(stages=made).check()


def test_words_for_a_stage_that_there_is_not():
    pipeline = Pipeline(stages={"train": Stage(entry="train")})
    with pytest.raises(UserError, match=r"trian:seed=1: no stage of this name; there are train; did you mean train\?"):
        pipeline.with_words({"trian": ["seed=1"]})


def of(config, run, references=(), fingerprints=None):
    return inputs_of(config, run, references, fingerprints or {}, ["logger", "trainer.devices"])


def test_a_fingerprint_is_of_what_decides_on_numbers(tmp_path):
    base = of({"a": {"b": 1}, "logger": {"csv": 1}, "trainer": {"devices": 1, "precision": "x"}}, tmp_path)
    same = of({"trainer": {"precision": "x", "devices": 2}, "a": {"b": 1}}, tmp_path)
    assert base.fingerprint == same.fingerprint
    other = of({"a": {"b": 2}, "trainer": {"precision": "x"}}, tmp_path)
    assert other.fingerprint != base.fingerprint
    assert other.changed(base.record()) == "a.b is 2 and was 1"
    less = of({"trainer": {"precision": "y"}}, tmp_path)
    assert less.changed(base.record()) == "a.b is absent and was 1 (also trainer.precision)"


def test_files_that_are_read_count_by_their_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, model = tmp_path / "rows.jsonl", tmp_path / "model"
    data.write_text("1")
    model.mkdir()
    (model / "weights").write_text("w")
    config = {"task": {"path": "rows.jsonl"}, "policy": {"path": "model"}, "name": "model", "long": "x" * 5000}
    first = of(config, tmp_path / "run")
    assert set(first.files) == {"task.path=rows.jsonl", "policy.path=model"}
    os.utime(data, (0, 0))
    assert of(config, tmp_path / "run").fingerprint == first.fingerprint
    data.write_text("2")
    second = of(config, tmp_path / "run")
    assert second.changed(first.record()) == "task.path=rows.jsonl is another"
    (model / "weights").rename(model / "other")
    assert of(config, tmp_path / "run").changed(second.record()) == "policy.path=model is another"


def test_a_folder_whose_name_begins_as_the_pipelines_is_another(tmp_path):
    data = tmp_path / "run-data" / "rows.jsonl"
    data.parent.mkdir()
    data.write_text("1")
    config = {"task": {"path": str(data)}, "at": f"{tmp_path}/run/sft/policy", "both": [f"{tmp_path}/run"]}
    first = of(config, tmp_path / "run")
    assert dict(first.config) == {"task.path": str(data), "at": "<run>/sft/policy", "both": ["<run>"]}
    data.write_text("2")
    assert of(config, tmp_path / "run").changed(first.record()) == f"task.path={data} is another"


def test_what_an_earlier_stage_will_leave_is_not_looked_for_and_what_lies_beside_is():
    awaited, beside = (HuggingFace(path=f"/run/{name}/policy") for name in ("train", "train-2"))
    _exempt({"policy": awaited, "other": beside}, ["/run/train"])
    awaited.check()
    with pytest.raises(UserError, match=r"^policy\.path=/run/train-2/policy: no such folder"):
        beside.check()


def test_modules_of_the_working_directory_count_by_their_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.py").write_text("def half(): return 0.5")
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    (tmp_path / "parts" / "deep" / "own.py").write_text("class Task: pass")
    (tmp_path / "tpg").mkdir()
    config = {
        "reward_model": {"function": {"_target_": "tpg.rewards.function.Function", "function": "scores:half"}},
        "task": {"_target_": "parts.task.Own", "name": "scores.half"},
        "estimator": {"_target_": "installed.Elsewhere"},
    }
    first = of(config, tmp_path / "run")
    assert set(first.files) == {"reward_model.function.function=scores:half", "task._target_=parts.task.Own"}
    (tmp_path / "parts" / "deep" / "__pycache__").mkdir()
    (tmp_path / "parts" / "deep" / "__pycache__" / "own.pyc").write_text("compiled")
    assert of(config, tmp_path / "run") == first
    (tmp_path / "parts" / "deep" / "own.py").write_text("class Task: more = 1")
    second = of(config, tmp_path / "run")
    assert second.changed(first.record()) == "task._target_=parts.task.Own is another"
    (tmp_path / "scores.py").write_text("def half(): return 0.25")
    third = of(config, tmp_path / "run")
    assert third.changed(second.record()) == "reward_model.function.function=scores:half is another"


def test_what_other_stages_left_counts_and_where_the_folder_lies_does_not(tmp_path):
    def inputs(run, fingerprint="f"):
        config = {"policy": {"path": f"{run}/sft/policy"}}
        return of(config, run, [("sft", "policy")], {"sft": fingerprint})

    for name in ("one", "two"):
        policy = tmp_path / name / "sft" / "policy"
        policy.mkdir(parents=True)
        (policy / "weights").write_text("w")
    first = inputs(tmp_path / "one")
    assert first.fingerprint == inputs(tmp_path / "two").fingerprint
    assert inputs(tmp_path / "one", "g").changed(first.record()) == "stage sft ran with other inputs"
    (tmp_path / "one" / "sft" / "policy" / "weights").write_text("v")
    assert inputs(tmp_path / "one").changed(first.record()) == "sft/policy is another"


def test_a_stage_that_is_named_as_a_whole_counts_by_its_models(tmp_path):
    left = tmp_path / "train"
    (left / "policy").mkdir(parents=True)
    (left / "policy" / "weights").write_text("w")
    first = of({}, tmp_path, [("train", "")], {"train": "f"})
    (left / "metrics.csv").write_text("1,2")
    assert of({}, tmp_path, [("train", "")], {"train": "f"}) == first
    assert first == Inputs({}, {"train/policy": digest(left / "policy")}, {"train": "f"})


def test_nothing_is_deleted_when_a_stage_is_set_aside(tmp_path):
    kept = PipelineFolder(tmp_path)
    assert kept.set_aside("train") is None
    for text in ("one", "two"):
        kept.stage("train").mkdir()
        (kept.stage("train") / "policy").write_text(text)
        kept.set_aside("train")
    assert [(tmp_path / "outdated" / f"train-{n}" / "policy").read_text() for n in (1, 2)] == ["one", "two"]
    assert not kept.stage("train").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="is not empty and holds no pipeline"):
        PipelineFolder(tmp_path).refuse_other()
    (tmp_path / "pipeline.yaml").write_text("stages: {}")
    PipelineFolder(tmp_path).refuse_other()


def test_a_folder_whose_pipeline_was_killed_at_its_first_file_is_not_of_something_else(tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline.tmp").write_text("stag")
    PipelineFolder(tmp_path).refuse_other()


def test_only_one_pipeline_works_in_a_folder(tmp_path):
    code = """
import sys, time
from pathlib import Path
from tpg.pipelines.folder import PipelineFolder
with PipelineFolder(Path(sys.argv[1])).alone():
    print("held", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        told = pytest.raises(UserError, match=f"the process {other.pid} is at work in it")
        with told, PipelineFolder(tmp_path).alone():
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with PipelineFolder(tmp_path).alone():
        pass


def test_a_stage_that_lost_its_pipeline_is_told_to_end_and_waited_for(tmp_path, capsys):
    stage = "import signal, time; signal.signal(15, lambda *_: (time.sleep(1), open('ended', 'w'), exit(0)))"
    code = f"""
import os, sys
from pathlib import Path
from tpg.pipelines.folder import PipelineFolder
from tpg.pipelines.processes import run_stage
os.chdir(sys.argv[1])
with PipelineFolder(Path(sys.argv[1])).alone() as lock:
    stage = "{stage}; print('begun', flush=True); time.sleep(60)"
    run_stage([sys.executable, "-c", stage], lock, os.environ)
"""
    pipeline = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert pipeline.stdout.readline() == "begun\n"
    pipeline.kill()
    pipeline.wait()
    pipeline.stdout.close()
    with PipelineFolder(tmp_path).alone():
        assert (tmp_path / "ended").exists()
    assert "waiting for a stage" in capsys.readouterr().out


def test_patience_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "PATIENCE_S", 0.3)
    with PipelineFolder(tmp_path).alone():
        (tmp_path / "pipeline" / "lock").write_text("")
        told = pytest.raises(UserError, match="a stage that lost its pipeline is at work in it")
        with told, PipelineFolder(tmp_path).alone():
            pass


def test_a_stages_exit_code_and_output(tmp_path, capfd):
    with PipelineFolder(tmp_path).alone() as lock:
        code = run_stage([sys.executable, "-c", "print('shown'); exit(3)"], lock, VARIABLES, tmp_path / "output")
    assert code == 3
    assert capfd.readouterr().out == "shown\n" == (tmp_path / "output").read_text()


def test_a_signal_reaches_the_stage_once_and_ends_the_pipeline(tmp_path):
    stage = """
import signal, time
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
open("ready", "w")
while not heard:
    time.sleep(0.01)
time.sleep(0.3)
open("heard", "w").write(str(len(heard)))
"""

    def send():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), 15)

    sender = threading.Thread(target=send)
    sender.start()
    with PipelineFolder(tmp_path).alone() as lock, pytest.raises(Interrupted) as told:
        run_stage([sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{stage}"], lock, VARIABLES)
    sender.join()
    assert told.value.args == (15,)
    assert (tmp_path / "heard").read_text() == "1"
