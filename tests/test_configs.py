"""Every shipped option composes and builds, and says all that it has."""

import dataclasses
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

from tpg.aggregation import Constant
from tpg.composition import to_experiment
from tpg.estimators.boundaries import EveryTokens
from tpg.estimators.group import GRPO
from tpg.estimators.rloo import RLOO
from tpg.estimators.segment import Segment
from tpg.kl import KLInLoss, NoKL
from tpg.objectives.ppo_clip import PPOClip
from tpg.tasks.sort import Sort

CONF = Path(__file__).parents[1] / "conf"
ELSEWHERE = {"demonstrations", "preferences", "pipeline"}
"""Groups of other entries than tpg.train; the tests of their rooms compose them."""
EVERY_FILE = sorted(CONF.glob("*/*.yaml"))
FILES = [file for file in EVERY_FILE if file.parent.name not in ELSEWHERE]
GROUPS = sorted({file.parent.name for file in FILES})
LISTS = {"reward_model", "logger"}
PRESETS = {"algorithm", "experiment", "debug"}

NEEDED = {
    "estimator=segment_delimiter": ["estimator.boundaries.token_ids=[198]"],
    "estimator=gae": ["critic=value_head"],
    "policy=huggingface": ["policy.path=somewhere"],
    "task=dataset": ["task.path={data}", "reward_model=[exact_answer]"],
    "task=ladder": ["reward_model=[sorted_digits]"],
    "task=numbered": ["reward_model=[regex]", "reward_model.regex.pattern=a"],
    "task=reasoning_gym": ["task.dataset=chain_sum"],
    "task=sort": ["reward_model=[sorted_digits]"],
    "trainer=tensor_parallel": ["policy=tiny"],
    "trainer=fsdp_tp": ["policy=tiny"],
    "reward_model=classifier": ["reward_model.classifier.path=somewhere"],
    "reward_model=token_sum": ["reward_model.token_sum.path=somewhere"],
    "reward_model=implicit": ["reward_model.implicit.path=one", "reward_model.implicit.reference_path=another"],
    "task=hidden_reward": ["reward_model=[hidden_reward]"],
    "reward_model=hidden_reward": ["task=hidden_reward"],
    "reward_model=automaton": [
        "reward_model.automaton.states=[a,b]",
        "reward_model.automaton.start=a",
        "reward_model.automaton.accepting=[b]",
        "+reward_model.automaton.events={{go: x}}",
        "+reward_model.automaton.transitions={{a: {{go: b}}}}",
    ],
    "reward_model=automaton_adaptive": [
        "reward_model.automaton_adaptive.states=[a,b]",
        "reward_model.automaton_adaptive.start=a",
        "reward_model.automaton_adaptive.accepting=[b]",
        "+reward_model.automaton_adaptive.events={{go: x}}",
        "+reward_model.automaton_adaptive.transitions={{a: {{go: b}}}}",
    ],
    "reward_model=function": ["reward_model.function.function=os.path:basename"],
    "reward_model=judge": ["reward_model.judge.model=m"],
    "reward_model=pairwise_judge": ["reward_model.pairwise_judge.model=m"],
    "reward_model=length": ["reward_model.length.target_tokens=5"],
    "reward_model=overlong": ["reward_model.overlong.max_tokens=20", "reward_model.overlong.buffer_tokens=5"],
    "reward_model=python_tests": ["reward_model.python_tests.tests_column=answer"],
    "reward_model=reasoning_gym": ["task=reasoning_gym", "task.dataset=chain_sum"],
    "reward_model=regex": ["reward_model.regex.pattern=a"],
    "reward_model=sorted_digits": ["task=sort"],
    "warm_start=supervised": ["task=sort", "reward_model=[sorted_digits]"],
}
"""What an option needs beside itself: values for its ???, and the task that its rewards read."""


def composed(*overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train", overrides=list(overrides))
    return OmegaConf.create({key: value for key, value in config.items() if key not in ("run_dir", "resume")})


def experiment(*overrides):
    return to_experiment(composed(*overrides))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "answer": str(i)}) + "\n" for i in range(20)))
    return path


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_option_composes_and_builds(file, data):
    group, option = file.parent.name, file.stem
    chosen = f"{group}={option}"
    needed = [override.format(data=data) for override in NEEDED.get(chosen, [])]
    given = f"{group}=[{option}]" if group in LISTS else chosen
    made = experiment(given, *needed)
    looks_for_what_is_not_here = (
        "policy=huggingface",
        "reward_model=function",
        "trainer=gpu",
        "optimizer=adamw_8bit",
        "rollout=vllm",
    )
    if not chosen.startswith(looks_for_what_is_not_here):
        made.check()
    if group in LISTS:
        assert list(getattr(made, group)) == [option]
    elif group not in PRESETS | {"callbacks", "guards"}:
        target = OmegaConf.load(file)._target_
        assert type(getattr(made, group)) is get_class(target)


