"""From what workers tell to medians, ratios and shares of the floor."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from tpg.planning.floor import Floor

STAGES = ("generate", "update", "iteration")


@dataclass
class Side:
    """What one side did on one workload."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    out_of_memory: bool = False
    microbatch: int | None = None

    @property
    def ok(self) -> bool:
        """Whether all of it was done."""
        return self.error is None and bool(self.runs)

    def medians(self) -> dict[str, float] | None:
        """Seconds by stage, tokens generated a second, tokens of the iteration a second, bytes at the peak."""
        if not self.ok:
            return None
        found = {stage: median(run["seconds"][stage] for run in self.runs) for stage in (*STAGES, "reward")}
        return {
            **found,
            "tokens_per_second": median(run["tokens"] / run["seconds"]["iteration"] for run in self.runs),
            "generated_per_second": median(run["tokens"] / run["seconds"]["generate"] for run in self.runs),
            "peak_memory": max(run["memory_bytes"] for run in self.runs),
        }

    def to_json(self) -> dict[str, Any]:
        """Every raw figure, and the medians."""
        return {**asdict(self), "median": self.medians()}


def ratios(trl: Side | None, ours: Side) -> dict[str, float | None]:
    """TRL's over ours: medians over the pairs of turns of their ratios, and the ratio of peak memories."""
    if trl is None or not (trl.ok and ours.ok):
        return dict.fromkeys((*STAGES, "peak_memory"))
    pairs = list(zip(trl.runs, ours.runs, strict=True))
    found: dict[str, float | None] = {
        stage: median(a["seconds"][stage] / b["seconds"][stage] for a, b in pairs) for stage in STAGES
    }
    trl_medians, our_medians = trl.medians(), ours.medians()
    assert trl_medians is not None
    assert our_medians is not None
    return {**found, "peak_memory": trl_medians["peak_memory"] / our_medians["peak_memory"]}


def shares(floor: Floor | None, side: Side) -> dict[str, float] | None:
    """The floor's seconds over the side's, by stage: 1 is the machine's limit."""
    medians = side.medians()
    if floor is None or medians is None:
        return None
    return {stage: float(getattr(floor, stage)) / medians[stage] for stage in STAGES}


def told(sides: Mapping[str, Side], floor: Floor | None) -> dict[str, Any]:
    """One workload's record in step.json."""
    record: dict[str, Any] = {name: side.to_json() for name, side in sides.items()}
    record["ratios"] = ratios(sides.get("trl"), sides["ours"])
    record["floor"] = (
        None if floor is None else {**asdict(floor), "generate": floor.generate, "iteration": floor.iteration}
    )
    record["floor_share"] = {name: shares(floor, side) for name, side in sides.items()}
    return record


def cosine_and_norm(ours: Sequence[Any], theirs: Sequence[Any]) -> tuple[float, float]:
    """Of two gradients, a tensor a parameter: their cosine, and the norm of the difference over theirs."""
    import torch

    a, b = (torch.cat([part.flatten().double() for part in parts]) for parts in (ours, theirs))
    return float(a @ b / (a.norm() * b.norm())), float((a - b).norm() / b.norm())
