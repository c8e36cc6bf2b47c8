"""The precision that `trainer.precision=auto` chooses, and that a run keeps it."""

import json
import os
import subprocess
import sys

import pytest
import torch
from processes import TINY

from tpg import evaluate, train
from tpg.policies.tiny import Tiny
from tpg.training import hardware
from tpg.training.hardware import Precision, bfloat16_speed, fastest_precision, layer_shapes
from tpg.training.trainer import TrainerOptions

ON_CPU = TrainerOptions(accelerator="cpu", precision="auto")


def measured(monkeypatch, speed):
    """Let the measurement say so, for a policy of any size; how often it is made."""
    calls = []
    monkeypatch.setattr(hardware, "SMALL", 1)
    monkeypatch.setattr(hardware, "bfloat16_speed", lambda shapes, clock: calls.append(shapes) or speed)
    return calls


@pytest.fixture(scope="module")
def policy():
    return Tiny(hidden_size=16, layers=1).load(0)


@pytest.mark.parametrize(("speed", "name"), [(0.01, "32-true"), (1.19, "32-true"), (1.21, "bf16-mixed")])
def test_bfloat16_needs_a_margin(monkeypatch, policy, speed, name):
    calls = measured(monkeypatch, speed)
    precision = fastest_precision(policy, "cpu")
    assert (precision.name, precision.bfloat16_speed) == (name, speed)
    assert calls == [[(16, 16), (16, 48), (48, 16)]]
    assert precision.note == (
        f"trainer.precision=auto: {name}, as matrices of this policy's shapes multiply {speed:.1f} times as fast in"
        " bfloat16 as in float32"
    )


def test_a_small_policy_stays_exact_and_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(hardware, "bfloat16_speed", lambda *_: pytest.fail("measured"))
    assert fastest_precision(Tiny(hidden_size=256, layers=1).load(0), "cpu").name == "32-true"
    with pytest.raises(pytest.fail.Exception):
        fastest_precision(Tiny(hidden_size=512, layers=1).load(0), "cpu")


@pytest.mark.parametrize(("supported", "name"), [(True, "bf16-mixed"), (False, "32-true")])
def test_on_cuda_what_the_gpu_has(monkeypatch, policy, supported, name):
    calls = measured(monkeypatch, 0.1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert fastest_precision(policy, "cuda").name == name
    assert fastest_precision(policy, "mps").name == "32-true"
    assert not calls


def test_the_shapes_are_those_of_the_layers_but_not_of_the_vocabulary():
    assert layer_shapes(Tiny(hidden_size=32, layers=2).load(0)) == [(32, 32), (32, 96), (96, 32)]


def with_durations(monkeypatch, seconds):
    """A clock by which products take so long in turn; the rows of each product."""
    now, rows = [0.0], []

    def linear(given, weight):
        rows.append(len(given))
        now[0] += seconds(len(rows) - 1)

    monkeypatch.setattr(hardware, "linear", linear)
    monkeypatch.setattr(hardware, "SECONDS", 0.0)  # three pairs
    return lambda: now[0], rows


def test_the_speed_is_the_median_of_alternated_pairs(monkeypatch):
    # Ratios 3, 4 and 100 of the larger products; the first pair of each size only sets up.
    few, many = [50.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [50.0, 1.0, 3.0, 1.0, 8.0, 2.0, 100.0, 1.0]
    clock, rows = with_durations(monkeypatch, [*few, *many].__getitem__)
    assert bfloat16_speed([(4, 8)], clock) == 4.0
    assert rows == [8] * 8 + [256] * 8


def test_where_bfloat16_is_hopeless_little_is_measured(monkeypatch):
    clock, rows = with_durations(monkeypatch, lambda turn: 100.0 if turn % 2 else 1.0)
    assert bfloat16_speed([(4, 8)], clock) == 0.01
    assert set(rows) == {8}


def test_the_measurement_takes_no_random_numbers():
    state = torch.get_rng_state()
    assert bfloat16_speed([(64, 64)]) > 0
    assert torch.equal(state, torch.get_rng_state())


def test_a_given_precision_is_taken_as_it_is(policy):
    options = TrainerOptions(accelerator="cpu", precision="16-mixed")
    assert options.on_this_machine(policy) == (options, "")
    with pytest.raises(ValueError, match="precision=auto is to be chosen first"):
        ON_CPU.build(1, None, [], [], [])


def test_the_first_choice_is_kept(monkeypatch, policy, tmp_path):
    calls = measured(monkeypatch, 3.0)
    first, note = ON_CPU.on_this_machine(policy, tmp_path / "precision.json")
    measured(monkeypatch, 0.5)
    again, same = ON_CPU.on_this_machine(policy, tmp_path / "precision.json")
    assert (first.precision, again.precision, same) == ("bf16-mixed", "bf16-mixed", note)
    assert ON_CPU.on_this_machine(policy)[0].precision == "32-true"
    assert len(calls) == 1
    assert Precision.read(tmp_path / "precision.json").bfloat16_speed == 3.0


def test_a_run_is_continued_and_evaluated_in_the_precision_it_began_in(monkeypatch, entry, tmp_path):
    from tpg.training import trainer

    built = []
    build = trainer.TrainerOptions.build

    def watched(self, *arguments):
        built.append(self.precision)
        return build(self, *arguments)

    monkeypatch.setattr(trainer.TrainerOptions, "build", watched)
    calls = measured(monkeypatch, 3.0)
    folder = tmp_path / "run"
    code, out, lines = entry(train, *TINY, "iterations=1", "evaluation.every=0", f"run_dir={folder}")
    assert (code, [line for line in lines if line.startswith("error")]) == (0, [])
    assert "note: trainer.precision=auto: bf16-mixed, as matrices" in " ".join(out.split())
    assert json.loads((folder / "precision.json").read_text())["bfloat16_speed"] == 3.0
    measured(monkeypatch, 0.5)
    assert entry(train, f"resume={folder}", "iterations=2")[0] == 0
    assert entry(evaluate, f"run={folder}", "samples=0")[0] == 0
    assert built == ["bf16-mixed"] * 3
    assert len(calls) == 1
    assert entry(train, *TINY, "iterations=1", f"run_dir={tmp_path / 'other'}")[0] == 0
    assert built[3:] == ["32-true"]


@pytest.mark.parametrize("given", [None, "active"])
def test_idle_threads_of_every_entry_soon_sleep_unless_the_user_says_otherwise(given):
    # The variables are read when torch loads, thus they must be set before.
    environment = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    code = (
        "import os, sys, importlib, pathlib\n"
        "loaded = []\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': loaded.append(os.environ['OMP_WAIT_POLICY'] + os.environ['GOMP_SPINCOUNT'])\n"
        "sys.meta_path.insert(0, Watch())\n"
        "for name in ('train', 'evaluate', 'audit.__main__', 'sweep', 'show', 'report', 'compare'):\n"
        "    importlib.import_module('tpg.' + name)\n"
        "assert 'torch' not in sys.modules or loaded\n"
        "import torch\n"
        "print(loaded[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{given or 'passive'}2000"]
