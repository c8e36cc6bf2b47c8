"""`python -m tpg.sweep`: what it runs, leaves and refuses."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from searches import LR, SEEDS, TINY, definition, table

from tpg.composition import to_experiment
from tpg.jobs.configs import BOOKKEEPING, CONF


def test_a_search_leaves_runs_a_table_pictures_and_what_to_paste(run, tmp_path):
    definition(LR, "kl: {type: categorical, values: [none, k3_in_loss]}", trials=3)
    code, out, err = run("sweep=mine.yaml", *TINY)
    assert (code, err) == (0, [])
    folder = tmp_path / "outputs" / "sweep" / "mine"
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.yaml", "logs", "parallel_coordinates.png", "study.db", "trial-0000", "trial-0001", "trial-0002",
        "trials.csv",
    ]  # fmt: skip
    rows = table()
    for row in rows:
        summary = json.loads((folder / row["folder"] / "summary.json").read_text())
        assert float(row["eval/reward"]) == summary["eval/reward"]
        stored = OmegaConf.load(folder / row["folder"] / "config.yaml")
        assert stored.optimizer.lr == float(row["optimizer.lr"])
        assert stored.choices.kl == row["kl"]
        assert stored.choices.algorithm == "grpo"
        assert "sweep" not in stored
        assert "sweep" not in stored.choices
    assert all(1e-5 <= float(row["optimizer.lr"]) <= 1e-2 for row in rows)
    winner = max(rows, key=lambda row: float(row["eval/reward"]))
    pasted = yaml.safe_load((folder / "best.yaml").read_text())
    assert [entry["trial"] for entry in pasted] == [int(winner["trial"])]
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        again = compose("train", pasted[0]["overrides"])
    trained = OmegaConf.load(folder / winner["folder"] / "config.yaml")
    first, second = (
        to_experiment(OmegaConf.masked_copy(config, [key for key in config if key not in BOOKKEEPING]))
        for config in (again, trained)
    )
    assert first == second
    assert len(re.findall(r"^trial \d +eval/reward \S+  best", out, re.M)) == 3
    assert f"python -m tpg.train {' '.join(pasted[0]['overrides'][:1])}" in out
    assert "iteration 2/2" in (folder / "logs" / "trial-0000.txt").read_text()
    assert matplotlib.image.imread(folder / "parallel_coordinates.png").shape[2] == 4


def test_the_same_command_adds_nothing_and_more_trials_go_on_alike(run, imagined):
    definition(LR, trials=4)
    assert run("sweep=mine.yaml", *TINY, "run_dir=whole")[0] == 0
    whole = imagined.asked[:]
    imagined.asked.clear()
    for trials in (2, 4):
        assert run("sweep=mine.yaml", *TINY, "run_dir=parts", f"sweep.trials={trials}")[0] == 0
    assert imagined.asked == whole
    assert len(set(whole)) == 4
    best = yaml.safe_load(Path("parts/best.yaml").read_text())[0]
    assert best["values"]["eval/reward"] == max(lr for _, lr in whole)
    code, _, err = run("sweep=mine.yaml", *TINY, "run_dir=parts", "iterations=3")
    assert code == 2
    assert len(err) == 1
    assert err[0].startswith("error: sweep: the study 'mine' was begun with overrides=")


def test_several_objectives_give_the_trials_that_no_other_beats(run, imagined):
    rewards = {0: 0.5, 1: 0.4, 2: 0.9}
    imagined.value = lambda experiment: {"eval/reward": rewards[experiment.seed]}
    definition(SEEDS, objectives={"eval/reward": "maximize", "num_tokens": "minimize"}, trials=9)
    code, out, err = run("sweep=mine.yaml", *TINY, "sweep/sampler=grid", "sweep/pruner=none")
    assert (code, err) == (0, [])
    assert [(row["seed"], row["eval/reward"], row["num_tokens"]) for row in table()] == [
        ("0", "0.5", "10.0"), ("1", "0.4", "20.0"), ("2", "0.9", "30.0"),
    ]  # fmt: skip
    assert [entry["trial"] for entry in yaml.safe_load(Path("outputs/sweep/mine/best.yaml").read_text())] == [0, 2]
    assert "front: trials 0, 2" in out


def test_a_failing_trial_ends_alone_and_is_counted(run, imagined):
    def value(experiment):
        if experiment.seed == 1:
            raise RuntimeError("no memory left")
        return {"eval/reward": float("nan") if experiment.seed == 0 else 0.25}

    imagined.value = value
    definition(SEEDS)
    code, out, _ = run("sweep=mine.yaml", *TINY, "sweep/sampler=grid")
    assert code == 0
    assert "1 trials finished, 0 pruned, 2 failed" in out
    assert [(row["state"], row["error"]) for row in table()] == [
        ("fail", "sweep.objectives.eval/reward: is nan"), ("fail", "RuntimeError: no memory left"), ("complete", ""),
    ]  # fmt: skip
    assert "Traceback" in Path("outputs/sweep/mine/logs/trial-0001.txt").read_text()
    imagined.asked.clear()
    assert run("sweep=mine.yaml", *TINY, "sweep/sampler=grid")[0] == 0
    assert imagined.asked == []


def test_without_a_finished_trial_the_search_has_failed(run, imagined):
    definition(SEEDS, objectives={"rewards/nothing": "maximize"})
    code, _, err = run("sweep=mine.yaml", *TINY, "sweep/sampler=grid")
    assert code == 2
    assert err == ["error: sweep: no trial finished; see outputs/sweep/mine/trials.csv and outputs/sweep/mine/logs"]
    assert {row["error"] for row in table()} == {"sweep.objectives.rewards/nothing: the run has no such metric"}


def test_a_trial_that_is_worse_than_the_others_is_stopped(run, tmp_path):
    """Responses of 8 tokens at most are far from 40: its reward is at most 0.2, the others' is above."""
    definition("reward_model.length.target_tokens: {type: categorical, values: [6, 7, 40]}")
    code, out, err = run(
        "sweep=mine.yaml",
        *(override for override in TINY if "target_tokens" not in override),
        "sweep/sampler=grid",
        "sweep.pruner.startup_trials=2",
        "iterations=4",
    )
    assert (code, err) == (0, [])
    assert [row["state"] for row in table()] == ["complete", "complete", "pruned"]
    folder = tmp_path / "outputs" / "sweep" / "mine" / "trial-0002"
    told = json.loads((folder / "pruned.json").read_text())
    assert (told["iteration"], told["metric"], told["value"] < 0.25) == (2, "eval/reward", True)
    with (folder / "metrics.csv").open(newline="") as file:
        assert [row["iteration"] for row in csv.DictReader(file)] == ["1", "2"]
    assert not (folder / "summary.json").exists()
    assert "pruned after iteration 2 (eval/reward 0." in out


