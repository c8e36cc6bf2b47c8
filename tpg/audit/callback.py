"""The audit's verdict on the method that a run trains with, in the run's own folder and summary."""

from pathlib import Path

from pydantic import ValidationError

from tpg.audit.report import write
from tpg.audit.rows import Names, audit, refuse_relative
from tpg.errors import UserError
from tpg.rewards.model import RewardModel
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.training.options import Audit


class AuditVerdict(IterationCallback):
    """Audits the method on a few small worlds before the first iteration, in seconds; it changes nothing of the run.

    The estimator is the one that stands for the trained one in short responses. The run gets audit.json and audit.png,
    and its summary the verdict.
    """

    def __init__(self, worlds: int = 3, horizon: int = 3, limit: int = 5_000, samples: int = 2_000) -> None:
        try:
            self.options = Audit(worlds=worlds, horizon=horizon, limit=limit, samples=samples)
        except ValidationError as error:
            first = error.errors()[0]
            message = first["msg"].removeprefix("Input ")
            raise ValueError(f"{first['loc'][0]}={first['input']}: {message}") from None

    def on_iteration_start(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Audit once, and not again in a continued run."""
        folder = Path(module.trainer.default_root_dir)
        if (folder / "audit.json").exists():
            return
        options, method = self.options, module.collector.method
        name = type(method.estimator).__name__
        estimator = method.estimator.in_miniature(options.horizon)
        parts = (method.objective, method.aggregation, method.kl, method.mismatch)
        names = Names(*(type(part).__name__ for part in parts))
        rewards = module.collector.reward_model
        try:
            if isinstance(rewards, RewardModel):
                refuse_relative(rewards.combination)
            rows = audit({name: estimator}, method, module.collector.rollout.sampling, names, options)
        except UserError as error:
            # No reason to end a run whose model is loaded.
            print(f"warning: callbacks.audit: no verdict: {error}")
            return
        title = f"{options.worlds} worlds, {options.horizon} tokens, what this run trains with"
        write(folder, [row.as_dict() for row in rows], title)
