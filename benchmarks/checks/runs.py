"""The demo in short, a run that is continued from its checkpoint, and the same among several GPUs."""

import contextlib
import math
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.checks.outcome import Found
from benchmarks.checks.subject import Subject
from benchmarks.device.measure import Clock, Watch
from tpg.launching.processes import perform
from tpg.launching.spec import RunSpec
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.training.run_folder import RunFolder

REPEATED = 0.1
"""Of the last step: how far a continued run may be off where the device gives not even two equal runs the same."""
STRATEGY_GAP = 1e-3
"""Between an iteration's mean reward on two devices and on one, and of the gradient's norm."""
DEMO = {"finite": ("==", True), "moved": (">=", 1e-12), "mean_logprob_gap": ("<=", 0.1)}


class Snapshots(IterationCallback):
    """Keeps what the last two iterations have made of the policy, on the CPU."""

    def __init__(self, kept: Sequence[int]) -> None:
        self.kept = kept
        self.weights: dict[int, dict[str, Tensor]] = {}

    def on_iteration_end(self, module: TrajectoryPolicyGradient, iteration: int) -> None:
        """Copy it."""
        if iteration in self.kept:
            state = module.policy.state_dict()
            self.weights[iteration] = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}


def demo(subject: Subject, log: Path, clock: Clock) -> Iterator[Found]:
    """`experiment=quickstart`, cut short, in the precision that it chooses by itself."""
    iterations = subject.options.iterations
    shots = Snapshots([1, iterations])
    with _folder() as folder:
        summary = _run(subject, folder, log, clock, shots, [f"iterations={iterations}"], hashed=_is_small(subject))
        rows = RunFolder(folder).rows()
        saved = any((folder / "policy").glob("*.safetensors"))
    numbers = [float(row[name]) for row in rows for name in ("reward", "loss", "grad_norm") if row[name]]
    gap = [float(row["sampling/sampling_logp_difference/mean"]) for row in rows]
    figures = {
        "finite": len(rows) == iterations and saved and all(map(math.isfinite, numbers)),
        "moved": distance(shots.weights[1], shots.weights[iterations]),
        "mean_logprob_gap": max(gap),
        "reward_first": summary["reward/first"],
        "reward_last": summary["reward/last"],
    }
    yield Found(f"demo, {'tiny policy' if _is_small(subject) else 'SmolLM2'}", figures, DEMO)


def resumed(subject: Subject, log: Path, clock: Clock) -> Iterator[Found]:
    """A run in one go, and one that ends before the last iteration and is continued from its checkpoint, in float32.

    Where two equal runs give the same numbers, so must these; where atomic additions make them differ, the continued
    run may be no further off than `REPEATED` of the last step.
    """
    last = subject.options.iterations
    whole, parted, continued = Snapshots([last - 1, last]), Snapshots([last - 1]), Snapshots([last])
    precise = "trainer.precision=32-true"
    with _folder() as folder, _folder() as other:
        _run(subject, folder, log, clock, whole, [f"iterations={last}", precise], hashed=True)
        _run(subject, other, log, clock, parted, [f"iterations={last - 1}", precise], hashed=True)
        _run(subject, other, log, clock, continued, [f"iterations={last}", precise], hashed=True, begun=True)
        texts = [RunFolder(each).completions.read_text() for each in (folder, other)]
        rows = [_told(RunFolder(each).rows()) for each in (folder, other)]
    step = distance(whole.weights[last - 1], whole.weights[last])
    repeated = distance(whole.weights[last - 1], parted.weights[last - 1])
    gap = distance(whole.weights[last], continued.weights[last])
    figures = {
        "step": step,
        "repeated_gap": repeated / step if step else math.inf,
        "resumed_gap": gap / step if step else math.inf,
        "same_completions": texts[0] == texts[1],
        "same_metrics": rows[0] == rows[1],
    }
    bounds: dict[str, tuple[str, Any]] = {"step": (">=", 1e-12), "resumed_gap": ("<=", REPEATED)}
    if repeated == 0:
        bounds |= {"resumed_gap": ("==", 0.0), "same_completions": ("==", True), "same_metrics": ("==", True)}
    yield Found("a run continued from its checkpoint, float32", figures, bounds)


