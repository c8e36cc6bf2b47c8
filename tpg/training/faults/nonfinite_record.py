"""What a run says and keeps of optimizer steps that are skipped because they are not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tpg.errors import UserError
from tpg.training.console import warn
from tpg.training.experience import Experience
from tpg.training.faults.nonfinite import SkippedStep
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.training.recording import completion_records

REMEDIES = (
    "a smaller optimizer.lr, trainer.gradient_clip_val, trainer.precision=32-true, or a bounded reward may help; "
    "trainer.detect_anomaly=true names the operation"
)


class NonfiniteSteps(IterationCallback):
    """Says once that a step was skipped, keeps what it was made of, and ends the run when too many follow each other.

    `folder` is None where another process writes; `limit` is how many in a row end the run, None: none do.
    """

    def __init__(self, folder: Path | None, limit: int | None, console: Console) -> None:
        self.folder = folder
        self.limit = limit
        self.console = console
        self._said = False

    def on_step_skipped(self, module: TrajectoryPolicyGradient, step: SkippedStep) -> None:
        """Keep the first of an iteration; raise `UserError` at the last that is borne."""
        assert module.experience is not None
        kept = None if self.folder is None else self.folder / "nonfinite" / f"iteration-{module.iteration:06d}.pt"
        if kept is not None and step.first:
            save(kept, module.experience, step)
        what = f"iteration {module.iteration}: {step.described}"
        place = "" if kept is None else f"; its responses are in {kept} and .json beside it"
        if self.limit is not None and step.in_a_row >= self.limit:
            raise UserError(
                f"{what}; {step.in_a_row} optimizer steps in a row were skipped, which is"
                f" update.stop_after_nonfinite={self.limit}{place}; {REMEDIES}"
            )
        if not self._said:
            self._said = True
            message = f"{what}: the optimizer step is skipped{place}; counted in update/skipped_steps"
            warn(self.console, message)


def save(path: Path, experience: Experience, step: SkippedStep) -> None:
    """Write an iteration's trajectories as plain tensors, and their texts to a JSON file of the same name.

    `torch.load(path, weights_only=True)` reads the tensors by their names in `Trajectories`; `step_B` tells which of
    them the skipped step was of.
    """
    path.parent.mkdir(exist_ok=True)
    trajectories = experience.trajectories
    in_step_B = torch.zeros(len(trajectories), dtype=torch.bool)
    in_step_B[step.responses] = True
    kept = {
        **trajectories.tensors(),
        "reward_terms_B": dict(trajectories.reward_terms_B),
        "step_B": in_step_B,
        "loss": step.loss,
        "grad_norms": list(step.norms),
        "optimizer_step": step.number,
    }
    torch.save(kept, path)
    records = [
        {**{name: _as_json(value) for name, value in record.items()}, "in_step": chosen}
        for record, chosen in zip(completion_records(experience), in_step_B.tolist(), strict=True)
    ]
    path.with_suffix(".json").write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _as_json(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
