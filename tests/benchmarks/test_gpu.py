"""The GPU's benchmark on a CPU and a tiny model: what it measures, and that it survives what goes wrong."""

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.device import checks
from benchmarks.device import measure as measuring
from benchmarks.device.checks import checked, greedy_tokens
from benchmarks.device.measure import Clock, OutOfTime, shares
from benchmarks.gpu import main
from tpg.planning.floor import Rates, Shape

CPU = ["device=cpu", "tiny=true"]
SMALL = Shape(body_weights=100, head_weights=10, parameters=110, layers=1, query_width=2, key_width=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    from tpg.planning import floor

    monkeypatch.setattr(floor, "measure", lambda device, threads: Rates({"bf16": 2e9, "float32": 1e9}, 1e9))


def result(folder):
    return json.loads((folder / "gpu.json").read_text())


def test_shares_by_hand():
    # One prompt of 2 tokens, 2 responses of 3; bf16. Every step reads 2 * (110 + 2 * (2 + 2 * given)) bytes: 236, 244.
    record = {"prefill_s": 1.0, "decode_s": 2.0, "update_s": 4.0}
    rates = Rates({"bf16": 1000.0, "float32": 500.0}, 100.0)
    sizes = {"prompts": 1, "prompt_tokens": 2, "responses": 2, "response_tokens": 3}
    found = shares(record, SMALL, rates, "bf16-mixed", gpu="NVIDIA H100 80GB HBM3", **sizes)
    assert found["tokens_per_s"] == pytest.approx(6 / 3)
    assert found["decode_bandwidth_share"] == pytest.approx((236 + 244) / 2 / 100)
    # Prefill: 2 * 100 * 2 for the layers, 4 * 2 * (1 + 2) for attention.
    assert found["prefill_flops_share"] == pytest.approx((400 + 24) / 1000)
    # A pass: 6 inputs in the layers, 6 predictions, 3 + 2 * (2 * 2 + 3) pairs in attention; backward twice that.
    flops = 3 * (2 * 100 * 6 + 2 * 10 * 6 + 8 * 17)
    assert found["update_flops_per_s"] == pytest.approx(flops / 4)
    assert found["update_flops_share"] == pytest.approx(flops / 4 / 1000)
    assert found["update_mfu_of_data_sheet"] == pytest.approx(flops / 4 / 989e12)
    assert shares(record, SMALL, rates, "bf16-mixed", **sizes)["update_mfu_of_data_sheet"] is None


def test_a_tiny_run_on_the_cpu(tmp_path, capsys):
    assert main([*CPU, f"run_dir={tmp_path}"]) == 0
    told = result(tmp_path)
    assert told["complete"]
    assert [check["passed"] for check in told["checks"].values()] == [True] * 5
    native, reference = told["measured"]
    assert (native["engine"], reference["engine"]) == ("native", "transformers")
    assert all(native[name] > 0 for name in ("prefill_s", "update_s", "tokens_per_s", "update_flops_share"))
    assert native["log_prob_gap"]
    assert "update_s" not in reference
    out = capsys.readouterr().out
    assert "qwen3:tiny native: " in out
    assert out.count("passed") == 5
    assert main([*CPU, f"run_dir={tmp_path}"]) == 2
    assert "holds a gpu.json already" in capsys.readouterr().err


def test_out_of_memory_is_a_result_and_the_next_model_is_tried(tmp_path, monkeypatch):
    calls = []

    def measure(size, engine, *rest, **options):
        calls.append(engine)
        if engine == "native":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        raise ValueError("something else")

    monkeypatch.setattr(measuring, "measure", measure)
    assert main([*CPU, "checks=false", f"run_dir={tmp_path}"]) == 1
    assert calls == ["native", "transformers"]
    assert [record["error"] for record in result(tmp_path)["measured"]] == [
        "out of memory",
        "ValueError: something else",
    ]


def test_the_end_of_the_time_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    def measure(size, engine, options, device, rates, clock, update):
        Clock(clock.end - 1e6).check()

    monkeypatch.setattr(measuring, "measure", measure)
    assert main([*CPU, "checks=false", f"run_dir={tmp_path}"]) == 0
    told = result(tmp_path)
    assert (told["complete"], [record["error"] for record in told["measured"]]) == (False, ["out of time"])
    assert "the time is over; what was measured is kept" in capsys.readouterr().out


def test_nothing_is_begun_without_time(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "measure", lambda *_, **__: pytest.fail("begun"))
    assert main([*CPU, "checks=false", "minutes=0.1", f"run_dir={tmp_path}"]) == 0
    assert result(tmp_path)["measured"] == []


def test_a_running_measurement_ends_in_time(tmp_path):
    from benchmarks.device.options import GpuOptions

    rates = Rates({"bf16": 1.0, "float32": 1.0}, 1.0)
    options = GpuOptions(**{**gpu.TINY, "response_tokens": 30})
    with pytest.raises(OutOfTime):
        measuring.measure("tiny", "native", options, "cpu", rates, Clock(0.0), True)


def test_a_check_can_fail(monkeypatch):
    generated = checks._generated

    def wrong(engine, device, seed, sampling):
        policy, rollout = generated(engine, device, seed, sampling)
        if engine == "native":
            rollout.response_ids_BT[1, 2] += 1
        return policy, rollout

    assert greedy_tokens("native", "cpu", 0)["passed"]
    monkeypatch.setattr(checks, "_generated", wrong)
    assert greedy_tokens("native", "cpu", 0) == {"passed": False, "tokens_equal": False, "largest_gap": None}
    assert checked(lambda: 1 / 0) == {"passed": False, "error": "ZeroDivisionError: division by zero"}