def strategies(subject: Subject, log: Path, clock: Clock) -> Iterator[Found]:
    """Where there are two GPUs, two iterations on both."""
    there = torch.cuda.device_count() if subject.device == "cuda" else 0
    if there < 2:
        yield Found("ddp, fsdp", skipped=f"needs two GPUs, and there are {there}")
        return
    yield from on_two_devices(subject, log, clock)


def on_two_devices(subject: Subject, log: Path, clock: Clock) -> Iterator[Found]:
    """Rewards and gradient norms of two iterations against those on one device, in float32."""
    given = ["iterations=2", "trainer.precision=32-true"]
    expected = _rows(subject, log, clock, given)
    accelerator = "gpu" if subject.device == "cuda" else "cpu"
    for strategy in ("ddp", "fsdp"):
        clock.check()
        several = [f"trainer.strategy={strategy}", "trainer.devices=2", f"trainer.accelerator={accelerator}"]
        rows = _rows(subject, log, clock, [*given, *several])
        pairs = list(zip(rows, expected, strict=True))
        figures = {
            "reward_gap": max(abs(one["reward"] - other["reward"]) for one, other in pairs),
            "norm_gap": max(abs(one["grad_norm"] / other["grad_norm"] - 1) for one, other in pairs),
        }
        yield Found(f"{strategy} on two devices", figures, dict.fromkeys(figures, ("<=", STRATEGY_GAP)))


def _rows(subject: Subject, log: Path, clock: Clock, given: Sequence[str]) -> list[dict[str, float]]:
    with _folder() as folder:
        _run(subject, folder, log, clock, None, given, hashed=True)
        return [{name: float(row[name]) for name in ("reward", "grad_norm")} for row in RunFolder(folder).rows()]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Between two policies' weights."""
    return sum(float((one[name].double() - other[name].double()).square().sum()) for name in one) ** 0.5


def command(subject: Subject, more: Sequence[str], *, hashed: bool) -> list[str]:
    """The demo's command line; `hashed`: with a reward that differs from response to response."""
    reward = ["reward_model=[function]", "~reward_model.last_number"]
    reward += ["+reward_model.function.function=benchmarks.common.reward:token_reward"]
    return [
        "experiment=quickstart",
        *(["policy=tiny"] if _is_small(subject) else []),
        *(reward if hashed else []),
        *("logger=[csv]", "evaluation.every=0", "reward_workers=1", f"seed={subject.options.seed}"),
        f"trainer={'gpu' if subject.device == 'cuda' else 'cpu'}",
        *more,
    ]


def _is_small(subject: Subject) -> bool:
    return subject.model != "smollm2"


def _run(
    subject: Subject,
    folder: Path,
    log: Path,
    clock: Clock,
    shots: Snapshots | None,
    more: Sequence[str],
    *,
    hashed: bool,
    begun: bool = False,
) -> dict[str, Any]:
    """One run as `tpg.train` carries it out; what it prints goes to the log."""
    spec = spec_of(command(subject, more, hashed=hashed), folder, begun=begun)
    spec.experiment.check()
    callbacks = {"clock": Watch(clock, subject.device), **({} if shots is None else {"snapshots": shots})}
    if spec.experiment.trainer.processes == 1:
        spec = replace(spec, experiment=replace(spec.experiment, callbacks=callbacks))
    with log.open("a") as file, contextlib.redirect_stdout(file), _signals():
        return perform(spec)


def spec_of(given: Sequence[str], folder: Path, *, begun: bool = False) -> RunSpec:
    """The run of a command line."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from tpg.composition import resolved, with_shadow_options
    from tpg.jobs.configs import BOOKKEEPING, CONF, experiment_of

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        plain = with_shadow_options(resolved(compose("train", overrides=list(given))))
    config = {
        **{key: value for key, value in plain.items() if key not in BOOKKEEPING},
        "choices": {},
        "run_id": "check",
    }
    return RunSpec(experiment_of(config), config, OmegaConf.to_yaml(OmegaConf.create(config)), folder, begun)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tpg-checks-") as place:
        yield Path(place) / "run"


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """A run listens to signals and does not stop doing so."""
    listening = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in listening.items():
            signal.signal(number, handler)


def _told(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows without what the clock says."""
    timed = ("timing_s/", "perf/", "step_time")
    return [{name: value for name, value in row.items() if not name.startswith(timed)} for row in rows]