@pytest.mark.long
def test_a_killed_search_is_continued_from_its_trials_checkpoint(run, tmp_path):
    definition(SEEDS)
    command = ["sweep=mine.yaml", *TINY, "sweep/sampler=grid", "iterations=20", "checkpoint.every=1"]
    command.append("evaluation.every=10")
    process = subprocess.Popen([sys.executable, "-m", "tpg.sweep", *command], stdout=subprocess.DEVNULL)
    rows = tmp_path / "outputs" / "sweep" / "mine" / "trial-0001" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (rows.exists() and len(rows.read_text().splitlines()) > 4) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = (tmp_path / "outputs" / "sweep" / "mine" / "trial-0000" / "summary.json").read_bytes()
    code, out, err = run(*command)
    assert (code, err) == (0, [])
    assert "2 are there, 1 of them to be repeated" in out
    assert [(row["state"], row["seed"], row["folder"]) for row in table()] == [
        ("complete", "0", "trial-0000"), ("stopped", "1", "trial-0001"), ("complete", "1", "trial-0001"),
        ("complete", "2", "trial-0003"),
    ]  # fmt: skip
    assert (tmp_path / "outputs" / "sweep" / "mine" / "trial-0000" / "summary.json").read_bytes() == first
    assert "continuing after iteration" in (rows.parents[1] / "logs" / "trial-0001.txt").read_text()
    with rows.open(newline="") as file:
        assert [row["iteration"] for row in csv.DictReader(file)] == [str(i) for i in range(1, 21)]


@pytest.mark.long
def test_processes_share_a_study_and_propose_what_one_would(run, tmp_path):
    definition(SEEDS, LR, trials=4)
    assert run("sweep=mine.yaml", *TINY, "run_dir=alone", "sweep/pruner=none", "sweep/sampler=random")[0] == 0
    command = ["sweep=mine.yaml", *TINY, "run_dir=shared", "sweep/pruner=none", "sweep/sampler=random", "sweep.jobs=2"]
    done = subprocess.run([sys.executable, "-m", "tpg.sweep", *command], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 trials finished, 0 pruned, 0 failed" in done.stdout
    alone, shared = table("alone"), table("shared")
    for rows in (alone, shared):
        for row in rows:
            del row["seconds"]
    assert shared == alone


def test_a_stop_leaves_a_checkpoint_and_says_how_to_go_on(run, imagined):
    from tpg.errors import Interrupted

    def stop(experiment):
        raise Interrupted(15)

    definition(SEEDS)
    imagined.value = stop
    code, out, err = run("sweep=mine.yaml", *TINY, "sweep/sampler=grid")
    assert (code, err) == (143, ["interrupted; the same command continues the sweep"])
    assert "1 stopped before the end" in out
    imagined.value = lambda experiment: {"eval/reward": 0.5}
    imagined.asked.clear()
    assert run("sweep=mine.yaml", *TINY, "sweep/sampler=grid")[0] == 0
    assert [seed for seed, _ in imagined.asked] == [0, 1, 2]
    assert [row["state"] for row in table()] == ["stopped", "complete", "complete", "complete"]
