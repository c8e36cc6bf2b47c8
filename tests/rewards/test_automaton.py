"""Progress through automata, against paths followed by hand; and what is said of mistakes."""

import json
import pickle
import random
import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

import tpg.automaton
from tpg.composition import to_experiment
from tpg.errors import UserError
from tpg.reporting.automaton_picture import columns_of, draw_automaton, edges
from tpg.rewards.automaton.machine import distances, reached
from tpg.rewards.automaton.reading import automaton_of, read_automaton
from tpg.rewards.automaton.term import AdaptiveAutomaton, AutomatonProgress
from tpg.rewards.base import Failure, Sample
from tpg.rewards.model import RewardModel

ROOT = Path(__file__).parents[2]
MAZE = ROOT / "docs" / "examples" / "maze.yaml"

# start -a-> far -b-> near -c-> done, with ways back, a detour that is farther off, and a side branch.
WAYS = {
    "states": ["start", "far", "near", "done", "detour", "branch", "lost"],
    "start": "start",
    "accepting": ["done"],
    "traps": ["lost"],
    "events": {"a": "a", "b": "b", "c": "c", "back": "x", "off": "y", "fail": "z"},
    "transitions": {
        "start": {"a": "far", "off": "detour"},
        "far": {"b": "near", "back": "start", "off": "branch"},
        "branch": {"b": "near", "back": "start"},
        "near": {"c": "done", "back": "far", "off": "detour", "fail": "lost"},
        "detour": {"a": "start", "b": "near"},
    },
}


def changed(**keys):
    return {**WAYS, **keys}


def test_distances_by_breadth_first_search():
    automaton = automaton_of(WAYS, "")
    assert automaton.distances == {"done": 0, "near": 1, "far": 2, "branch": 2, "detour": 2, "start": 3}
    assert distances({"a": {"x": "a"}}, ["b"]) == {"b": 0}
    assert reached(WAYS["transitions"], "near") == set(WAYS["states"])
    assert reached({"a": {"x": "b"}, "c": {"x": "a"}}, "a") == {"a", "b"}


@pytest.mark.parametrize(
    ("response", "states", "progress"),
    [
        ("", "start", 0),
        ("no event: q", "start", 0),
        ("a", "start far", 1 / 3),
        ("b c", "start", 0),
        ("a, then b", "start far near", 2 / 3),  # "then" holds none
        ("abc", "start far near done", 1),
        ("axaxaxax", "start far start far start far start far start", 1 / 3),  # a cycle
        ("abxbxbxb", "start far near far near far near far near", 2 / 3),
        ("ya", "start detour start", 1 / 3),  # as near as far is, and counted once
        ("yayaabc", "start detour start detour start far near done", 1),
        ("abybybc", "start far near detour near detour near done", 1),  # the way out and back pays nothing
        ("ayxaybx", "start far branch start far branch near far", 2 / 3),  # nor does a second state as near
        ("abzc", "start far near lost", 2 / 3),
    ],
)
def test_progress_is_the_nearest_that_a_response_has_come(response, states, progress):
    automaton = automaton_of(WAYS, "")
    assert automaton.path(response) == states.split()
    term = AutomatonProgress(**WAYS)
    assert term.score(Sample(prompt="", response=response)) == pytest.approx(progress)
    strict = AutomatonProgress(**WAYS, partial=False)
    assert strict.score(Sample(prompt="", response=response)) == float(progress == 1)


def test_nothing_can_be_farmed():
    """Progress is the sum over the path of what comes nearer than anything before; more text never pays twice."""
    automaton, rng = automaton_of(WAYS, ""), random.Random(0)
    whole = automaton.distances["start"]
    for _ in range(500):
        text = "".join(rng.choice("abcxyz") for _ in range(rng.randrange(40)))
        nearest, earned = whole, 0
        for state in automaton.path(text):
            here = automaton.distances.get(state, whole)
            earned += max(0, nearest - here)
            nearest = min(nearest, here)
        assert automaton.progress(text) == pytest.approx(earned / whole)
        assert (automaton.progress(text) == 1) == ("done" in automaton.path(text))
        assert 0 <= automaton.progress(text) <= automaton.progress(text + "abc") <= 1


