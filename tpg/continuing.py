"""The config of a run that is continued, and what may be given anew beside `resume=`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tpg.errors import UserError

SINGLE = frozenset({"iterations", "update.tokens_per_microbatch"})
HARDWARE = frozenset({"accelerator", "strategy", "devices", "num_nodes", "tensor_parallel", "timeout_s"})
"""Keys of `trainer` that change where a run computes and none of its numbers."""


def continued_run(config: DictConfig, overrides: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The folder that `resume` names, and its config with what the command line changes of it.

    Raises `UserError` if it holds no run, and as `continued_config`.
    """
    from tpg.training.run_folder import RunFolder

    try:
        folder = RunFolder.opened(Path(config.resume))
    except UserError as error:
        raise UserError(f"resume={error}") from None
    return folder.path, continued_config(folder.config, config, overrides)


def continued_config(path: Path, given: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The run's own config with what the command line changes of it.

    Raises `UserError` for an override that would change numbers of iterations past.
    """
    stored: Any = OmegaConf.load(path)
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        group, _, rest = key.partition(".")
        if key in SINGLE or (group == "trainer" and rest in HARDWARE):
            OmegaConf.update(stored, key, OmegaConf.select(given, key), force_add=True)
        elif key == "trainer":
            stored.trainer.update({name: given.trainer[name] for name in sorted(HARDWARE)})
        elif key == "guards":
            stored.guards = given.guards
        elif group == "guards" and override.startswith("~"):
            owner, _, name = key.rpartition(".")
            (OmegaConf.select(stored, owner) or {}).pop(name, None)
        elif group == "guards":
            OmegaConf.update(stored, key, OmegaConf.select(given, key), force_add=True)
        elif key != "resume":
            raise UserError(
                f"{key}: resume continues with the run's own config; only iterations=, guards, the trainer's devices"
                " and update.tokens_per_microbatch= may be given beside it"
            )
    plain: Any = OmegaConf.to_container(stored)
    return plain
