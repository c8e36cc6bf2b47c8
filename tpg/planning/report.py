"""A plan from its options to what is printed."""

from collections.abc import Collection
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tpg.planning.advice import Advice, advice_for
from tpg.planning.layout import layout_of
from tpg.planning.machine import device_of, memory_of_device, rates_of
from tpg.planning.memory import Memory, memory_of
from tpg.planning.options import Plan
from tpg.planning.outline import outline_of, policy_outline, precision_of
from tpg.planning.setting import Setting
from tpg.planning.speed import Speed, speed_of
from tpg.training.experiment import Experiment
from tpg.training.hardware import is_here

SHOWN = 8
"""Changes that are printed at most."""


@dataclass(frozen=True, eq=False)
class Planned:
    """What is known of a run before it begins."""

    setting: Setting
    memory: Memory
    speed: Speed | None
    """None where the device is not here and no rates were given."""
    memory_from: str
    rates_from: str


def setting_of(experiment: Experiment, plan: Plan) -> tuple[Setting, str]:
    """The sizes of a run, and where the device's memory is known from. Raises `UserError` where it is not known."""
    layout = layout_of(experiment.trainer)
    device = device_of(plan, experiment.trainer)
    device_memory, memory_from = memory_of_device(plan, device, layout)
    model = policy_outline(experiment.policy)
    precision = precision_of(experiment, model, device, here=is_here(device))
    outline = outline_of(experiment, precision)
    return Setting(experiment, outline, layout, device, precision, plan, device_memory), memory_from


def planned(experiment: Experiment, plan: Plan) -> Planned:
    """The estimate of exactly this experiment."""
    setting, memory_from = setting_of(experiment, plan)
    rates, rates_from = rates_of(plan, setting.device)
    speed = None if rates is None else speed_of(setting, rates)
    return Planned(setting, memory_of(setting), speed, memory_from, rates_from)


def show(found: Planned, trainers: Collection[str], console: Console) -> None:
    """Print the table, the speed, and advice where the run does not fit."""
    setting, memory = found.setting, found.memory
    experiment = setting.experiment
    sizes = f"prompts of {setting.prompt_tokens} and responses of {setting.response_tokens} tokens"
    console.print(
        f"{type(experiment.policy).__name__} on {setting.layout}, {setting.device}, {setting.precision}; {sizes}",
        highlight=False,
    )
    console.print(_table(memory, found.memory_from))
    if found.speed is None:
        console.print(f"tokens/s: unknown; {found.rates_from}", highlight=False)
    else:
        console.print(_speed(found), highlight=False)
    if not memory.fits:
        _print_advice(memory, advice_for(setting, trainers), console)


def verdict(memory: Memory) -> str:
    """Whether it fits, in a line."""
    phase = max(memory.phases, key=lambda phase: memory.phases[phase])
    needs = f"needs {_gb(memory.peak)} GB in {phase}, may take {_gb(memory.allowed)} GB"
    has = f"of {_gb(memory.device_memory)} GB ({memory.margin:.0%} stay free)"
    return f"{'fits' if memory.fits else 'does not fit'}: {needs} {has}"


def _table(memory: Memory, memory_from: str) -> Table:
    table = Table(title="estimated memory of one device at its peak, GB", title_justify="left")
    table.add_column("part")
    table.add_column("what")
    for phase in memory.phases:
        table.add_column(phase, justify="right")
    for part in memory.parts:
        table.add_row(part.name, part.detail, *(_gb(getattr(part, phase)) for phase in memory.phases))
    table.add_section()
    table.add_row("total", "", *map(_gb, memory.phases.values()), style="bold")
    table.add_row("device", memory_from, *(_gb(memory.device_memory) for _ in memory.phases))
    return table


def _speed(found: Planned) -> str:
    assert found.speed is not None
    speed, plan = found.speed, found.setting.plan
    return (
        f"tokens/s of one device: generation {speed.generation:.0f}, update {speed.update:.0f}, iteration"
        f" {speed.iteration:.0f} ({speed.generation_s + speed.update_s:.3g} s). No promise: the machine's limits"
        f" ({found.rates_from}) times what part of them was reached elsewhere, generation"
        f" {plan.generation_efficiency:.0%}, update {plan.update_efficiency:.0%}"
    )


def _print_advice(memory: Memory, advice: list[Advice], console: Console) -> None:
    if not advice:
        console.print("no change that was tried helps; take a smaller policy or a larger device")
        return
    each = "each of these makes it fit" if all(one.fits for one in advice) else "no single change makes it fit"
    table = Table(title=f"what to change: {each}", title_justify="left")
    table.add_column("overrides to paste", overflow="fold")
    table.add_column("GB", justify="right")
    table.add_column("fits")
    for one in advice[:SHOWN]:
        table.add_row(one.overrides, _gb(one.memory.peak), "yes" if one.fits else "no")
    console.print(table)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}" if size < 99.5e9 else f"{size / 1e9:.0f}"
