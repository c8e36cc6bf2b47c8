"""Run stages one after the other: `python -m tpg.pipeline pipeline=rlhf`. See `--help`."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tpg.errors import UserError
from tpg.jobs.configs import CONF, new_folder
from tpg.jobs.entry import refuse_ranks, reported, run_entry
from tpg.pipelines.definition import escaped, stage_words
from tpg.redaction import refuse_in_words

if TYPE_CHECKING:
    from tpg.pipelines.definition import Pipeline

WORDS: dict[str, list[str]] = {}
"""What this process was given for its stages, by name."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="pipeline")
def job(config: DictConfig) -> float:
    """Check every stage, then run those that must; returns how many did."""
    return reported(pipeline, config)


def pipeline(config: DictConfig) -> float:
    """What `job` does, mistakes raised."""
    from tpg.composition import find_user_modules
    from tpg.pipelines.checks import check_stage
    from tpg.pipelines.folder import PipelineFolder
    from tpg.pipelines.running import Running
    from tpg.training.run_folder import write_atomically

    find_user_modules()
    refuse_ranks("pipeline")
    declared, path, search = _declared(config)
    for name in config.rerun:
        if name not in declared.stages:
            raise UserError(f"rerun={name}: no stage of this name; there are {', '.join(declared.stages)}")
    for name, stage in declared.stages.items():
        check_stage(name, stage, path, search)
    folder = PipelineFolder(path)
    folder.refuse_other()
    with folder.alone() as lock:
        stages = {name: {"entry": each.entry, "overrides": each.overrides} for name, each in declared.stages.items()}
        declaration = OmegaConf.create({"stages": stages, "search": search})
        write_atomically(folder.definition, OmegaConf.to_yaml(declaration))
        for name in config.rerun:
            folder.forget(name)
        running = Running(folder, lock, search)
        running.all(declared)
    return float(running.ran)


def _declared(config: DictConfig) -> "tuple[Pipeline, Path, str | None]":
    """The checked stages, their folder, and the override that tells them where the user's own options are."""
    if config.resume is not None:
        path = Path(config.resume).absolute()
        if not (path / "pipeline.yaml").is_file():
            raise UserError(f"resume={config.resume}: holds no pipeline: there is no pipeline.yaml in it")
        for word in HydraConfig.get().overrides.task:
            if word.lstrip("+~").split("=")[0] not in ("resume", "rerun"):
                raise UserError(
                    f"{word}: resume goes on with the pipeline's own stages; only rerun=, and words for a stage such as"
                    " train:iterations=50, may be given beside it"
                )
        stored: Any = OmegaConf.to_container(OmegaConf.load(path / "pipeline.yaml"))
        return _pipeline({"stages": stored["stages"]}, config), path, _search() or stored["search"]
    path = new_folder(config, str(HydraConfig.get().runtime.choices["pipeline"]))
    raw: Any = OmegaConf.to_container(config.pipeline, resolve=False)
    return _pipeline(_with_values(raw, config), config), path, _search()


def _pipeline(plain: dict[str, Any], config: DictConfig) -> "Pipeline":
    from tpg.composition import built
    from tpg.pipelines.definition import Pipeline

    try:
        # What is left of `${...}` is for the stages.
        declared = built(OmegaConf.create(_replaced(plain, lambda text: text.replace("${", "\\${"))), Pipeline)
    except UserError as error:
        raise UserError(f"pipeline.{error}") from None
    declared = declared.with_words(_with_values(WORDS, config))
    declared.check()
    return declared


def _with_values(node: Any, config: DictConfig) -> Any:
    """The node with the values of the pipeline's own keys, as of `${seed}`."""

    def value(match: "re.Match[str]") -> str:
        found = OmegaConf.select(config, match[1])
        return match[0] if found is None else str(found)

    return _replaced(node, lambda text: re.sub(r"\$\{([\w.]+)\}", value, text))


def _replaced(node: Any, change: Any) -> Any:
    """The node with every text in it changed."""
    if isinstance(node, dict):
        return {key: _replaced(child, change) for key, child in node.items()}
    if isinstance(node, list):
        return [_replaced(child, change) for child in node]
    return change(node) if isinstance(node, str) else node


def _search() -> str | None:
    """The override that lets a stage find the options that this process was told of."""
    given = [
        source.path if source.schema == "file" else f"{source.schema}://{source.path}"
        for source in HydraConfig.get().runtime.config_sources
        if source.provider not in ("hydra", "main", "schema")
    ]
    folders = [place if "://" in place else f"file://{Path(place).absolute()}" for place in given]
    return f"hydra.searchpath=[{','.join(escaped(place) for place in folders)}]" if folders else None


def main() -> None:
    """The console script tpg-pipeline."""
    try:
        if {"-m", "--multirun"} & set(sys.argv[1:]):
            raise UserError("-m: a pipeline runs one stage after the other; sweep a stage by itself")
        own, for_stages = stage_words(sys.argv[1:])
        refuse_in_words([word for words in for_stages.values() for word in words])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    WORDS.clear()
    WORDS.update(for_stages)
    sys.argv[1:] = own
    run_entry(job)


if __name__ == "__main__":
    main()
