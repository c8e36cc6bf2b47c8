"""Every mistake of a user ends in one line on stderr and exit code 2, before anything is loaded or written."""

import re
import subprocess
import sys

import pytest

import tpg.train
from tpg.policies.base import PolicyOptions

# `RUN` stands for the folder of an earlier run; `...` in an expected line for any text.
REWARDS = (
    "automaton, automaton_adaptive, classifier, exact_answer, function, hidden_reward, implicit, judge, last_number, "
    "length, math_verify, overlong, pairwise_judge, python_tests, reasoning_gym, regex, sorted_digits, token_sum; "
    "did you mean exact_answer?"
)
MISTAKES = {
    # Misspelled names
    "algoritm=grpo": "algoritm: no such key; a config has ..., algorithm, ...; did you mean algorithm?",
    "algorithm=grop": "algorithm=grop: no such option; there are ..., dr_grpo, grpo, ...; did you mean grpo?",
    "experiment=quikstart": (
        "experiment=quikstart: no such option; there are automaton, quickstart, ...; did you mean quickstart?"
    ),
    "mismatch=sequence_trunkate": (
        "mismatch=sequence_trunkate: no such option; there are none, ...; did you mean sequence_truncate or ...?"
    ),
    "reward_model=exact_answr": f"reward_model=exact_answr: no such option; there are {REWARDS}",
    "reward_model=[exact_answr]": f"reward_model=exact_answr: no such option; there are {REWARDS}",
    "logger=[wandb,cvs]": "logger=cvs: no such option; there are csv, mlflow, ...; did you mean csv?",
    "hydra/launcher=nope": "hydra/launcher=nope: no such option; there are basic...",
    "--config-name=trian": "--config-name=trian: no such option; there are ...; did you mean train?",
    "objective=ppo_clip objective.clip=0.3": (
        "objective.clip: no such key; objective has clip_high, clip_low, dual_clip; did you mean clip_low or ...?"
    ),
    "rollout.temprature=1": "rollout.temprature: no such key; rollout has ...; did you mean temperature?",
    "rollout.prompts.x=5": "rollout.prompts.x: no such key; rollout.prompts has no key",
    "iteration=5": "iteration: no such key; a config has ...; did you mean iterations or ...?",
    "estimator.std=group": "estimator.std: no such key; estimator has no key",
    "+estimator.epsilo=1": "estimator.epsilo: no such key; RLOO has no key",
    "estimator=grpo +estimator.epsilo=1": (
        "estimator.epsilo: no such key; GRPO has epsilon, std; did you mean epsilon?"
    ),
    "estimator=segment +estimator.boundaries.tokns=8": (
        "estimator.boundaries.tokns: no such key; EveryTokens has tokens; did you mean tokens?"
    ),
    "policy.lora={rnk:8}": "policy.lora.rnk: no such key; LoRA has rank, alpha, target_modules; did you mean rank?",
    "+foo=1": "foo: no such key; Experiment has seed, iterations, ...",
    "+trainer.devics=2": "trainer.devics: no such key; TrainerOptions has ...; did you mean devices?",
    "~foo": "~foo: Could not delete from config. 'foo' does not exist.",
    # Wrong types
    "objective=ppo_clip objective.clip_low=abc": "objective.clip_low=abc: should be a valid number, ...",
    "iterations=many": "iterations=many: should be a valid integer, ...",
    "iterations=1.5": "iterations=1.5: should be a valid integer, ...",
    "optimizer.lr=None": "optimizer.lr=None: should be a valid number, ...",
    "optimizer.lr=null": "optimizer.lr=null: should be a valid number",
    "estimator=grpo estimator.std=grup": (
        "estimator.std=grup: should be 'group', 'batch' or 'none'; did you mean group?"
    ),
    "rollout=5": "rollout=5: Config group override must be a string or a list. Got int",
    "algorithm=grpo policy=null": "policy=null: Config group override must be a string or a list. Got NoneType",
    # Out of range
    "optimizer.lr=-1": "optimizer.lr=-1: should be greater than 0",
    "rollout.responses_per_prompt=0": "rollout.responses_per_prompt=0: should be greater than or equal to 1",
    "estimator=reinforce_ema estimator.decay=1.5": "estimator.decay=1.5: should be less than 1",
    "estimator=segment estimator.boundaries.tokens=0": (
        "estimator.boundaries.tokens=0: should be greater than or equal to 1"
    ),
    "mismatch=token_truncate mismatch.cap=0.5": "mismatch.cap=0.5: should be greater than or equal to 1",
    "kl=k1_in_reward kl.target=0": "kl.target=0: should be greater than 0",
    "entropy_coefficient=-1": "entropy_coefficient=-1: should be greater than or equal to 0",
    "iterations=0": "iterations=0: should be greater than or equal to 1",
    "seed=-1": "seed=-1: should be greater than or equal to 0",
    "trainer.devices=2": "trainer.devices=2: one is what ... add trainer=ddp",
    "trainer=fsdp trainer.strategy=deepspeed": "trainer.strategy=deepspeed: ...use trainer=fsdp...",
    # Missing values
    "task=dataset": "task.path: has no value and needs one; set task.path=...",
    "task=reasoning_gym": "task.dataset: has no value and needs one; set task.dataset=...",
    "policy=tiny policy.heads=3": "policy.heads=3: hidden_size=128 must be a multiple of twice the heads",
    "policy=huggingface": "policy.path: has no value and needs one; set policy.path=...",
    "estimator=segment_delimiter": "estimator.boundaries.token_ids: has no value and needs one; set ...",
    "reward_model=regex": "reward_model.regex.pattern: has no value and needs one; set reward_model.regex.pattern=...",
    "reward_model=length": "reward_model.length.target_tokens: has no value and needs one; set ...",
    "reward_model=[]": "reward_model: is empty; name one or more terms, e.g. reward_model=[exact_answer]",
    "~task": "task: has no value and needs one; set task=...",
    "seed=${nope}": "seed...: Interpolation key 'nope' not found",
    # What is named is not there, or not what it should be
    "reward_model=regex reward_model.regex.pattern=\\(": (
        "reward_model.regex.pattern=(: '(' is not a regular expression: missing ), unterminated subpattern ..."
    ),
    "task=dataset task.path=/nope.jsonl": "task.path=/nope.jsonl: no such file",
    "task=reasoning_gym task.dataset=basic_arithmetik": (
        "task.dataset=basic_arithmetik...no dataset of Reasoning Gym; did you mean basic_arithmetic ..."
    ),
    "task=reasoning_gym task.dataset=basic_arithmetic +task.params.max_trems=3": (
        "task.params.max_trems...no parameter of basic_arithmetic; did you mean max_terms ..."
    ),
    "reward_model=function reward_model.function.function=nope:f": (
        "reward_model.function.function=nope:f: cannot import 'nope:f': ModuleNotFoundError: No module named 'nope'"
    ),
    "reward_model=function reward_model.function.function=math:sqroot": (
        "reward_model.function.function=math:sqroot: ... module 'math' has no attribute 'sqroot'"
    ),
    "policy=huggingface policy.path=./nope": "policy.path=./nope: no such folder; ...",
    "+callbacks.x._target_=subprocess.Popen": "callbacks.x._target_=subprocess.Popen: only classes of tpg, ...",
    "+callbacks.x._target_=tpg.kl.NoKL": "callbacks.x: expected a Lightning Callback (_target_: ...), got NoKL",
    "+callbacks.x.bar=1": "callbacks.x: expected a Lightning Callback (_target_: ...), got dict",
    "estimator._target_=tpg.estimators.nope.X": (
        "estimator._target_=tpg.estimators.nope.X: No module named 'tpg.estimators.nope'"
    ),
    "estimator._target_=tpg.estimators.rloo.RLO": (
        "estimator._target_=tpg.estimators.rloo.RLO: module ... has no attribute 'RLO'; did you mean RLOO?"
    ),
    "estimator=segment estimator.boundaries._target_=tpg.estimators.boundaries.EveryToken": (
        "estimator.boundaries._target_=tpg.estimators.boundaries.EveryToken: module ...; did you mean EveryTokens?"
    ),
    "estimator=segment estimator.boundaries=5": "estimator.boundaries: expected Boundaries, got int",
    "estimator=segment ~estimator.boundaries._target_": (
        "estimator.boundaries.tokens: no such key; Boundaries has no key"
    ),
    "estimator._target_=tpg.spelling.did_you_mean": "estimator._target_=tpg.spelling.did_you_mean: is no class",
    "estimator._target_=tpg.kl.NoKL": "estimator: expected an option of the group 'estimator', got NoKL",
    # What cannot go together
    "estimator=rloo rollout.responses_per_prompt=1": (
        "rollout.responses_per_prompt=1: estimator RLOO compares the responses to one prompt and needs at least 2"
    ),
    "estimator=gae": "estimator: GAE reads a critic's values; use critic=value_head or critic=separate",
    "algorithm=ppo critic=none": "estimator: GAE reads a critic's values; use critic=value_head or critic=separate",
    "algorithm=ppo critic=separate critic.path=./nope": "critic.path=./nope: no such folder; ...",
    "algorithm=ppo critic.path=x": "critic.path: no such key; critic has coefficient, detached, lr, ...",
    "algorithm=ppo critic.value_clip=0": "critic.value_clip=0: should be greater than 0",
    "algorithm=ppo objective=p3o": (
        "estimator: GAE gives each token its own weight, but objective P3O needs one weight for a whole response;"
        " use estimator=rloo, or objective=ppo_clip"
    ),
    "objective=p3o kl=k1_to_go": "kl: KLToGo charges each token its own share, but objective P3O ...; use kl=...",
    "objective=p3o estimator=reinforce rollout.responses_per_prompt=1": (
        "rollout.responses_per_prompt=1: objective P3O compares the responses to one prompt and needs at least 2"
    ),
    "objective=p3o update.responses_per_minibatch=6": (
        "update.responses_per_minibatch=6: objective P3O compares the responses to one prompt; give a multiple of"
        " rollout.responses_per_prompt=8"
    ),
    "kl=k3_in_loss kl.form=k1": "kl.form=k1: k1 in the loss has zero gradient in expectation; use kl=k1_in_reward, ...",
    "kl=k1_in_reward kl.coefficient=0 kl.target=6": "kl.target=6: a coefficient of 0 never moves ...",
    "rollout.lag=1": (
        "rollout.lag=1: the policy that generates is older than the one that learns, and nothing corrects for it; use"
        " mismatch=sequence_truncate, or rollout.lag=0"
    ),
    "rollout.lag=2 mismatch=sequence_truncate": "rollout.lag=2: should be less than or equal to 1",
    "mismatch=token_mask mismatch.low=1 mismatch.high=1": "mismatch.high=1: low=1 and high leave nothing ...",
    "warm_start=supervised task=addition": "warm_start.steps=300: Addition has no demonstrations",
    "task=addition reward_model=reasoning_gym": "reward_model.reasoning_gym...needs the column 'dataset', ...",
    # Folders
    "run_dir=RUN": "run_dir=RUN...is not empty; choose another folder, or continue the run in it with resume=RUN",
    "resume=/nope": "resume=/nope...holds no run: there is no config.yaml in it",
    "resume=RUN seed=3": "seed: resume continues with the run's own config; only iterations=, guards, ... beside it",
    "resume=RUN iterations=many": "iterations=many: should be a valid integer, ...",
    # Syntax
    "task=[": "task=[: no viable alternative at input '['",
    "foo": "foo: Error parsing override 'foo' missing EQUAL at '<EOF>'",
    "seed=1,2": "seed=1,2: Ambiguous value for argument 'seed=1,2' ... add --multirun to your command line",
    "+task=addition": "+task=addition: task appears more than once in the final defaults list",
}


