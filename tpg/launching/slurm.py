"""What SLURM tells a job, and what a job asks of it."""

import os
import subprocess

from tpg.errors import one_line


def job_id() -> str | None:
    """Of the SLURM job that this process belongs to."""
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def restarted() -> bool:
    """Whether SLURM has started this job before."""
    return job_id() is not None and int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def requeued(job: str) -> str:
    """Put the job back into the queue; what is to be said of that."""
    command = ["scontrol", "requeue", job]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except subprocess.CalledProcessError as error:
        return f"warning: {' '.join(command)} failed: {one_line(error.stderr)}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"warning: {' '.join(command)} failed: {error}"
    return f"SLURM job {job} is requeued and will continue"
