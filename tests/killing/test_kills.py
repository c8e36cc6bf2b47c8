"""A run that is killed wherever it stands, again and again, leaves what the run that was let alone leaves."""

import shutil

import pytest
from killed_runs import Runs, assert_same

TWICE = ["objective=ppo_clip", "update.epochs=2"]
STEERED = ["kl.target=0.05", "kl.horizon=64"]
FAMILIES = {
    "group": (
        ["algorithm=grpo", *TWICE, "kl=k3_in_loss", *STEERED, "optimizer.schedule=cosine", "optimizer.warmup_steps=3"],
        ["folder being made", "decoding", "checkpoint", "loss", "metrics, a new column", "summary"],
    ),
    "leave-one-out with adapters": (
        ["algorithm=rloo", "objective=ppo_clip", "policy.lora={rank:4,alpha:8}", "checkpoint.keep_last=2"],
        ["warm start written", "optimizer step", "checkpoint, old one still there"],
    ),
    "value head": (
        ["algorithm=ppo", *TWICE, "critic.lr=1e-3", "critic.warmup_iterations=2", "optimizer.schedule=linear"],
        [("warm start or decoding", 7), "scoring", "loss"],
    ),
    "critic of its own": (
        ["algorithm=ppo", "critic=separate", "critic.lr=1e-3", "kl=k1_in_reward", *STEERED],
        ["estimate", "checkpoint before its name", "completions"],
    ),
    "continuations": (
        ["algorithm=vineppo", "estimator.boundaries.tokens=4", "checkpoint.every=1"],
        ["continuations", "tokens", "saving"],
    ),
    "continuations of drawn positions": (
        ["algorithm=trepo", "estimator=trepo_inverse_probability"],
        ["continuations", "metrics"],
    ),
    "greedy": (["algorithm=remax", "objective=ppo_clip"], ["greedy rewards", "evaluation", "policy before its name"]),
    "moving average": (
        ["estimator=reinforce_ema", "objective=ppo_clip", "update.epochs=3"],
        ["checkpoint", "optimizer step", "cutting back", "picture"],
    ),
    "rollouts ahead": (
        ["algorithm=rloo", "objective=ppo_clip", "rollout.lag=1", "mismatch=sequence_truncate"],
        ["rollout ahead", "decoding", "checkpoint", "policy"],
    ),
    "shadows": (
        [
            "algorithm=dapo",
            "checkpoint.every=1",
            "shadow_estimators=[rloo,grpo]",
            "callbacks=gradient_noise",
            "callbacks.gradient_noise.scales_step=true",
        ],
        ["checkpoint", "loss", "completions"],
    ),
}
FAMILIES |= {
    f"two processes by {strategy}": (
        ["algorithm=rloo", "objective=ppo_clip", f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2"],
        moments,
    )
    for strategy, moments in {
        "ddp": ["decoding", "checkpoint", "loss"],
        "fsdp": ["loss", "completions"],
        "tensor_parallel": ["checkpoint before its name", "optimizer step"],
    }.items()
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = Runs(tmp_path_factory.mktemp("runs"))
    yield made
    made.close()


def check(runs, family):
    overrides, moments = FAMILIES[family]
    name = family.replace(" ", "-")
    whole, counts = runs.left_alone(f"{name}-whole", *overrides)
    assert_same(runs.killed(name, moments, counts, *overrides), whole)


def test_a_run_killed_six_times(runs):
    check(runs, "group")


def test_a_run_whose_checkpoints_are_damaged_gives_the_same_numbers_from_an_older_one(runs):
    folder, _ = runs.left_alone("damaged", "checkpoint.keep_last=2")
    whole = shutil.copytree(folder, runs.folder / "undamaged")
    older, newest = sorted((folder / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 8
    newest.write_bytes(content)
    said = runs.resumed(folder)
    damaged = "checkpoint iteration-000006.ckpt is damaged (its checksum is another): left out"
    assert f"warning: {damaged}; continuing after iteration 4\n" in said
    assert "continuing after iteration 4 of" in said
    assert "iteration 5/6" in said
    assert_same(folder, whole)
    for path in (older, newest):
        path.write_bytes(path.read_bytes()[:-100])
    said = runs.resumed(folder, code=2)
    assert said.splitlines()[-1] == (
        f"error: no complete checkpoint is left in {folder}: {older.name} is damaged (its end is missing),"
        f" {newest.name} is damaged (its end is missing); nothing was deleted; delete {folder}/checkpoints to begin"
        " anew with iteration 1"
    )
    assert_same(folder, whole)
    shutil.rmtree(folder / "checkpoints")
    runs.resumed(folder)
    assert_same(folder, whole)


@pytest.mark.long
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "group"])
def test_every_family_killed(runs, family):
    check(runs, family)
