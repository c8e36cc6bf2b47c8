"""What a sweep's jobs are called and remembered by."""

import re
import subprocess
import sys

import pytest

from tpg.errors import UserError
from tpg.jobs.records import Job, Launch, job_name, swept_overrides


def test_only_what_the_sweep_varies_or_its_sweeper_adds_names_a_job():
    command = ["task=sort", "seed=range(0,2)", "algorithm=grpo,rloo", "reward_model=[a,b]", "hydra/launcher=joblib"]
    of_job = ["task=sort", "seed=1", "algorithm=rloo", "reward_model=[a,b]", "optimizer.lr=0.1", "hydra.launcher.n=2"]
    assert swept_overrides(of_job, command) == ["algorithm=rloo", "optimizer.lr=0.1", "seed=1"]


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        (["algorithm=grpo", "optimizer.lr=1e-5", "seed=3"], "algorithm_grpo-lr_1e-5-seed_3"),
        (["a.clip=1", "b.clip=2"], "a.clip_1-b.clip_2"),
        (["+trainer.devices=1"], "devices_1"),
        (["kl=null"], "kl_null"),
        ([], ""),
    ],
)
def test_a_name_says_key_and_value(swept, name):
    assert job_name(swept) == name


def test_names_that_folders_cannot_have_stay_apart():
    names = [job_name([f"task.path={path}"]) for path in ("a/b", "a-b", "a b", "x" * 300, "x" * 301)]
    assert len(set(names)) == 5
    assert names[1] == "path_a-b"
    assert all(re.fullmatch(r"[\w.+-]{1,100}", name) for name in names)


def test_a_job_that_another_process_runs_is_left_to_it(tmp_path):
    launch = Launch(tmp_path, ["seed=0,1"], False)
    launch.begin()
    job = Job(launch, 0, ["seed=0"], None, "default")
    script = f"""
import sys
from pathlib import Path
from tpg.jobs.records import Job, Launch
job = Job(Launch.opened(Path({str(tmp_path)!r})), 0, ["seed=0"], None, "default")
with job.alone():
    job.note("running")
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        again = Job(launch, 0, ["seed=0"], None, "default")
        with pytest.raises(UserError, match=f"process {holder.pid} on .* is still running this job"), again.alone():
            pass
    finally:
        holder.kill()
        holder.communicate()
    with job.alone():
        pass
