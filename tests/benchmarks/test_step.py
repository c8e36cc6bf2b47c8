import json

import pytest
import torch
from workloads import workload

from benchmarks.common import models
from benchmarks.common.arguments import parsed
from benchmarks.common.workload import Workload, unequal_work, work_done
from benchmarks.iteration.comparison import Side, cosine_and_norm, ratios, shares, told
from benchmarks.iteration.options import StepOptions
from benchmarks.iteration.picture import draw
from benchmarks.iteration.table import gain
from benchmarks.iteration.turns import trl_rows
from benchmarks.step import COMMAND, main
from tpg.planning.floor import Floor, Rates, Shape, floor_of, forward_flops, shape_of
from tpg.policies.tiny import Tiny

MEASURE = "tpg.planning.floor.measure"

SMALL = Shape(body_weights=100, head_weights=10, parameters=110, layers=1, query_width=2, key_width=1)
ASKED = {"prompts": 1, "prompt_tokens": 2, "responses": 2, "response_tokens": 3}
TINY = ["side=ours", "model=tiny", "prompts=2", "responses_per_prompt=4", "prompt_tokens=5", "threads=1"]


def run(generate, update, tokens=10, memory=100):
    seconds = {"generate": generate, "reward": 0.0, "update": update, "iteration": generate + update}
    return {"seconds": seconds, "tokens": tokens, "memory_bytes": memory}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["promts=3"], "error: promts: no such key; StepOptions has"),
        (["prompts=x"], "error: prompts=x: should be a valid integer"),
        (["prompts=0"], "error: prompts=0: should be greater than or equal to 1"),
        (["responses_per_prompt=1"], "error: responses_per_prompt=1: should be greater than or equal to 2"),
        (["prompts"], "error: prompts: should be key=value; `python -m benchmarks.step --help` lists the keys"),
        (["prompts=2", "prompts=3"], "error: prompts: is given twice"),
        (["methods=[grp]"], "error: methods.0=grp: should be 'grpo' or 'rloo'; did you mean grpo?"),
        (["methods=[grpo"], "error: methods=[grpo: '[grpo' is no value; a list is [a,b]"),
        (["sweep=length"], "error: sweep.0=length: should be 'lengths', 'groups', 'prompts' or 'model'"),
        (["sweep_values=[4]"], "error: sweep_values=[4]: name the one sweep that they are for, e.g. sweep=lengths"),
        (["trl_microbatch=0"], "error: trl_microbatch=0: should be auto or at least 1"),
        (["side=ours", "sweep=lengths", "sweep_values=[1]"], "error: sweep_values: response_tokens=1: Input should be"),
        (["side=ours", "rollout=natve"], "error: rollout=natve: no such option; there are"),
        (["side=ours", "model=smolm2"], "error: model=smolm2: no folder, no hub id (org/name), and not smollm2, tiny"),
        (["trl=/nowhere/bin/python3"], "error: trl=/nowhere/bin/python3: no such file; give a python that has TRL"),
    ],
)
def test_a_mistake_is_told_in_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MEASURE, lambda device, threads: Rates({"float32": 1.0, "bf16": 1.0}, 1.0))
    assert main(arguments) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert err[0].startswith(message)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_figures_is_not_written_to(capsys, tmp_path):
    (tmp_path / "step.json").write_text("{}")
    assert main(["side=ours", f"run_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err.endswith("holds a step.json already; give another folder\n")
    assert (tmp_path / "step.json").read_text() == "{}"


def test_help_lists_every_key_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        parsed(["--help"], StepOptions, COMMAND)
    assert end.value.code == 0
    out = capsys.readouterr().out
    for line in ("prompts=8 ", "methods=[grpo,rloo] ", "trl=null ", "gradients=true ", "sweep=[] "):
        assert f"  {line}" in out


def test_values_are_read_as_yaml():
    options = parsed(["methods=[rloo]", "repeats=2", "trl=", "sweep=[lengths,groups]"], StepOptions, COMMAND)
    assert (options.methods, options.repeats, options.trl) == (["rloo"], 2, None)
    assert options.sweep == ["lengths", "groups"]
    assert parsed(["sweep=none"], StepOptions, COMMAND).sweep == []


def test_the_floor_is_arithmetic_that_can_be_done_by_hand():
    # Prefill: 2 tokens x 200 and attention 8 x (1 + 2) = 424 FLOP.
    # Decoding: 20 for the prompt's logits; then 2 rows x (200 + 20 + 8 x 3) = 488 FLOP against
    # 4 bytes x (110 weights + 2 x (2 + 2) cached) = 472, then 504 FLOP against 4 x (110 + 2 x (2 + 4)) = 488 bytes.
    # Forward: 6 tokens x 200, logits of 6 x 20, attention 8 x (3 + 2 x (2 x 2 + 3)) = 136: 1456 FLOP; three times that.
    # AdamW: 7 x 4 bytes x 110 = 3080.
    assert forward_flops(SMALL, 1, 2, 2, 3) == 1456
    slow_memory = floor_of(SMALL, Rates({"float32": 1000.0}, 100.0), "float32", **ASKED)
    assert slow_memory.prefill == pytest.approx(0.424)
    assert slow_memory.decode == pytest.approx(0.02 + 4.72 + 4.88)
    assert slow_memory.update == pytest.approx(4.368 + 30.8)
    assert slow_memory.iteration == pytest.approx(0.424 + 9.62 + 35.168)
    fast_memory = floor_of(SMALL, Rates({"float32": 1000.0}, 1e9), "float32", **ASKED)
    assert fast_memory.generate == pytest.approx(0.424 + 0.02 + 0.488 + 0.504)
    assert fast_memory.update == pytest.approx(4.368, rel=1e-4)
    half = floor_of(SMALL, Rates({"bf16": 1000.0}, 100.0), "bf16", **ASKED)
    assert half.decode == pytest.approx(0.02 + 2.36 + 2.44)


def test_a_models_shape_is_counted():
    model, _ = Tiny(hidden_size=8, layers=1, heads=1).load_model_and_tokenizer(0)
    # 4 projections of 8 x 8, 3 of 8 x 24; 99 tokens x 8, tied; 3 norms of 8.
    assert shape_of(model) == Shape(832, 792, 832 + 792 + 24, layers=1, query_width=8, key_width=8)


def test_other_work_than_asked_is_noticed():
    prompts = [(7, 8), (5, 6), (5, 6), (7, 8)]
    assert unequal_work(workload(), work_done(prompts, [3] * 4, 4, 1)) is None
    assert unequal_work(workload(), work_done(prompts, [3, 3, 3, 2], 4, 1)) == "shortest: asked for 3, done 2"
    assert unequal_work(workload(), work_done(prompts, [3] * 4, 3, 1)) == "updated: asked for 4, done 3"
    assert unequal_work(workload(), work_done(prompts, [3] * 4, 4, 2)) == "optimizer_steps: asked for 1, done 2"
    assert unequal_work(workload(), work_done(prompts[:3], [3] * 3, 3, 1)).startswith("prompts: asked for")
    others = [(5, 6), (5, 6), (7, 9), (7, 8)]
    assert unequal_work(workload(), work_done(others, [3] * 4, 4, 1)).startswith("prompts: asked for")


def test_a_workload_survives_the_pipe():
    sent = workload(clip=None, overrides=("a=1", "b=2"))
    assert Workload.from_json(sent.to_json()) == sent
    assert "\n" not in sent.to_json()


def test_ratios_are_medians_over_pairs_of_turns():
    trl = Side([run(6.0, 4.0, memory=300), run(9.0, 3.0, memory=500), run(8.0, 8.0, memory=400)])
    ours = Side([run(3.0, 2.0, memory=200), run(1.0, 3.0, memory=250), run(2.0, 2.0, memory=250)])
    assert ratios(trl, ours) == {"generate": 4.0, "update": 2.0, "iteration": 3.0, "peak_memory": 2.0}
    assert ours.medians()["tokens_per_second"] == 2.5
    assert ours.medians()["generated_per_second"] == 5.0
    assert shares(Floor(prefill=0.25, decode=0.75, update=1.0), ours) == {
        "generate": 0.5,
        "update": 0.5,
        "iteration": 0.5,
    }
    record = told({"trl": trl, "ours": ours}, None)
    assert gain(record, "tokens_per_second") == pytest.approx(3.0)  # 2.5 over the median of 1, 10/12 and 10/16
    failed = Side([run(1.0, 1.0)], error="trl: out of memory", out_of_memory=True)
    assert set(ratios(failed, ours).values()) == {None}
    assert told({"trl": failed, "ours": ours}, None)["trl"]["median"] is None


@pytest.mark.parametrize(
    ("responses", "wanted", "rows"), [(64, 16, 16), (6, 16, 6), (18, 16, 9), (14, 4, 2), (7, 3, 1)]
)
def test_trls_micro_batches_divide_the_responses(responses, wanted, rows):
    assert trl_rows(responses, wanted) == rows


def test_gradients_are_compared_as_one_vector():
    cosine, difference = cosine_and_norm(
        [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])], [torch.tensor([3.0]), torch.tensor([[4.0, 0.0]])]
    )
    assert cosine == pytest.approx(9 / 25)
    assert difference == pytest.approx(32**0.5 / 5)


