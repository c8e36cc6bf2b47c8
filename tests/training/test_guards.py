"""Guards speak once, stop a run that can be continued, and remember exactly what they have seen."""

import dataclasses
import json
import math
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

import tpg.train
from tpg.composition import to_experiment
from tpg.errors import UserError
from tpg.reporting.guard_records import iterations_by_guard, read_records, spans
from tpg.training.guards import Guard, Watch, watches
from tpg.training.metric_names import NAMES, is_known, metric_names

ROOT = Path(__file__).parents[2]
SMALL = [
    "debug=fast", "task=sort", "task.train_size=16", "task.evaluation_size=4", "trainer=cpu", "evaluation.every=0",
    "reward_model=[sorted_digits]", "reward_workers=1", "policy.hidden_size=32", "policy.layers=2",
    "checkpoint.recorded_responses=0", "guards=none",
]  # fmt: skip


@pytest.fixture(autouse=True)
def as_it_was():
    """A run listens to signals and takes its threads; afterwards this process does as before."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def experiment(*overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        config = compose("train", overrides=["debug=fast", *overrides])
    return to_experiment(type(config)({k: v for k, v in config.items() if k not in ("run_dir", "resume")}))


NAN, B, E, S = math.nan, "began", "ended", "stopped"
SEEN = {
    "above": ({"above": 0.5}, [0.5, 0.6, 0.7, 0.4, 0.6], [None, B, None, E, B]),
    "below": ({"below": 0.5}, [0.5, 0.4, 0.6], [None, B, E]),
    "either side": ({"below": 1, "above": 2}, [0, 1.5, 3], [B, E, B]),
    "patience": ({"above": 1, "patience": 2}, [2, 0, 2, 2, 2, 1], [None, None, None, B, None, E]),
    "not measured": ({"above": 1, "patience": 2}, [2, None, NAN, 2, None, 0], [None, None, None, B, None, E]),
    "infinite": ({"above": 1}, [math.inf], [B]),
    "of the first": ({"below": 0.25, "share_of": "first"}, [4, 1, 0.9, 1], [None, None, B, E]),
    "of the first, late": ({"below": 0.25, "share_of": "first"}, [None, NAN, 8, 3, 1.9], [None, None, None, None, B]),
    "of the responses": ({"above": 0.05, "share_of": "responses"}, [3, 4, 0], [None, B, E]),  # 0.05 x 64 is 3.2
    "stop": ({"above": 1, "patience": 2, "action": "stop"}, [2, 2, 2, 0, 2, 2], [None, S, S, E, None, S]),
}


@pytest.mark.parametrize("case", SEEN)
def test_when_a_guard_speaks(case):
    options, values, expected = SEEN[case]
    watch = Watch(Guard(metric="m", **options), 64)
    assert [watch.see(value) for value in values] == expected


def test_the_state_comes_from_the_rows_as_it_was():
    guards = {"a": Guard(metric="m", below=0.3, share_of="first", patience=3), "b": Guard(metric="n", above=0.1)}
    values = [{"m": 0.1 + 0.2, "n": 0.1}, {"m": 0.09, "n": 0.30000000000000004}, {"n": math.nan}, {"m": 0.01}]
    live = {name: Watch(guard, 8) for name, guard in guards.items()}
    for row in values:
        for watch in live.values():
            watch.see(row.get(watch.guard.metric))
    rows = [{name: str(row[name]) if name in row else "" for name in ("m", "n")} for row in values]
    assert watches(guards, 8, rows) == live
    assert (live["a"].first, live["a"].streak, live["b"].stands) == (0.30000000000000004, 2, True)


def test_spans_and_counts():
    records = [
        {"iteration": 2, "guard": "a", "event": "began", "told": "x", "remedy": "r"},
        {"iteration": 3, "guard": "b", "event": "stopped", "told": "y", "remedy": ""},
        {"iteration": 4, "guard": "b", "event": "stopped", "told": "y", "remedy": ""},
        {"iteration": 5, "guard": "a", "event": "ended"},
        {"iteration": 9, "guard": "a", "event": "began", "told": "z", "remedy": "r"},
    ]
    found = spans(records, 9)
    assert [(span.guard, span.first, span.last) for span in found] == [("a", 2, 4), ("b", 3, 9), ("a", 9, 9)]
    assert [span.where for span in found] == ["iterations 2 to 4", "iterations 3 to 9", "iteration 9"]
    assert spans(records[:3], 4)[1].where == "iterations 3 to 4, where the run was stopped"
    assert iterations_by_guard(found) == {"a": 4, "b": 7}


def test_the_shipped_guards_say_all_and_only_warn():
    shipped = yaml.safe_load((ROOT / "conf" / "guards" / "default.yaml").read_text())
    fields = [field.name for field in dataclasses.fields(Guard)]
    for name, guard in shipped.items():
        assert sorted(guard) == sorted(fields), name
        assert guard["action"] == "warn"
        assert is_known(guard["metric"])
        assert len(guard["remedy"]) > 20
    assert list(experiment().guards) == list(shipped)
    assert experiment("guards=none").guards == {}


def test_the_known_names_are_those_of_the_page():
    page = (ROOT / "docs" / "metrics.md").read_text().split("## `summary.json` alone")[0]
    rows = re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE)
    assert set(NAMES) == {name for row in rows for name in re.findall(r"`([^`]+)`", row)} - {"iteration"}
    known = metric_names(["length"], ["grpo"], 4)
    assert {"rewards/length/mean", "shadow/grpo/cosine", "eval/pass@4", "eval/pass@1", "kl"} <= set(known)
    assert is_known("rewards/any/std")
    assert is_known("eval/maj@16")
    assert not is_known("rewards//std")
    assert not is_known("eval/pass@k")


MISTAKES = {
    "+guards.x={metric: entropie, below: 1}": "guards.x.metric=entropie: no such metric; see docs/metrics.md; "
    "did you mean entropy?",
    "+guards.x={metric: rewards/nope/mean, below: 1}": "guards.x.metric=rewards/nope/mean: no such metric; ...",
    "+guards.x={metric: reward}": "guards.x: has no bound; set guards.x.above or guards.x.below",
    "+guards.x={metric: reward, above: 1, below: 2}": "guards.x.below=2: no value is between it and above=1",
    "+guards.x={metric: reward, belo: 1}": "guards.x.belo: no such key; Guard has ...; did you mean below?",
    "guards.kl.patience=0": "guards.kl.patience=0: should be greater than or equal to 1",
    "guards.kl.action=halt": "guards.kl.action=halt: should be 'warn' or 'stop'",
    "guards.kl.metric=null": "guards.kl.metric=null: should be a valid string",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_a_mistake_is_told_in_one_line(given):
    with pytest.raises(UserError) as told:
        experiment(given).check()
    pattern = re.escape(MISTAKES[given]).replace(r"\.\.\.", ".*")
    assert re.fullmatch(pattern, str(told.value)), told.value


def test_a_callback_of_ones_own_may_bring_the_metric():
    own = "+callbacks.mine={_target_: lightning.pytorch.callbacks.Callback}"
    experiment("+guards.x={metric: mine/size, below: 1}", own).check()
    with pytest.raises(UserError, match="no such metric"):
        experiment("+guards.x={metric: mine/size, below: 1}", "callbacks=gradient_noise").check()


def test_a_guard_warns_once_and_is_counted(entry, tmp_path):
    tokens = "+guards.long={metric: num_tokens, above: 60, remedy: 'write [less]'}"
    code, out, err = entry(tpg.train, *SMALL, "iterations=3", f"run_dir={tmp_path}/run", tokens)
    assert (code, err) == (0, [])
    assert out.count("guard long, iteration ") == 1
    assert "is above 60; write [less]" in out
    (said,) = read_records(tmp_path / "run" / "guards.jsonl")
    assert (said["guard"], said["event"], said["metric"]) == ("long", "began", "num_tokens")
    assert said["value"] > 60
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["guards"] == {"long": 3 - said["iteration"] + 1}


def test_a_guard_stops_the_run_which_goes_on_when_it_is_changed(entry, tmp_path):
    run, stop = tmp_path / "run", "+guards.always={metric: num_tokens, above: 0, patience: 2, action: stop}"
    code, _, err = entry(tpg.train, *SMALL, "iterations=4", "checkpoint.every=10", f"run_dir={run}", stop)
    assert code == 2
    (line,) = err
    assert line.startswith("error: guards.always: stopped after iteration 2: num_tokens ")
    assert line.endswith(f"go on with: python -m tpg.train resume={run} ++guards.always.action=warn")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["iteration-000002.ckpt"]
    assert not (run / "summary.json").exists()

    code, _, err = entry(tpg.train, f"resume={run}")  # nothing was changed: the next iteration stops it again
    assert (code, len(err)) == (2, 1)
    assert "stopped after iteration 3: num_tokens" in err[0]

    code, _, err = entry(tpg.train, f"resume={run}", "++guards.always.action=warn")
    assert (code, err) == (0, [])
    assert yaml.safe_load((run / "config.yaml").read_text())["guards"]["always"]["action"] == "warn"
    events = [(each["iteration"], each["event"]) for each in read_records(run / "guards.jsonl")]
    assert events == [(2, "stopped"), (3, "stopped")]
    assert json.loads((run / "summary.json").read_text())["guards"] == {"always": 3}

    code, _out, err = entry(tpg.train, f"resume={run}", "iterations=5", "guards=none", "seed=4")
    assert err == [
        "error: seed: resume continues with the run's own config; only iterations=, guards, the trainer's"
        " devices and update.tokens_per_microbatch= may be given beside it"
    ]
    assert entry(tpg.train, f"resume={run}", "iterations=5", "guards=none")[0] == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["guards"] == {}
    assert json.loads((run / "summary.json").read_text())["guards"] == {"always": 3}


def test_the_last_iteration_is_not_stopped(entry, tmp_path):
    stop = "+guards.always={metric: num_tokens, above: 0, patience: 2, action: stop}"
    code, out, err = entry(tpg.train, *SMALL, "iterations=2", f"run_dir={tmp_path}/run", stop)
    assert (code, err) == (0, [])
    assert "warning: guard always, iteration 2" in out
    assert [each["event"] for each in read_records(tmp_path / "run" / "guards.jsonl")] == ["began"]


def test_a_resumed_run_says_what_the_whole_one_says(entry, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    guards = [
        "+guards.lower={metric: entropy, below: 1, share_of: first, patience: 2}",
        "+guards.higher={metric: entropy, above: 1, share_of: first}",
        "+guards.long={metric: num_tokens, above: 200}",
    ]
    keep = ["checkpoint.every=2", "checkpoint.keep_last=5", "optimizer.lr=1e-3"]
    assert entry(tpg.train, *SMALL, *keep, *guards, "iterations=8", f"run_dir={whole}")[0] == 0
    text = (whole / "guards.jsonl").read_text()
    assert {"began", "ended"} <= {each["event"] for each in read_records(whole / "guards.jsonl")}
    for kept in (2, 6):
        shutil.copytree(whole, cut)
        for path in (cut / "checkpoints").iterdir():
            if int(path.stem.split("-")[1]) > kept:
                path.unlink()
        with (cut / "guards.jsonl").open("a") as file:
            file.write('{"iteration": 7, "gua')  # torn by a kill
        assert entry(tpg.train, f"resume={cut}")[0] == 0
        assert (cut / "guards.jsonl").read_text() == text
        shutil.rmtree(cut)


def test_an_unknown_metric_of_a_callback_that_never_brings_it_is_said(entry, tmp_path):
    own = "+callbacks.mine={_target_: lightning.pytorch.callbacks.Callback}"
    guard = "+guards.x={metric: mine/sise, below: 1}"
    code, out, _ = entry(tpg.train, *SMALL, "iterations=2", f"run_dir={tmp_path}/run", own, guard)
    assert code == 0
    assert out.count("guards.x.metric=mine/sise: no metric of the first iteration") == 1


def test_wandb_is_alerted(tmp_path, monkeypatch):
    import subprocess
    import sys

    import wandb

    from tpg.training.tracking.iteration_loggers import WandbIterations

    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    run = wandb.init(dir=tmp_path, mode="offline", project="tpg", settings=wandb.Settings(silent=True))
    WandbIterations(experiment=run).alert("guard kl", "iteration 3: kl 200 is above 100")
    run.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    (alert,) = [json.loads(line)["alert"] for line in seen.splitlines() if json.loads(line)["type"] == "alert"]
    assert (alert["title"], alert["text"]) == ("guard kl", "iteration 3: kl 200 is above 100")
