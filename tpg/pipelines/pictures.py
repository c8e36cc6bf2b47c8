"""The picture of a pipeline whose reinforcement learning watched the truth beside a learned reward."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tpg.pipelines.definition import Pipeline
from tpg.reporting.over_optimization import Point, best_of_n_points, draw_over_optimization, run_points


def draw_pictures(run: Path, pipeline: Pipeline) -> Path | None:
    """Draw the true against the learned reward of every stage that has both: a term of weight 0 is the truth.

    Best-of-n of a stage that compared the same two is drawn beside. None if there is nothing to draw.
    """
    runs: dict[str, list[Point]] = {}
    pairs: set[tuple[str, str]] = set()
    for name, stage in pipeline.stages.items():
        folder = run / name
        if stage.entry == "train" and (folder / "metrics.csv").is_file():
            terms: Any = OmegaConf.load(folder / "config.yaml").reward_model
            watched = [str(term) for term in terms if terms[term].weight == 0]
            learned = [str(term) for term in terms if terms[term].weight != 0]
            if len(watched) == len(learned) == 1:
                runs[name] = run_points(folder / "metrics.csv", learned[0], watched[0])
                pairs.add((learned[0], watched[0]))
    if not any(runs.values()):
        return None
    best: list[Point] = []
    for name, stage in pipeline.stages.items():
        report = run / name / "report.json"
        if stage.entry == "evaluate" and report.is_file():
            found = json.loads(report.read_text())
            if (",".join(found["reward_model"]), ",".join(found["against"])) in pairs and not best:
                best = best_of_n_points(report)
    path = run / "over_optimization.png"
    draw_over_optimization(path, runs, best)
    return path