def test_our_side_runs_alone_and_leaves_figures_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "CACHE", tmp_path / "models")
    monkeypatch.setattr(MEASURE, lambda device, threads: Rates({"float32": 2e9, "bf16": 1e9}, 1e9))
    folder = tmp_path / "run"
    assert main([*TINY, "methods=[rloo]", "response_tokens=6", "repeats=2", f"run_dir={folder}"]) == 0
    result = json.loads((folder / "step.json").read_text())
    for name in ("ratio_iteration", "ratio_generate", "ratio_update", "ratio_peak_memory", "gradient_cosine"):
        assert result[name] is None
    assert result["workload"]["precision"] == "float32"
    assert set(result["versions"]["ours"]) == {"python", "tpg", "torch", "transformers", "lightning"}
    assert result["machine"]["cores"] >= 1
    record = result["methods"]["rloo"]
    runs = record["ours"]["runs"]
    assert [run["tokens"] for run in runs] == [48, 48]
    assert all(run["work"]["updated"] == 8 and run["work"]["optimizer_steps"] == 1 for run in runs)
    for run in runs:
        seconds = run["seconds"]
        assert 0 < seconds["generate"] < seconds["iteration"]
        parts = seconds["generate"] + seconds["reward"] + seconds["update"]
        assert parts == pytest.approx(seconds["iteration"])
        assert run["memory_bytes"] > 50e6
    share = record["floor"]["iteration"] / record["ours"]["median"]["iteration"]
    assert record["floor_share"]["ours"]["iteration"] == pytest.approx(share)
    assert (folder / "step.png").read_bytes().startswith(b"\x89PNG")
    assert "iteration, s" in capsys.readouterr().out


