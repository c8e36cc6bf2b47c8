"""Callbacks that write a step down: the run's folder, the loggers, the screen."""

from typing import Any

from rich.console import Console

from tpg.stages.module import StageCallback, StageModule
from tpg.training.recording import ProgressBar
from tpg.training.run_folder import RunFolder

FIRST = 5
"""Steps of which each has a line off a terminal."""
LINES = 50
"""About how many lines there are of the others."""
SHOWN = {
    "loss": "loss {:.4f}",
    "accuracy": "accuracy {:.3f}",
    "perf/throughput": "{:.0f} tokens/s",
    "eval/loss": "held out {:.4f}",
    "eval/perplexity": "perplexity {:.3f}",
    "eval/accuracy": "accuracy {:.3f}",
    "eval/calibration_error": "calibration error {:.3f}",
}


class StepRecorder(StageCallback):
    """Writes metrics.csv, whose `iteration` is the optimizer step, and sends the row to every logger."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_start_measured(self, module: StageModule[Any]) -> None:
        """The row of step 0."""
        self._record(module, 0)

    def on_iteration_end(self, module: Any, iteration: int) -> None:
        """A step's row."""
        self._record(module, iteration)

    def _record(self, module: StageModule[Any], step: int) -> None:
        row = {"iteration": step, **module.metrics}
        self.folder.add_row(row)
        for logger in module.loggers:
            logger.log_metrics(dict(row), step=step)


class StepLine(ProgressBar, StageCallback):
    """A bar with loss, tokens/s and the time left; off a terminal lines, of the first steps and of some others."""

    def __init__(self, steps: int, console: Console) -> None:
        super().__init__("step", steps, console)

    def on_start_measured(self, module: StageModule[Any]) -> None:
        """What there is before any step."""
        self.console.print(f"step 0/{self.total}  {shown(module.metrics)}", highlight=False)

    def on_iteration_end(self, module: Any, iteration: int) -> None:
        """Move on."""
        metrics = module.metrics
        self.bar.update(self.task, advance=1, status=shown(metrics))
        every = max(1, self.total // LINES)
        measured = any(name.startswith("eval/") for name in metrics)
        if self.bar.disable and (iteration <= FIRST or iteration % every == 0 or measured):
            line = f"step {iteration}/{self.total}  {shown(metrics)}  {metrics['step_time']:.1f} s"
            self.console.print(line, highlight=False)


def shown(metrics: dict[str, float]) -> str:
    """The metrics that a line has room for."""
    return "  ".join(form.format(metrics[name]) for name, form in SHOWN.items() if name in metrics)
