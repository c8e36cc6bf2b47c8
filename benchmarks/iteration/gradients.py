"""Whether both sides compute the same gradient: a real iteration of each on the same responses, in float32."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common.models import model_folder, random_prompts
from benchmarks.common.workload import Workload
from benchmarks.iteration.comparison import cosine_and_norm
from benchmarks.iteration.turns import Commands

LENGTHS = (5, 12, 8, 3)
"""Of the prompts, tokens."""


def gradient_workload(method: str, rollout: str, seed: int) -> Workload:
    """Prompts and responses of several lengths, two micro-batches, nothing clipped."""
    model = model_folder("tiny")
    return Workload(
        method=method,
        model=model,
        prompts=tuple(random_prompts(model, 1, length, seed)[0] for length in LENGTHS),
        responses_per_prompt=4,
        response_tokens=40,
        responses_per_microbatch=8,
        precision="float32",
        device="cpu",
        threads=1,
        seed=seed,
        clip=None,
        fixed_length=False,
        rollout=rollout,
    )


def compared_gradients(commands: Commands, method: str, rollout: str, seed: int) -> dict[str, Any]:
    """Our side generates and updates; TRL updates on those responses. Their gradients' cosine, and the relative norm of
    the difference. Raises `WorkerFailed`.
    """
    import torch

    workload = gradient_workload(method, rollout, seed)
    with TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.pt", Path(folder) / "trl.pt"
        commands.step(f"{method}: gradients here")
        with commands.worker("ours", workload, f"{method}-gradients") as worker:
            worker.iteration(keep=str(ours))
        commands.step(f"{method}: TRL's gradients")
        with commands.worker("trl", workload, f"{method}-gradients") as worker:
            worker.iteration(given=str(ours), keep=str(theirs))
        kept = torch.load(ours, weights_only=True)
        a, b = kept["gradients"], torch.load(theirs, weights_only=True)["gradients"]
    assert a.keys() == b.keys(), "both sides train the same parameters"
    cosine, difference = cosine_and_norm([a[name] for name in a], [b[name] for name in a])
    lengths = sorted(map(len, kept["responses"]))
    return {"cosine": cosine, "relative_difference": difference, "response_lengths": lengths}
