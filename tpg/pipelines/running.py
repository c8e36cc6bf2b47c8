"""Stages as they are run: skipped, continued, or begun anew with what was there set aside."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tpg.errors import Interrupted, UserError
from tpg.jobs import entry
from tpg.jobs.configs import BOOKKEEPING
from tpg.jobs.continuing import HARDWARE
from tpg.pipelines.checks import composed_stage
from tpg.pipelines.definition import Pipeline, Stage, escaped, key_of
from tpg.pipelines.fingerprints import Inputs, inputs_of
from tpg.pipelines.folder import PipelineFolder
from tpg.pipelines.pictures import draw_pictures
from tpg.pipelines.processes import PASSED_ON, run_stage
from tpg.training.checkpoints import StopRequest

SUMMARY = "summary.json"
OUTPUT = "output.txt"
"""What `tpg.evaluate` printed."""
VOLATILE = (*BOOKKEEPING, "logger", "report", *(f"trainer.{name}" for name in sorted(HARDWARE)))
"""Keys that change none of a stage's numbers."""


@dataclass
class Running:
    """A pipeline whose stages are run one after the other."""

    folder: PipelineFolder
    lock: int
    search: str | None
    """The override that tells stages where the user's own options are."""
    stop: StopRequest = field(default_factory=StopRequest)
    """By which it hears of signals between stages."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    """A line on each stage that is done."""
    ran: int = 0

    def all(self, pipeline: Pipeline) -> None:
        """Run what must. Ends the process with a failing stage's code; raises `Interrupted` when told to stop."""
        listening = {number: signal.getsignal(number) for number in PASSED_ON}
        self.stop.install()
        try:
            for number, (name, stage) in enumerate(pipeline.stages.items(), start=1):
                self._stage(name, stage, f"stage {number}/{len(pipeline.stages)} {name}")
        except Interrupted:
            print(f"interrupted; continue with: {self._again}", file=sys.stderr)
            raise
        finally:
            for number, handler in listening.items():
                signal.signal(number, handler)
        print("", *self.told, sep="\n")
        picture = draw_pictures(self.folder.path, pipeline)
        if picture is not None:
            print(f"picture      {picture}")

    @property
    def _again(self) -> str:
        return f"python -m tpg.pipeline resume={shlex.quote(str(self.folder.path))}"

    def _stage(self, name: str, stage: Stage, label: str) -> None:
        place, began = self.folder.stage(name), time.monotonic()
        inputs = self._inputs(stage)
        self.stop.check()
        fingerprint = self.fingerprints[name] = inputs.fingerprint
        begun = self.folder.record(name)
        same = begun is not None and begun["fingerprint"] == fingerprint
        if same and (place / product(stage)).is_file():
            print(f"{label}: nothing has changed, skipped", flush=True)
            self.told.append(f"{name:12} skipped          {place}")
            return
        continued = same and stage.entry != "evaluate" and (place / "config.yaml").is_file()
        if not continued:
            self._set_aside(name, label, begun, inputs)
        self.folder.keep(name, {"fingerprint": fingerprint, "inputs": inputs.record()})
        print(f"{label}: {'goes on' if continued else 'begins'}", flush=True)
        self._perform(name, stage, continued)
        self.ran += 1
        verb = "went on" if continued else "ran"
        self.told.append(f"{name:12} {verb:7} {time.monotonic() - began:5.0f} s  {place}")

    def _perform(self, name: str, stage: Stage, continued: bool) -> None:
        place, output = self.folder.stage(name), None
        words = [] if continued else stage.words(self.folder.path)
        if stage.entry == "evaluate":
            place.mkdir(exist_ok=True)
            output = place / f"{OUTPUT}.tmp"
            if "report" not in map(key_of, words):
                words = [*words, f"report={escaped(place / 'report.json')}"]
        else:
            words = [f"{'resume' if continued else 'run_dir'}={escaped(place)}", *words]
        words += [self.search] if self.search and not continued else []
        print(f"$ {shlex.join(['python', '-m', f'tpg.{stage.entry}', *words])}", flush=True)
        command = [sys.executable, "-m", f"tpg.{stage.entry}", *words]
        code = run_stage(command, self.lock, _variables(), output)
        if code:
            told = f"error: {name}: ended with code {code}; once that is put right, continue with: {self._again}"
            print(told, file=sys.stderr)
            sys.exit(code if code > 0 else 128 - code)
        if output is not None:
            output.replace(place / OUTPUT)
        elif not (place / SUMMARY).is_file():
            raise UserError(f"{name}: ended well, and left no {SUMMARY} in {place}")

    def _inputs(self, stage: Stage) -> Inputs:
        config = composed_stage(stage.entry, stage.words(self.folder.path), self.search)
        return inputs_of(config, self.folder.path, stage.references(), self.fingerprints, VOLATILE)

    def _set_aside(self, name: str, label: str, begun: Mapping[str, Any] | None, inputs: Inputs) -> None:
        moved = self.folder.set_aside(name)
        if moved is not None:
            why = (inputs.changed(begun["inputs"]) if begun else "") or "it is to run again"
            print(f"{label}: {why}; what it left is kept in {moved}", flush=True)


def product(stage: Stage) -> str:
    """The file that a stage leaves once it has finished, and not before."""
    return OUTPUT if stage.entry == "evaluate" else SUMMARY


def _variables() -> dict[str, str]:
    """This process's, without what its own entry set."""
    own = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    return {**own, "HYDRA_FULL_ERROR": "1"} if entry.WANTS_TRACEBACK else own
