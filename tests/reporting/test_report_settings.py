"""What varies between runs is named in as few keys as tell them apart."""

from made_runs import config, grpo

from tpg.reporting.comparing.settings import Setting, flattened, in_common, label, varying


def test_a_config_is_flattened_to_text():
    given = flattened({"a": {"b": 1e-5, "c": None}, "d": [1, "x"], "e": True, "f": {}, "g": "word"})
    assert given == {"a.b": "1e-05", "a.c": "null", "d": '[1, "x"]', "e": "true", "f": "{}", "g": "word"}


def test_seeds_and_where_a_run_is_written_are_no_setting():
    assert varying([config(0), config(1, run_dir="elsewhere", logger={"wandb": {"group": "x"}})]) == []


def test_an_algorithm_stands_for_what_follows_from_it():
    (setting,) = varying([config(0), grpo(0), grpo(1)])
    assert (setting.key, setting.values) == ("algorithm", ("rloo", "grpo", "grpo"))
    assert setting.stands_for == ("estimator._target_", "estimator.epsilon", "estimator.std")


def test_a_key_beside_it_is_named_by_itself():
    runs = [config(optimizer__lr=1e-5), config(optimizer__lr=1e-6), grpo(optimizer__lr=1e-5)]
    assert [setting.key for setting in varying(runs)] == ["algorithm", "optimizer.lr"]


def test_a_key_of_an_option_that_varies_within_it_is_named_too():
    settings = varying([grpo(), grpo(estimator__std="none"), config()])
    assert [setting.key for setting in settings] == ["algorithm", "estimator.std"]
    assert settings[1].values == ("group", "none", "not there")


def test_a_key_that_merely_goes_along_with_an_algorithm_is_not_hidden():
    settings = varying([config(optimizer__lr=1e-5), grpo(optimizer__lr=1e-6)])
    assert [setting.key for setting in settings] == ["algorithm", "optimizer.lr"]


def test_two_ways_to_say_the_same_config_are_one():
    assert varying([config(), config(choices__algorithm="null")]) == []


def test_classes_stand_in_for_choices_that_are_not_recorded():
    runs = [config(), grpo()]
    for each in runs:
        del each["choices"]
    (setting,) = varying(runs)
    assert (setting.key, setting.values) == ("estimator", ("RLOO", "GRPO"))


def test_a_label_names_groups_by_their_option_and_keys_by_their_last_word():
    settings = [Setting("algorithm", ("rloo",)), Setting("kl", ("none",)), Setting("optimizer.lr", ("1e-05",))]
    assert label(settings, 0) == "rloo · kl=none · lr=1e-05"


def test_a_label_keeps_the_whole_key_where_two_end_alike():
    settings = [Setting("optimizer.lr", ("1e-05",)), Setting("critic.lr", ("0.1",))]
    assert label(settings, 0) == "optimizer.lr=1e-05 · critic.lr=0.1"


def test_what_all_runs_share():
    assert in_common([config(), grpo()]) == {"policy": "tiny", "task": "sort", "rollout": "Transformers"}
