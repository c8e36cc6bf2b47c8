"""A real vLLM server, and whole runs with vLLM."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from builders import tiny_policy
from vllm_checks import PREFIXES, SAMPLINGS, SIZES, Enough, assert_same, needs_vllm, perturbed, reference

from tpg.errors import UserError
from tpg.rollouts.sampling import GREEDY, Sampling
from tpg.rollouts.vllm import VLLM
from tpg.rollouts.vllm.weights import save_config

pytestmark = needs_vllm


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server for policies of the tiny policy's shape."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    save_config(tiny_policy(), folder)
    options = ["--host=127.0.0.1", f"--port={port}", "--max-model-len=300", "--dtype=float32", "--enforce-eager"]
    command = [sys.executable, "-m", "tpg.rollouts.vllm.serve", str(folder), *options]
    command.append("--kv-cache-memory-bytes=268435456")
    address, log = f"http://127.0.0.1:{port}", folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment(), start_new_session=True)
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{address}/version", timeout=5).read()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)
        assert not left_behind(process.pid)


def left_behind(group: int, seconds: float = 20) -> bool:
    """Whether anything of a process group whose leader has ended is still there after a while; it is killed."""
    for _ in range(int(seconds * 10)):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return True


def test_a_server_does_the_same(server):
    policy = tiny_policy()
    with VLLM(**SIZES, server=server).build(policy) as engine:
        assert server in engine.note
        for sampling in SAMPLINGS:
            assert_same(engine.generate(PREFIXES, sampling), reference(policy, sampling=sampling))
        perturbed(policy, 1.15)
        told = []
        made = engine.generate(PREFIXES, GREEDY, on_finished=told.extend)
        assert_same(made, reference(policy))
        assert sorted(response.place for response in told) == list(range(14))
        with pytest.raises(Enough):
            engine.generate(PREFIXES, Sampling(), on_step=raises)
        assert_same(engine.generate(PREFIXES, GREEDY), reference(policy))


def raises() -> None:
    raise Enough


def test_a_server_generates_with_the_weights_that_were_held(server):
    policy = tiny_policy()
    with VLLM(**SIZES, server=server).build(policy) as engine:
        assert engine.beside_trainer
        expected = reference(policy)
        engine.hold()
        perturbed(policy, 1.15)
        assert_same(engine.generate(PREFIXES, GREEDY), expected)
        assert_same(engine.generate(PREFIXES, GREEDY), reference(policy))


def test_a_server_with_another_model_is_told(server):
    with (
        VLLM(**SIZES, server=server).build(tiny_policy(hidden_size=64)) as engine,
        pytest.raises(UserError, match=r"has another model than the policy.s .*rollouts\.vllm\.serve"),
    ):
        engine.generate(PREFIXES, GREEDY)


RUN = [
    *("debug=fast", "task=sort", "reward_model=[sorted_digits,length]", "reward_model.length.target_tokens=4"),
    *("rollout=vllm", "rollout.max_prompt_tokens=40", "rollout.kv_cache_gib=0.25", "trainer=cpu"),
]


def trained(folder, *overrides: str) -> tuple[str, list[str]]:
    """What a run prints and the rows of its metrics; no process of it is left."""
    command = [sys.executable, "-m", "tpg.train", *RUN, f"run_dir={folder}", *overrides]
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment(), start_new_session=True)
    try:
        assert process.wait(timeout=240) == 0, log.read_text()[-3000:]
    finally:
        left = left_behind(process.pid)
    assert not left
    return log.read_text(), (folder / "metrics.csv").read_text().splitlines()


def test_a_run_in_half_precision(tmp_path):
    printed, rows = trained(tmp_path / "run", "trainer.precision=bf16-mixed")
    assert "vLLM starts in this process" in printed
    assert len(rows) == 3
    gap = float(rows[-1].split(",")[rows[0].split(",").index("sampling/sampling_logp_difference/mean")])
    assert 0 < gap < 0.1  # both in bfloat16, by different kernels


def test_a_run_whose_server_generates_beside_the_update(tmp_path, server):
    lagging = [f"rollout.server={server}", "rollout.lag=1", "mismatch=token_truncate", "trainer.precision=32-true"]
    printed, rows = trained(tmp_path / "run", *lagging)
    assert f"at {server}" in printed
    assert len(rows) == 3
