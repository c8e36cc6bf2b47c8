"""`tpg.reward` from the command line: what it learns, what it leaves for scoring, how it goes on."""

import json
import random
import shutil
import statistics

import pytest
from PIL import Image
from stage_options import assert_same_run, rows_of, run_in, written

import tpg.reward
from tpg.rewards.base import Sample
from tpg.rewards.learned.options import Classifier

RUN = [
    "policy=tiny", "policy.hidden_size=32", "policy.layers=2", "policy.heads=2", "logger=[csv]", "trainer=cpu",
    "preferences=dataset", "preferences.path=pairs.jsonl", "preferences.held_out=0.2", "optimizer.lr=1e-2",
    "pairs_per_step=20", "epochs=6", "checkpoint.every=10", "checkpoint.keep_last=9", "run_dir=run",
]  # fmt: skip


def pairs(count):
    """Pairs of six letters of which the chosen one has more of `x`; otherwise they are alike."""
    rng = random.Random(7)
    made = []
    for i in range(count):
        fewer, more = sorted(rng.sample(range(7), 2))
        letters = ["".join(rng.sample("x" * k + "o" * (6 - k), 6)) for k in (more, fewer)]
        made.append({"prompt": f"p{i}:", "chosen": letters[0], "rejected": letters[1], "by": (more - fewer) / 4})
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A reward model of 200 pairs, 40 of them held out; 48 steps."""
    folder = tmp_path_factory.mktemp("finished")
    written(folder / "pairs.jsonl", pairs(200))
    return run_in(folder, tpg.reward, *RUN)


def test_it_tells_which_of_two_was_preferred(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["eval/accuracy"] > 0.9
    assert summary["eval/accuracy/first"] < 0.8
    assert summary["eval/loss"] < 0.4
    assert (summary["pairs"], summary["iterations"]) == (160, 48)
    rows = rows_of(finished)
    assert [row["iteration"] for row in rows if row["eval/accuracy"]] == [str(8 * i) for i in range(7)]
    assert summary["eval/accuracy"] == float(rows[-1]["eval/accuracy"])


def test_what_is_held_out_is_written_with_its_rewards_and_the_measures_are_of_those(finished):
    lines = [json.loads(line) for line in (finished / "held_out.jsonl").read_text().splitlines()]
    summary = json.loads((finished / "summary.json").read_text())
    assert len(lines) == 40
    better = [line["chosen_reward"] - line["rejected_reward"] for line in lines]
    assert summary["eval/accuracy"] == pytest.approx(sum(each > 0 for each in better) / 40)
    assert summary["eval/reward_difference"] == pytest.approx(statistics.fmean(better))
    rewards = [line[name] for line in lines for name in ("chosen_reward", "rejected_reward")]
    scale = json.loads((finished / "reward_model" / "reward_statistics.json").read_text())
    assert scale == {"mean": pytest.approx(statistics.fmean(rewards)), "std": pytest.approx(statistics.stdev(rewards))}
    bins = json.loads((finished / "reliability.json").read_text())
    assert sum(each["pairs"] for each in bins) == 40
    error = sum(each["pairs"] * abs(each["confidence"] - each["accuracy"]) for each in bins) / 40
    assert summary["eval/calibration_error"] == pytest.approx(error)
    for name in ("learning_curve.png", "reliability.png"):
        with Image.open(finished / name) as picture:
            assert min(picture.size) > 400


def test_a_reward_term_reads_the_folder_and_gives_the_same_rewards(finished):
    lines = [json.loads(line) for line in (finished / "held_out.jsonl").read_text().splitlines()]
    scorer = Classifier(path=str(finished / "reward_model"), device="cpu").load("reward_model.classifier")
    samples = [Sample(prompt=line["prompt"], response=line["chosen"]) for line in lines]
    found = scorer.outcomes([scorer.begin(sample) for sample in samples])
    assert found == pytest.approx([line["chosen_reward"] for line in lines], abs=1e-4)


@pytest.mark.parametrize("step", [0, 20, 48], ids=["before-any", "between", "after-the-last"])
def test_resumed_it_gives_the_same_numbers(step, finished, tmp_path):
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "run"
    (run / "summary.json").unlink()
    shutil.rmtree(run / "reward_model")
    for path in run.glob("checkpoints/*.ckpt"):
        if int(path.stem.split("-")[1]) > step:
            path.unlink()
    run_in(tmp_path, tpg.reward, "resume=run")
    assert_same_run(run, finished, "reward_model")
    for name in ("held_out.jsonl", "reliability.json", "reward_model/reward_statistics.json"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()


def test_centring_draws_rewards_to_zero(finished, tmp_path):
    written(tmp_path / "pairs.jsonl", pairs(200))
    centred = run_in(tmp_path, tpg.reward, *RUN, "centering=0.1", "preferences.margin=by")
    rows = [rows_of(run)[-1] for run in (finished, centred)]
    assert abs(float(rows[1]["eval/reward_mean"])) < 0.1 + 0.2 * abs(float(rows[0]["eval/reward_mean"]))
    assert float(rows[1]["eval/accuracy"]) > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preferences=task", "task=sort"], "preferences: Sort offers none; use preferences=dataset"),
        (["preferences=dataset"], "preferences.path: has no value and needs one"),
        (
            ["preferences=dataset", "preferences.path=pairs.jsonl", "margin=1", "preferences.margin=by"],
            "margin=1.0: pref",
        ),
        (
            ["preferences=dataset", "preferences.path=pairs.jsonl", "preferences.chosen=chose"],
            "preferences.chosen=chose",
        ),
        (["centering=-1"], "centering=-1: should be greater than or equal to 0"),
        (["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"], "trainer.strategy=fsdp: a stage before RL"),
        (["max_tokens=9"], "max_tokens=9: "),
    ],
    ids=["task", "no-path", "two-margins", "column", "range", "devices", "too-long"],
)
def test_a_mistake_ends_in_one_line_and_leaves_nothing(arguments, message, entry, tmp_path):
    path = written(tmp_path / "pairs.jsonl", pairs(4))
    code, out, err = entry(tpg.reward, "policy=tiny", "logger=[csv]", "run_dir=run", *arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == [path]


def test_a_task_gives_pairs_and_adapters_are_merged(entry, tmp_path):
    arguments = [
        "task=hidden_reward",
        "preferences.count=60",
        "+policy.lora.rank=4",
        "pairs_per_step=30",
        "run_dir=run",
    ]
    code, _, err = entry(tpg.reward, *RUN[:6], *arguments, "optimizer.lr=1e-2")
    assert (code, err) == (0, [])
    scorer = Classifier(path=str(tmp_path / "run" / "reward_model"), device="cpu").load("reward_model.classifier")
    line = json.loads((tmp_path / "run" / "held_out.jsonl").read_text().splitlines()[0])
    found = scorer.outcomes([scorer.begin(Sample(prompt=line["prompt"], response=line["rejected"]))])
    assert found == pytest.approx([line["rejected_reward"]], abs=1e-4)
