"""Callbacks that write an iteration down: the run's folder, the loggers, the screen."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tpg.training.console import warn
from tpg.training.experience import Experience
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.training.run_folder import RunFolder
from tpg.trajectories import FinishReason


def completion_records(experience: Experience) -> list[dict[str, Any]]:
    """An iteration's completions, one record a response; None stands for what could not be scored."""
    trajectories = experience.trajectories
    rewards_B, scored_B, weights_BT = trajectories.rewards_B, trajectories.scored_B, trajectories.weights_BT
    assert rewards_B is not None
    assert scored_B is not None
    assert weights_BT is not None
    lengths_B = trajectories.action_mask_BT.sum(-1).clamp(min=1)
    mean_weights_B = (weights_BT.sum(-1) / lengths_B).tolist()
    terms_B = {name: values_B.tolist() for name, values_B in trajectories.reward_terms_B.items()}
    return [
        {
            "iteration": experience.iteration,
            "row": int(trajectories.row_B[i]),
            "draw": int(trajectories.draw_B[i]),
            "prompt": sample.prompt,
            "response": sample.response,
            "answer": sample.answer,
            "reward": float(rewards_B[i]) if scored_B[i] else None,
            "rewards": {name: None if math.isnan(values[i]) else values[i] for name, values in terms_B.items()},
            "weight": mean_weights_B[i],
            "tokens": len(sample.token_ids),
            "finish": FinishReason(int(trajectories.finish_reason_B[i])).name.lower(),
        }
        for i, sample in enumerate(experience.scored.samples)
    ]


class FolderRecorder(IterationCallback):
    """Writes metrics.csv and completions.jsonl, and sends the row to every logger."""

    def __init__(self, folder: RunFolder, tables_every: int) -> None:
        self.folder = folder
        self.tables_every = tables_every

    def on_iteration_end(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Write the iteration once."""
        assert module.experience is not None
        row = {"iteration": iteration, **module.metrics}
        self.folder.add_row(row)
        records = completion_records(module.experience)
        self.folder.add_completions(records)
        for logger in module.loggers:
            logger.log_metrics(dict(row), step=iteration)
            if iteration % self.tables_every == 0 and hasattr(logger, "log_table"):
                columns, data = _table(records)
                logger.log_table("completions", columns, data, step=iteration)


def _table(records: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    terms = list(records[0]["rewards"])
    columns = ["iteration", "prompt", "response", "reward", *[f"rewards/{term}" for term in terms], "weight"]
    data = [
        [
            *(record[name] for name in columns[:4]),
            *(record["rewards"][term] for term in terms),
            record["weight"],
        ]
        for record in records
    ]
    return columns, data


class ProgressBar(IterationCallback):
    """A bar of what is done, with the time left, on a terminal."""

    def __init__(self, unit: str, total: int, console: Console) -> None:
        self.total = total
        self.console = console
        self.bar = Progress(
            TextColumn(unit),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar from where the run stands."""
        self.bar.start()
        self.task = self.bar.add_task("train", total=self.total, completed=trainer.current_epoch, status="")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Free the terminal."""
        self.bar.stop()


class ProgressLine(ProgressBar):
    """A bar with reward, tokens/s and the time left; off a terminal, a line an iteration. Warnings are said once."""

    def __init__(self, iterations: int, console: Console) -> None:
        super().__init__("iteration", iterations, console)
        self.said: set[str] = set()

    def on_iteration_end(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Move on."""
        metrics = module.metrics
        status = f"reward {metrics['reward']:.3f}  {metrics['perf/throughput']:.0f} tokens/s"
        if "eval/reward" in metrics:
            status += f"  held out {metrics['eval/reward']:.3f}"
        if metrics.get("critic/warmup"):
            status += "  critic warm-up: the policy stays"
        self.bar.update(self.task, advance=1, status=status)
        if self.bar.disable:
            self.console.print(f"iteration {iteration}/{self.total}  {status}  {metrics['step_time']:.1f} s")
        assert module.experience is not None
        for term, cause in module.experience.scored.first_failure.items():
            self._warn(f"reward_model.{term} left responses unscored: {cause}", term)
        if not module.experience.weighed.needed_B.any():
            self._warn(f"iteration {iteration} carried no signal: every weight is zero", "signal")

    def _warn(self, message: str, subject: str) -> None:
        if subject not in self.said:
            self.said.add(subject)
            warn(self.console, message)
