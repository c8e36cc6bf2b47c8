"""`python -m tpg.worker FOLDER AGENT`: one rank of a run that another process launched and describes there."""

from pathlib import Path
from typing import Any

from tpg.launching.exchange import Exchange, read
from tpg.launching.rank import take_part


def _run(exchange: Exchange) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from tpg.composition import find_user_modules
    from tpg.jobs.configs import experiment_of
    from tpg.launching.spec import RunSpec, carry_out
    from tpg.training.parallel.ranks import joined

    job = read(exchange.job)
    find_user_modules()
    ranks = joined(job["device"], job["tensor_parallel"], job["timeout_s"])
    stored: Any = OmegaConf.to_container(OmegaConf.create(job["text"]))
    spec = RunSpec(
        experiment=ranks.together(lambda: experiment_of(stored)),
        config=stored,
        text=job["text"],
        path=Path(job["path"]),
        begun=job["begun"],
        stop_file=exchange.stop,
        watched=job["watched"],
    )
    return carry_out(spec, ranks, exchange.ask if job["watched"] else None)


def main() -> None:
    """Take part, and leave word of how it ended."""
    take_part(_run)


if __name__ == "__main__":
    main()
