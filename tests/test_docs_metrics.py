"""docs/metrics.md names what runs log, and nothing else."""

import csv
import json
import re

import pytest
from docs_commands import DOCS, ROOT, call

PAGE = DOCS / "metrics.md"
SMALL = [
    "debug=fast", "iterations=1", "task=sort", "task.train_size=16", "task.evaluation_size=4", "trainer=cpu",
    "reward_model=[sorted_digits]", "reward_workers=1", "policy.hidden_size=32", "policy.layers=2",
]  # fmt: skip
RUNS = {
    "everything": [
        "algorithm=ppo", "kl=k1_in_reward", "kl.target=1", "mismatch=token_truncate", "update.epochs=2",
        "update.responses_per_microbatch=4", "shadow_estimators=[rloo]", "evaluation.responses_per_prompt=2",
        "callbacks=gradient_noise", "callbacks.gradient_noise.scales_step=true",
        "+callbacks.audit={_target_: tpg.audit.callback.AuditVerdict, worlds: 1}",
        "+combination.gates.sorted_digits=0",
    ],
    "greedy": [
        "algorithm=remax", "checkpoint.recorded_responses=0",
        "+reward_model.way={_target_: tpg.rewards.automaton.term.AdaptiveAutomaton, states: [a, b], start: a,"
        " accepting: [b], events: {go: x}, transitions: {a: {go: b}}}",
    ],
    "continued": ["algorithm=vineppo", "evaluation.every=0", "curriculum=difficulty_ordered"],
    "others drawn": ["algorithm=rloo", "evaluation.every=0", "curriculum=dynamic_sampling", "curriculum.max_rounds=2"],
    "hinted": ["algorithm=rloo", "evaluation.every=0", "curriculum=ghpo", "curriculum.levels=[0.5]"],
    "judged": [
        "algorithm=rloo",
        "+reward_model.jury={_target_: tpg.rewards.judging.PairwiseJudge, model: m, base_url: 'http://127.0.0.1:9',"
        " system: null, rubric: '{first}{second}', cache: null, retries: 0, check_at_start: false}",
    ],
    "learned": [
        "algorithm=rloo",
        "+reward_model.rm={_target_: tpg.rewards.learned.options.Classifier, path: <classifier>, clip: 1.0,"
        " normalization: {_target_: tpg.rewards.learned.normalization.Running}}",
    ],
}  # fmt: skip
OWN = {
    "sorted_digits": "{term}", "jury": "{term}", "/rm/": "/{term}/", "/way/": "/{term}/", "rloo": "{name}", "@2": "@k",
    "hinted/50": "hinted/{level}",
}  # fmt: skip
"""What stands in these runs for a name of the user's."""


def told():
    """Every name in the first columns of the tables, with what the column `when` says."""
    rows = re.findall(r"^\| (`.*?) \|.*?\| (.*?) \|.*?\|$", PAGE.read_text(), flags=re.MULTILINE)
    return {name: when for names, when in rows for name in re.findall(r"`([^`]+)`", names)}


def saved_classifier(folder):
    """A small sequence classifier with one logit."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from tpg.policies.tiny import character_tokenizer

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForSequenceClassification(LlamaConfig(vocab_size=99, num_labels=1, **sizes)).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The names in metrics.csv and in summary.json, by run."""
    found = {}
    classifier = saved_classifier(tmp_path_factory.mktemp("reward_model"))
    with pytest.MonkeyPatch.context() as patch:
        for run, overrides in RUNS.items():
            folder = tmp_path_factory.mktemp("runs") / run
            given = [override.replace("<classifier>", classifier) for override in overrides]
            call("tpg.train", [*SMALL, *given, f"run_dir={folder}"], patch)
            with (folder / "metrics.csv").open(newline="") as file:
                names = set(next(csv.reader(file))) | set(json.loads((folder / "summary.json").read_text()))
            for name, stands_for in OWN.items():
                names = {each.replace(name, stands_for) for each in names}
            found[run] = names
    return found


def test_the_page_names_what_runs_log_and_nothing_else(logged):
    assert set().union(*logged.values()) == set(told())


def test_what_is_always_there_is_in_every_run(logged):
    always = {name for name, when in told().items() if when == "always"}
    assert len(always) > 20
    assert always <= set.intersection(*logged.values())


def test_what_only_some_configs_log_is_not_said_to_be_always_there(logged):
    absent = set(told()) - logged["greedy"]
    assert "kl" in absent
    assert all(told()[name] != "always" for name in absent)


def test_every_table_has_a_row_a_line_and_the_readme_knows_no_other_name():
    assert len(told()) == len(re.findall(r"^\| `", PAGE.read_text(), flags=re.MULTILINE)) + 12  # in rows of 3, 3 and 9
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"`(completions/\w+|timing_s/\w+|eval/[\w@]+)`", readme)) <= set(told())