def test_events_happen_in_the_order_in_which_they_begin():
    events = {"call": r"<call>.*?</call>", "digit": r"\d", "seven": "7", "word": r"(?i)\bdone\b"}
    automaton = automaton_of(
        {"states": [0, 1], "start": 0, "accepting": [1], "events": events, "transitions": {0: {"word": 1}}}, ""
    )
    assert automaton.happening("7 <call>3</call> undone Done") == ["digit", "seven", "call", "digit", "word"]
    assert automaton.path("undone Done") == ["0", "1"]


def test_a_file_says_what_keys_say(tmp_path):
    file = tmp_path / "ways.yaml"
    file.write_text(yaml.safe_dump(WAYS))
    term = AutomatonProgress(path=str(file))
    term.check("reward_model.automaton")
    assert term.automaton == AutomatonProgress(**WAYS).automaton
    assert pickle.loads(pickle.dumps(term)).score(Sample(prompt="", response="ab")) == pytest.approx(2 / 3)
    with RewardModel({"way": term, "there": AutomatonProgress(**WAYS, partial=False, weight=2.0)}, workers=1) as model:
        rewards = model.score([Sample(prompt="", response=text) for text in ("ab", "abc", "x")])
    assert rewards.terms == {"way": pytest.approx([2 / 3, 1, 0]), "there": [0, 1, 0]}
    assert rewards.total == pytest.approx([2 / 3, 3, 0])


def test_distances_that_follow_what_was_reached():
    """a, b, c from 3 to 0; raised by 2 from 2 on after the first iteration, then from 1 on after the second."""
    terms = {"way": AdaptiveAutomaton(**WAYS, theta=2.0)}

    def scored(model, iteration):
        found = model.score([Sample(prompt="", response=text) for text in ("", "a", "ab", "abc", "yxa")], iteration)
        return found.total, found.metrics

    def alone(work):
        return [work()]

    with RewardModel(terms, workers=1) as model:
        assert scored(model, 1) == (pytest.approx([0, 1 / 3, 2 / 3, 1, 1 / 3]), {"way/nearest": 3.0})
        assert scored(model, None)[0][1] == pytest.approx(1 / 3)
        model.score([Sample(prompt="", response="xa")], 2)
        model.learn(2, alone)  # of iteration 2 alone: 2 is the nearest
        # Distances 0, 1, 2 + 2, 3 + 2.
        assert scored(model, 3) == (pytest.approx([0, 1 / 5, 4 / 5, 1, 1 / 5]), {"way/nearest": 2.0})
        state = model.state()
        assert state == {"way": {"raised": [2]}}
        model.score([Sample(prompt="", response="ab")], 4)
        model.learn(4, alone)  # another process has seen what is no nearer
        # Distances 0, 1 + 2, 2 + 4, 3 + 4.
        assert scored(model, 5)[0] == pytest.approx([0, 1 / 7, 4 / 7, 1, 1 / 7])
        model.learn(5, alone)  # acceptance raises nothing
        assert model.state() == {"way": {"raised": [2, 1]}}
    with RewardModel(terms, workers=1) as resumed:
        resumed.restore(state)
        assert scored(resumed, 3)[0] == pytest.approx([0, 1 / 5, 4 / 5, 1, 1 / 5])


def test_processes_learn_the_same_from_what_all_have_seen():
    scorers = [AdaptiveAutomaton(**WAYS).load("way") for _ in range(2)]
    try:
        seen = []
        for scorer, text in zip(scorers, ("a", "ab"), strict=True):
            scorer.outcomes([scorer.begin(Sample(prompt="", response=text))])
            seen += scorer.seen()
        assert seen == [2.0, 1.0]
        for scorer in scorers:
            scorer.learn(seen)
        assert [scorer.state() for scorer in scorers] == [{"raised": [1]}] * 2
    finally:
        for scorer in scorers:
            scorer.close()