@pytest.mark.parametrize("file", EVERY_FILE, ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_option_begins_with_what_it_is_and_what_is_overridden(file):
    lines = file.read_text().splitlines()
    package, lines = lines[0].startswith("# @package"), lines[lines[0].startswith("# @package") :]
    assert package == (file.parent.name in PRESETS)
    assert lines[0].startswith("# ")
    assert len(lines[0]) > 20
    comments = [line for line in lines if line.startswith("#")]
    assert any(word in " ".join(comments) for word in ("Most overridden", "Most often", "most overridden", "no key"))


def nodes(node, key=""):
    """The components that a config describes, by the key of each, an outer one before its parts."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from nodes(child, f"{key}.{name}".removeprefix("."))


@pytest.mark.parametrize(
    "file",
    [file for file in EVERY_FILE if file.parent.name not in PRESETS | {"callbacks", "guards", "pipeline"}],
    ids=lambda file: f"{file.parent.name}={file.stem}",
)
def test_every_option_lists_every_field_of_its_component(file):
    found = dict(nodes(OmegaConf.to_container(OmegaConf.load(file))))
    outermost = next(iter(found))
    assert outermost == (file.stem if file.parent.name in LISTS else "")
    assert all(name.startswith(outermost) for name in found)
    for node in found.values():
        assert set(node) - {"_target_"} == {field.name for field in dataclasses.fields(get_class(node["_target_"]))}


def test_a_component_within_a_component_is_built():
    made = experiment("estimator=segment", "estimator.boundaries.tokens=3").estimator
    assert made == Segment(continuations=4, boundaries=EveryTokens(tokens=3))


def test_the_defaults_name_every_group_once():
    defaults = OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"))["defaults"]
    named = [next(iter(entry)) for entry in defaults if isinstance(entry, dict)]
    assert sorted(name for name in named if not name.startswith("override ")) == GROUPS
    assert defaults[0] == "_self_"
    assert named[-5:-2] == ["algorithm", "experiment", "debug"]


def test_the_defaults_alone_are_an_experiment():
    assert experiment().check() == []


def test_an_algorithm_is_a_choice_of_options_and_one_of_them_can_be_swapped():
    grpo = experiment("algorithm=grpo")
    swapped = experiment("algorithm=grpo", "estimator=rloo")
    assert isinstance(grpo.estimator, GRPO)
    assert isinstance(swapped.estimator, RLOO)
    assert swapped == dataclasses.replace(grpo, estimator=swapped.estimator)
    assert isinstance(swapped.objective, PPOClip)
    assert isinstance(swapped.kl, KLInLoss)
    assert isinstance(experiment("algorithm=grpo", "kl=none").kl, NoKL)
    assert isinstance(experiment("algorithm=dr_grpo").aggregation, Constant)


def test_swapping_leaves_no_key_of_the_option_that_was_there():
    assert "epsilon" not in composed("algorithm=grpo", "estimator=rloo").estimator
    assert "clip_low" not in composed("algorithm=grpo", "objective=policy_gradient").objective


def test_an_experiment_wins_over_the_defaults_and_the_command_line_over_both():
    default, sort = experiment(), experiment("experiment=sort")
    own = OmegaConf.load(CONF / "experiment" / "sort.yaml")
    assert sort.iterations == own.iterations != default.iterations
    assert sort.rollout.prompts == own.rollout.prompts != default.rollout.prompts
    assert sort.optimizer.lr == own.optimizer.lr != default.optimizer.lr
    assert isinstance(sort.task, Sort)
    overridden = experiment("experiment=sort", "iterations=7", "rollout.prompts=3", "task.digits=4")
    assert (overridden.iterations, overridden.rollout.prompts, overridden.task.digits) == (7, 3, 4)
    assert overridden.rollout.max_response_tokens == sort.rollout.max_response_tokens
    assert isinstance(experiment("experiment=sort", "algorithm=grpo").estimator, GRPO)


def test_debug_wins_over_an_experiment():
    fast = experiment("experiment=sort", "debug=fast")
    assert (fast.iterations, fast.rollout.prompts, list(fast.logger)) == (2, 2, ["csv"])
    assert isinstance(fast.task, Sort)
    assert experiment("experiment=sort", "debug=fast", "iterations=3").iterations == 3


def test_reward_terms_are_listed():
    made = experiment("reward_model=[last_number,length]", "reward_model.length.target_tokens=5")
    assert list(made.reward_model) == ["last_number", "length"]
    assert made.reward_model["length"].tolerance_tokens == 5
