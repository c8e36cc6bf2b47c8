"""What a report is asked for."""

from pydantic import Field

from tpg.component import component


@component
class ReportOptions:
    """Which runs, where to, and how they are compared."""

    runs: str | list[str]
    """Folders, globs, or `wandb:entity/project` with `/group` if one group is meant."""
    report_dir: str | None = None
    across: list[str] = Field(default_factory=list)
    """Settings that a method is averaged over, as tasks are in arXiv 2108.13264: each value is a stratum."""
    finished_only: bool = False
    threshold: float | None = None
    """The reward whose first reaching is timed; None: half-way from the mean start to the best method's end."""
    completions: int = Field(default=3, ge=0)
    """Best, and worst, and unscored completions to show of each method."""
    resamples: int = Field(default=2000, ge=100)
    """Of the bootstrap."""

    @property
    def places(self) -> list[str]:
        """The runs asked for, one place each."""
        return [self.runs] if isinstance(self.runs, str) else self.runs