def test_an_expression_that_hangs_leaves_its_response_unscored():
    events = {**WAYS["events"], "b": "(x+x+)+b"}
    scorer = AdaptiveAutomaton(**changed(events=events), timeout_s=0.5).load("way")
    try:
        begun = [scorer.begin(Sample(prompt="", response=text)) for text in ("a", "x" * 60)]
        assert scorer.outcomes(begun) == [pytest.approx(1 / 3), Failure("timed out", "no value within 0.5 s")]
        assert scorer.seen() == [2.0]
    finally:
        scorer.close()


DETERMINISTIC = "leads to several states, and an automaton must be deterministic; name one"
MISTAKES = {
    "a key": (changed(event={}), "event: no such key; there are states, ..., traps; did you mean events?"),
    "nothing accepted": (changed(accepting=[]), "accepting: is missing or empty; an automaton needs states, ..."),
    "no start": ({k: v for k, v in WAYS.items() if k != "start"}, "start: is missing or empty; ..."),
    "a state twice": (changed(states=["start", "start"]), "states: start is named twice"),
    "states as text": (changed(states="start"), "states=start: should be a list, as in [start]"),
    "a boolean": (changed(states=["start", False]), "states: False is no name; put quotes around it (...)"),
    "an unknown start": (changed(start="strat"), "start: there is no state strat but start, ...; did you mean start?"),
    "an unknown end": (changed(accepting=["Done"]), "accepting: there is no state Done but ...; did you mean done?"),
    "accepting at once": (
        changed(accepting=["start"]),
        "start: start is accepting, so that there is no progress to make",
    ),
    "no expression": (changed(events={"a": "("}), "events.a=(: is not a regular expression: missing ), ..."),
    "a number": (changed(events={"a": 7}), "events.a=7: should be a regular expression as text; put quotes around it"),
    "everywhere": (changed(events={"a": "a*"}), "events.a=a*: is found in no text at all, so that it would happen ..."),
    "events as a list": (changed(events=["a"]), "events=['a']: should be of the form {name: regular expression}"),
    "an unknown state": (changed(transitions={"strt": {}}), "transitions: there is no state strt but ...mean start?"),
    "an unknown event": (
        changed(transitions={"start": {"bakc": "far"}}),
        "transitions.start: there is no event bakc but a, b, c, back, off, fail; did you mean back?",
    ),
    "an unknown target": (
        changed(transitions={"start": {"a": "fra"}}),
        "transitions.start.a: there is no state fra but start, far, ...; did you mean far?",
    ),
    "several targets": (
        changed(transitions={"start": {"a": ["far", "near"]}}),
        f"transitions.start.a=['far', 'near']: {DETERMINISTIC}",
    ),
    "no way": (
        changed(transitions={"start": {"a": "far"}, "far": {"b": "near"}}),
        "accepting: no events lead from start=start to done",
    ),
    "never reached": (
        changed(states=[*WAYS["states"], "island"], transitions={**WAYS["transitions"], "island": {"a": "near"}}),
        "states: no events lead from start=start to island",
    ),
    "a dead end": (
        changed(traps=[]),
        "states: no events lead from lost to done; add a transition, or name it under traps if a response is to fail"
        " there for good",
    ),
    "a trap with a door": (changed(traps=["far", "lost"]), "traps: far has transitions; a trap is a state that ..."),
    "a trap that accepts": (changed(traps=["lost", "done"]), "traps: done is accepting; a trap is a state that ..."),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_in_one_line(case):
    given, message = MISTAKES[case]
    with pytest.raises(UserError) as told:
        automaton_of(given, "k.")
    assert re.fullmatch(re.escape("k." + message).replace(r"\.\.\.", ".*"), str(told.value)), told.value
    assert "\n" not in str(told.value)


def test_mistakes_in_and_around_a_file(tmp_path):
    twice, empty = tmp_path / "twice.yaml", tmp_path / "empty.yaml"
    twice.write_text("states: [a, b]\nstart: a\naccepting: [b]\nevents: {x: x}\ntransitions:\n  a: {x: b, x: a}\n")
    empty.write_text("# nothing\n")
    (tmp_path / "bad.yaml").write_text("states: [a")
    found = {}
    for name in ("twice", "empty", "bad", "twise"):
        with pytest.raises(UserError) as told:
            AutomatonProgress(path=str(tmp_path / f"{name}.yaml")).check("reward_model.way")
        prefix = f"reward_model.way.path={tmp_path}/{name}.yaml: "
        assert str(told.value).startswith(prefix)
        found[name] = str(told.value).removeprefix(prefix)
    assert found["twice"] == "cannot be read as YAML: the key 'x' is given twice in what begins on line 6"
    assert found["empty"].startswith("holds no automaton; it needs the keys states, start")
    assert found["bad"].startswith("cannot be read as YAML: while parsing a flow sequence")
    assert found["twise"] == "no such file; did you mean twice.yaml or empty.yaml?"
    with pytest.raises(
        UserError, match=r"reward_model\.way\.path=x\.yaml: the file is the automaton; leave out .*start"
    ):
        AutomatonProgress(path="x.yaml", start="a").check("reward_model.way")


def test_the_experiment_holds_the_example_of_the_docs_and_is_checked_up_front():
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        config = compose("train", overrides=["experiment=automaton"])
        wrong = compose("train", overrides=["experiment=automaton", "reward_model.automaton.start=Hall"])
    made, mistaken = (
        to_experiment(type(config)({k: v for k, v in each.items() if k not in ("run_dir", "resume")}))
        for each in (config, wrong)
    )
    assert made.check() == []
    assert made.reward_model["automaton"].automaton == read_automaton(str(MAZE), "path")
    with pytest.raises(
        UserError, match=r"^reward_model\.automaton\.start: there is no state Hall but hall, .*mean hall"
    ):
        mistaken.check()


def test_the_picture_has_a_column_for_each_distance(tmp_path):
    automaton = automaton_of(WAYS, "")
    assert columns_of(automaton.states, automaton.distances) == [
        ["start"], ["far", "detour", "branch"], ["near"], ["done"], ["lost"],
    ]  # fmt: skip
    assert edges({"a": {"x": "b", "y": "b", "z": "a"}}) == {("a", "b"): ["x", "y"], ("a", "a"): ["z"]}
    picture = tmp_path / "ways.png"
    draw_automaton(picture, "ways", automaton.transitions, automaton.distances, automaton.start, automaton.accepting)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [each.name for each in tmp_path.iterdir()] == ["ways.png"]


def test_the_command_shows_states_and_what_a_text_earns(entry, tmp_path):
    code, out, err = entry(tpg.automaton, f"path={MAZE}", f"picture={tmp_path}/maze.png", "text=enwest")
    assert (code, err) == (0, [])
    assert "events: east, north, west, east, south\nstates: hall -> study -> gallery -> stairs\nprogress: 0.5000" in out
    assert (tmp_path / "maze.png").stat().st_size > 10_000
    code, _, err = entry(tpg.automaton, f"path={MAZE}", "picture=maze.gif")
    assert (code, err) == (2, ["error: picture=maze.gif: should end in .png"])
    assert entry(tpg.automaton)[::2] == (2, ["error: path: has no value and needs one; set path=mine.yaml"])


def test_names_in_brackets_are_shown_as_they_are(entry, tmp_path):
    automaton = {
        "states": ["[red]", "end"],
        "start": "[red]",
        "accepting": ["end"],
        "events": {"[go]": "x"},
        "transitions": {"[red]": {"[go]": "end"}},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(automaton))
    code, out, err = entry(tpg.automaton, f"path={tmp_path}/mine.yaml")
    assert (code, err) == (0, [])
    assert "[red], start" in out
    assert "[go] -> end" in out
