"""Rooms: each imports only from rooms below it, and heavy or particular packages stay where they belong."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tpg"
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOORS = [
    {"errors", "spelling", "component", "leaves", "redaction"},
    {"trajectories", "numerics", "randomness"},
    {"estimators"},
    {"objectives", "aggregation", "kl", "mismatch"},
    {"method"},
    {"rewards"},
    {"rewards.learned"},
    {"tasks"},
    {"policies"},
    {"rollouts"},
    {"reporting"},
    {"training"},
    {"stages"},
    {"launching"},
    {"searching", "planning"},
    {"targets", "composition"},
    {"jobs"},
    {
        "automaton",
        "train",
        "plan",
        "evaluate",
        "report",
        "compare",
        "show",
        "sweep",
        "worker",
        "pipelines",
        "sft",
        "reward",
    },
    {"pipeline"},
    {"audit"},
]
"""From the ground up; a room imports from its own floor and from those before it."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PURE = {"trajectories", "numerics", "randomness", "estimators", "objectives", "aggregation", "kl", "mismatch", "method"}
COMPOSING = {
    "automaton",
    "sweep",
    "composition",
    "jobs",
    "train",
    "plan",
    "evaluate",
    "audit",
    "report",
    "show",
    "worker",
    "pipelines",
    "pipeline",
    "sft",
    "reward",
}
ONLY = {
    "hydra": COMPOSING,
    "omegaconf": COMPOSING,
    "lightning": {"training", "stages"},
    "wandb": {"training", "reporting"},
    "tensorboard": {"training"},
    "mlflow": {"training"},
    "trackio": {"training"},
    "peft": {"policies"},
    "transformers": {"policies", "rollouts", "training", "stages", "rewards.learned"},
    "datasets": {"tasks"},
    "reasoning_gym": {"tasks", "rewards"},
    "math_verify": {"rewards"},
    "httpx2": {"rewards"},
    "matplotlib": {"reporting"},
    "optuna": {"searching", "sweep"},
    "scipy": {"reporting"},
    "jinja2": {"reporting", "tasks"},
    "torch": set(FLOOR)
    - {
        "errors",
        "spelling",
        "component",
        "leaves",
        "redaction",
        "rewards",
        "tasks",
        "targets",
        "composition",
        "jobs",
        "automaton",
        "train",
        "plan",
        "report",
        "compare",
        "show",
        "sweep",
        "sft",
        "reward",
    },
}
"""Which rooms may import a package at all, inside functions too."""


def room(path):
    return room_of(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(parts):
    """A folder within a room that has a floor of its own is a room too."""
    within = ".".join(parts[:2])
    return within if within in FLOOR else parts[0]


def imports(path):
    """Every absolute module name that a file imports, at its top or within a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "tpg":
                yield from (f"tpg.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.fixture(params=[path for path in MODULES if path != PACKAGE / "__init__.py"], ids=lambda path: room(path))
def module(request):
    return request.param


def test_every_room_has_a_floor():
    assert {room(path) for path in MODULES} - {"__init__"} <= set(FLOOR)


def test_a_room_imports_from_its_floor_and_below(module):
    for name in imports(module):
        if name.startswith("tpg."):
            imported = room_of(name.split(".")[1:])
            assert imported == room(module) or FLOOR[imported] <= FLOOR[room(module)], name


def test_a_package_is_imported_where_it_belongs(module):
    for name in imports(module):
        package = name.split(".")[0]
        assert room(module) in ONLY.get(package, {room(module)}), name


def test_the_pure_rooms_know_torch_numpy_and_pydantic_alone(module):
    if room(module) in PURE:
        allowed = {"tpg", "torch", "numpy", "pydantic"} | sys.stdlib_module_names
        assert {name.split(".")[0] for name in imports(module)} <= allowed


def test_the_walk_sees_imports_of_every_form(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("import hydra.utils, os\nfrom tpg import kl\ndef f():\n    from wandb.sdk import run\n")
    assert list(imports(path)) == ["hydra.utils", "os", "tpg.kl", "wandb.sdk"]