def test_a_picture_shows_what_there_is_of_a_side_that_failed(tmp_path):
    floor = Floor(0.1, 0.2, 0.3)
    both = told({"trl": Side([run(2.0, 3.0)]), "ours": Side([run(1.0, 1.0)])}, floor)
    lost = told({"trl": Side(error="trl was killed", out_of_memory=True), "ours": Side([run(1.0, 1.0)])}, floor)
    result = {
        "workload": {
            "model": "tiny",
            "prompts": 2,
            "responses_per_prompt": 4,
            "response_tokens": 6,
            "prompt_tokens": 5,
            "precision": "float32",
        },
        "machine": {"kind": "cpu-2-cores"},
        "methods": {"grpo": both, "rloo": lost},
        "sweeps": {"groups": {"key": "responses_per_prompt", "points": [{"value": 2, **both}, {"value": 4, **lost}]}},
    }
    draw(tmp_path / "step.png", result)
    assert (tmp_path / "step.png").stat().st_size > 10_000


def test_a_sweep_outlives_a_side_that_runs_out_of_memory(tmp_path, monkeypatch, capsys):
    asked = []

    def pretend(commands, workloads, repeats, name):
        asked.append((name, {side: work.responses_per_microbatch for side, work in workloads.items()}))
        sides = {side: Side([run(2.0 if side == "trl" else 1.0, 1.0)]) for side in workloads}
        if name == "groups-4":
            sides["trl"] = Side(error="trl was killed", out_of_memory=True)
        return sides, {"ours": {"versions": {"tpg": "0.1.0"}, "shape": vars(SMALL), "rollout": "Native"}}

    monkeypatch.setattr(models, "CACHE", tmp_path / "models")
    monkeypatch.setattr(MEASURE, lambda device, threads: Rates({"float32": 2e9, "bf16": 1e9}, 1e9))
    monkeypatch.setattr("benchmarks.common.trl_environment.python_with_trl", lambda given, say: tmp_path / "python")
    monkeypatch.setattr("benchmarks.iteration.turns.measured", pretend)
    folder = tmp_path / "run"
    sweep = ["sweep=groups", "sweep_values=[2,4,5]", "gradients=false", "methods=[grpo,rloo]"]
    assert main([*TINY[1:], "microbatch=6", "trl_microbatch=6", *sweep, f"run_dir={folder}"]) == 0
    assert asked == [
        ("grpo", {"trl": 4, "ours": 6}),
        ("rloo", {"trl": 4, "ours": 6}),
        ("groups-2", {"trl": 4, "ours": 6}),
        ("groups-4", {"trl": 4, "ours": 6}),
        ("groups-5", {"ours": 6}),
    ]
    result = json.loads((folder / "step.json").read_text())
    assert (result["ratio_iteration"], result["ratio_generate"], result["ratio_update"]) == (1.5, 2.0, 1.0)
    assert result["ratio_peak_memory"] == 1.0
    points = result["sweeps"]["groups"]["points"]
    assert [point["value"] for point in points] == [2, 4, 5]
    assert [point["ratios"]["iteration"] for point in points] == [1.5, None, None]
    note = "sweep=groups: TRL ran out of memory at responses_per_prompt=4; beyond that it is not tried"
    assert result["notes"] == [note]
    assert "out of memory" in capsys.readouterr().out