@pytest.fixture
def earlier_run(tmp_path_factory):
    """The folder of a run that was begun."""
    folder = tmp_path_factory.mktemp("earlier")
    (folder / "config.yaml").write_text("seed: 0\niterations: 1\n")
    return str(folder)


@pytest.fixture
def train(entry, monkeypatch):
    """`tpg.train` in this process: exit code and lines on stderr."""
    monkeypatch.setattr(PolicyOptions, "load", lambda *_: pytest.fail("a policy is loaded"))

    def call(arguments):
        code, out, err = entry(tpg.train, *arguments)
        assert code != 0
        assert out == ""
        return code, err

    return call


def matches(expected, line):
    return re.fullmatch(".*".join(map(re.escape, expected.split("..."))), line)


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_is_told_in_one_line(overrides, train, earlier_run, tmp_path):
    code, lines = train(overrides.replace("RUN", earlier_run).split())
    assert len(lines) == 1, lines
    assert matches("error: " + MISTAKES[overrides].replace("RUN", earlier_run), lines[0]), lines[0]
    assert code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_multirun_with_an_unknown_option_runs_no_job(train):
    code, lines = train(["-m", "algorithm=rloo,grop"])
    assert len(lines) == 1, lines
    assert matches("error: algorithm=grop: no such option; there are ...; did you mean grpo?", lines[0])
    assert code == 2


def test_what_is_no_mistake_of_the_user_keeps_its_traceback(train, monkeypatch):
    monkeypatch.setattr(PolicyOptions, "load", lambda *_: 1 / 0)
    code, lines = train(["policy=tiny"])
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert code == 1


@pytest.mark.parametrize("overrides", ["algorithm=grop", "iterations=0"])
def test_a_process_tells_a_mistake_in_one_line(overrides, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tpg.train", overrides], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert matches("error: " + MISTAKES[overrides], done.stderr.rstrip("\n")), done.stderr
    assert list(tmp_path.iterdir()) == []
