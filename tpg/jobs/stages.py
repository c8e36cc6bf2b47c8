"""What the entries of the stages before reinforcement learning share: a stage begun, or gone on with, from a config.

`python -m tpg.jobs.stages FOLDER AGENT` is one rank of a stage that another process launched and describes there.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tpg.errors import Interrupted, UserError
from tpg.jobs.configs import BOOKKEEPING, job_of_sweep, new_folder, own_config, refuse_other_run
from tpg.jobs.continuing import HARDWARE, clear_unborn, say_how_to_continue
from tpg.launching import slurm

if TYPE_CHECKING:
    from tpg.launching.exchange import Exchange
    from tpg.stages.options import Stage
    from tpg.stages.run import Kind


def perform(config: DictConfig, kind: "Kind[Any, Any]") -> float:
    """Check, load, train, unless that is done; returns the held-out metric that the stage comes to."""
    from tpg.composition import find_user_modules
    from tpg.launching.processes import launched
    from tpg.launching.spec import Spec
    from tpg.launching.stages import carry_out
    from tpg.training.parallel.ranks import started_together

    find_user_modules()
    if (count := started_together()) > 1:
        raise UserError(
            f"{count} processes were started together (torchrun, srun), and a stage starts its own; start one alone,"
            f" with trainer=ddp trainer.devices={count}"
        )
    path, stored, begun = _place(config, kind)
    finished = path / "summary.json"
    if begun and finished.is_file():
        return _told_finished(path, kind)
    stage = _stage(kind, stored)
    stage.check()
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    stop_file = job_of_sweep(config).launch.stop if sweep else None
    text = OmegaConf.to_yaml(OmegaConf.create(stored))
    spec = Spec(stage, stored, text, path, begun, stop_file)
    try:
        if stage.trainer.processes == 1:
            summary = carry_out(kind, spec)
        else:
            summary = launched(spec, "tpg.jobs.stages", {"entry": kind.entry})
    except Interrupted as interruption:
        if not sweep:
            number, requeue = int(interruption.args[0]), stage.checkpoint.requeue
            say_how_to_continue(kind.entry, config, path, number, requeue=requeue)
        raise
    return float(summary[kind.objective])


def _stage(kind: "Kind[Any, Any]", stored: dict[str, Any]) -> "Stage":
    """The options that a stage's config describes. Raises `UserError` at the first mistake."""
    from tpg.composition import built

    node = OmegaConf.create({key: value for key, value in stored.items() if key not in BOOKKEEPING})
    return built(node, kind.options)


def _taken_part(exchange: "Exchange") -> dict[str, Any]:
    """The summary of the stage that this process is a rank of."""
    from tpg.composition import find_user_modules
    from tpg.launching.exchange import read
    from tpg.launching.spec import Spec
    from tpg.launching.stages import carry_out
    from tpg.stages.kinds import KINDS
    from tpg.training.parallel.ranks import joined

    job = read(exchange.job)
    kind = KINDS[job["entry"]]
    find_user_modules()
    ranks = joined(job["device"], job["tensor_parallel"], job["timeout_s"])
    stored: Any = OmegaConf.to_container(OmegaConf.create(job["text"]))
    stage = ranks.together(lambda: _stage(kind, stored))
    spec = Spec(stage, stored, job["text"], Path(job["path"]), job["begun"], exchange.stop)
    return carry_out(kind, spec, ranks)


def _place(config: DictConfig, kind: "Kind[Any, Any]") -> tuple[Path, dict[str, Any], bool]:
    """The run's folder, its config, and whether it was begun before.

    The same command finds its run again where that is finished, in a sweep, and where SLURM starts its job again.
    """
    from tpg.training.run_folder import RunFolder

    hydra = HydraConfig.get()
    if config.resume is not None:
        return _continued(config, kind, hydra.overrides.task)
    path = new_folder(config, f"{kind.entry.removeprefix('tpg.')}-{hydra.runtime.choices.get('task')}")
    composed = own_config(config)
    clear_unborn(path)
    own = path / "config.yaml"
    again = (path / "summary.json").is_file() or hydra.mode == RunMode.MULTIRUN or slurm.restarted()
    if own.is_file() and again:
        refuse_other_run(path, own, composed, "give another run_dir, or that run's config")
        return path, _stored(own), True
    RunFolder.refuse_other_run(path)
    return path, composed, False


def _continued(config: DictConfig, kind: "Kind[Any, Any]", overrides: list[str]) -> tuple[Path, dict[str, Any], bool]:
    from tpg.training.run_folder import RunFolder

    try:
        folder = RunFolder.opened(Path(config.resume).absolute())
    except UserError as error:
        raise UserError(f"resume={error}") from None
    stored = _stored(folder.config)
    if kind.data not in stored:
        raise UserError(f"resume={folder.path}: the run in it is none of {kind.entry}: its config has no {kind.data}")
    changed = OmegaConf.create(stored)
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        group, _, rest = key.partition(".")
        if key == "tokens_per_microbatch" or (group == "trainer" and rest in HARDWARE):
            OmegaConf.update(changed, key, OmegaConf.select(config, key), force_add=True)
        elif key == "trainer":
            changed.trainer.update({name: config.trainer[name] for name in sorted(HARDWARE)})
        elif key != "resume":
            raise UserError(
                f"{key}: resume continues with the run's own config; only the trainer's devices and"
                " tokens_per_microbatch= may be given beside it"
            )
    plain: Any = OmegaConf.to_container(changed)
    return folder.path, plain, True


def _stored(config: Path) -> dict[str, Any]:
    stored: Any = OmegaConf.to_container(OmegaConf.load(config))
    return dict(stored)


def _told_finished(path: Path, kind: "Kind[Any, Any]") -> float:
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    value = float(summary[kind.objective])
    print(f"{path}: finished before, with {kind.objective} {value:.4f}; nothing to do")
    return value


if __name__ == "__main__":
    from tpg.launching.rank import take_part

    take_part(_taken_part)
