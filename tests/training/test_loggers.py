"""A run as its loggers have it, read back with each one's own means."""

import csv
import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from processes import TINY

from tpg.composition import resolved, to_experiment, with_shadow_options
from tpg.errors import Interrupted, UserError
from tpg.training.preparation import prepare
from tpg.training.run import run
from tpg.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """Nothing is read from or written to the user's own stores."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def options(*overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        config = compose("train", overrides=[*TINY, "evaluation.every=1", "checkpoint.every=1", *overrides])
        plain = with_shadow_options(resolved(config))
    return OmegaConf.create({key: value for key, value in plain.items() if key not in ("run_dir", "resume")})


def trained(path, *overrides, run_id="abcd1234"):
    """A run, or the rest of one, in this process."""
    config = options(*overrides)
    experiment = to_experiment(config)
    experiment.check()
    folder = RunFolder(path)
    if not path.exists():
        folder.create(OmegaConf.to_yaml(config, resolve=True))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain = OmegaConf.to_container(config, resolve=True)
    try:
        run(experiment, prepare(experiment), folder, {**plain, "run_id": run_id})
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return folder


def interrupted(path, *overrides):
    """The same, stopped as by SIGTERM when two iterations are done."""

    def after_two(self):
        if RunFolder(path).rows()[1:]:
            raise Interrupted(15)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tpg.training.checkpoints.StopRequest.check", after_two)
        with pytest.raises(Interrupted):
            trained(path, *overrides)


def records(file):
    """What `wandb leet inspect` reads of a run, a record each."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return [json.loads(line) for line in seen.splitlines()]


def of_type(seen, kind):
    return [record[kind] for record in seen if record["type"] == kind]


def merged(seen, kind):
    """What all updates of the config or summary come to."""
    found = {}
    for record in of_type(seen, kind):
        found |= record.get("update", {}) | record.get("config", {}).get("update", {})
    return found


def test_a_wandb_run_tells_code_config_environment_and_outcome(tmp_path):
    extra = ["reward_model=[sorted_digits,length,regex]", "reward_model.regex.pattern='[a-m].*[n-z]'"]
    extra += ["callbacks=[gradient_noise,audit]", "shadow_estimators=[grpo]", "update.responses_per_microbatch=4"]
    folder = trained(
        *(tmp_path / "run", "logger=[wandb]", "iterations=2", "logger.wandb.log_policy=true", *extra),
        *("logger.wandb.tags=[first]", "logger.wandb.group=several"),
    )
    (file,) = folder.path.glob("wandb/offline-run-*/run-abcd1234.wandb")
    seen = records(file)
    (begun,) = of_type(seen, "run")
    assert (begun["run_id"], begun["project"], begun["display_name"]) == ("abcd1234", "tpg", "run")
    assert (begun["run_group"], begun["tags"]) == ("several", ["first"])

    config = merged(seen, "run")
    assert config["rollout"]["prompts"] == 4
    assert config["optimizer"]["lr"] == 1e-3
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    if commit:
        assert config["environment"]["git"][0]["commit"] == commit
    assert config["environment"]["versions"]["torch"] == torch.__version__
    assert config["environment"]["python"] == ".".join(map(str, sys.version_info[:3]))

    summary = merged(seen, "summary")
    rows = folder.rows()
    assert summary["final/reward/last"] == pytest.approx(float(rows[-1]["reward"]))
    assert summary["final/gradient/snr"] == pytest.approx(float(rows[-1]["gradient/snr"]))
    shadow = [float(row["shadow/grpo/cosine"]) for row in rows]
    assert summary["final/shadow/grpo/cosine"] == pytest.approx(sum(shadow) / 2)

    assert summary["final/audit/verdict"] == "exact"
    assert summary["final/audit/relative_bias"] < 1e-9

    artifacts = {artifact["name"]: artifact for artifact in of_type(seen, "artifact")}
    assert {"run-abcd1234", "policy-abcd1234"} <= set(artifacts)
    code = {entry["path"] for entry in artifacts["code-abcd1234"]["manifest"]["contents"]}
    assert "environment.json" in code
    left = {entry["path"] for entry in artifacts["run-abcd1234"]["manifest"]["contents"]}
    assert left == {
        "config.yaml",
        "metrics.csv",
        "summary.json",
        "learning_curve.png",
        "audit.json",
        "completions.jsonl",
    }
    policy = {entry["path"] for entry in artifacts["policy-abcd1234"]["manifest"]["contents"]}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= policy
    assert of_type(seen, "exit")[0].get("exit_code", 0) == 0


def test_a_wandb_run_continued_offline_is_the_same_run_on_the_same_axis(tmp_path):
    path = tmp_path / "run"
    interrupted(path, "logger=[wandb]", "iterations=4")
    trained(path, "logger=[wandb]", "iterations=4")
    first, second = (records(file) for file in sorted(path.glob("wandb/offline-run-*/run-abcd1234.wandb")))
    for seen in (first, second):
        assert of_type(seen, "run")[0]["run_id"] == "abcd1234"
        axes = {
            metric["glob_name"]: metric["step_metric"] for metric in of_type(seen, "metric") if "step_metric" in metric
        }
        assert axes == {"*": "iteration"}
    logged = [
        [history["item"]["iteration"] for history in of_type(seen, "history") if "reward" in history["item"]]
        for seen in (first, second)
    ]
    assert logged == [[1, 2], [3, 4]]
    assert of_type(first, "exit")[0]["exit_code"] == 1
    assert of_type(second, "exit")[0].get("exit_code", 0) == 0
    starts = json.loads((path / "environment.json").read_text())
    assert [start["after_iteration"] for start in starts] == [0, 2]


def test_every_metric_that_a_sweep_follows_is_logged(tmp_path):
    rewards = [
        "task=addition",
        "reward_model=[last_number,length]",
        "reward_model.length.target_tokens=6",
        "rollout.max_prompt_tokens=64",
    ]
    folder = trained(tmp_path / "run", "iterations=1", *rewards)
    columns = next(csv.reader(folder.metrics.open(newline="")))
    for sweep in (ROOT / "sweeps" / "wandb").glob("*.yaml"):
        assert yaml.safe_load(sweep.read_text())["metric"]["name"] in columns


def test_a_run_goes_to_several_loggers_at_once_and_each_reads_it_back(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    pytest.importorskip("mlflow")
    pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    path, uri = tmp_path / "run", f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    several = ["logger=[tensorboard,mlflow,trackio,csv]", f"logger.mlflow.tracking_uri={uri}", "iterations=4"]
    interrupted(path, *several)
    folder = trained(path, *several)
    rows = folder.rows()
    rewards = [(int(row["iteration"]), float(row["reward"])) for row in rows]
    assert len(rewards) == 4

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("reward")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("reward")] == pytest.approx([value for _, value in rewards])
    assert events.Scalars("final/reward/last")[-1].value == pytest.approx(rewards[-1][1])

    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    (stored,) = client.search_runs([client.get_experiment_by_name("tpg").experiment_id])
    assert (stored.info.run_name, stored.info.status) == ("run", "FINISHED")
    history = [(point.step, point.value) for point in client.get_metric_history(stored.info.run_id, "reward")]
    assert history == [(step, pytest.approx(value)) for step, value in rewards]
    assert stored.data.params["rollout/prompts"] == "4"
    assert {"environment.json", "summary.json", "metrics.csv"} <= {
        entry.path for entry in client.list_artifacts(stored.info.run_id)
    }

    def trackio(metric):
        command = [str(Path(sys.executable).with_name("trackio")), "get", "metric", "--project", "tpg", "--json"]
        asked = subprocess.run(
            [*command, "--run", "run-abcd1234", "--metric", metric],
            capture_output=True,
            text=True,
            check=True,
            env={"TRACKIO_DIR": str(tmp_path / "trackio"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        )
        return [(point["step"], point["value"]) for point in json.loads(asked.stdout)["values"]]

    assert trackio("reward") == [(step, pytest.approx(value)) for step, value in rewards]
    tables = trackio("completions")
    assert [step for step, _ in tables] == [1, 2, 3, 4]
    assert [len(table["_value"]) for _, table in tables] == [16] * 4


@pytest.mark.parametrize(
    ("name", "lacks", "expected"),
    [
        ("tensorboard", "tensorboard", "logger.tensorboard: needs tensorboard; pip install tensorboard"),
        ("mlflow", "alembic", "logger.mlflow: needs alembic; pip install alembic"),
        ("trackio", "trackio", "logger.trackio: needs trackio; pip install trackio"),
    ],
)
def test_a_missing_package_is_told_before_anything_is_loaded(monkeypatch, name, lacks, expected):
    there_is = importlib.util.find_spec
    experiment = to_experiment(options(f"logger=[{name}]"))
    monkeypatch.setattr(
        "tpg.training.tracking.loggers.importlib.util.find_spec",
        lambda module, *rest: None if module == lacks else there_is(module, *rest),
    )
    with pytest.raises(UserError) as told:
        experiment.check()
    assert str(told.value) == expected


def test_online_without_a_key_is_told_before_anything_is_loaded(monkeypatch, tmp_path):
    experiment = to_experiment(options("logger=[wandb]", "logger.wandb.mode=online"))
    with pytest.raises(UserError, match=r"^logger.wandb.mode=online: not logged in; run `wandb login`, or use"):
        experiment.check()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    experiment.check()
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    experiment.check()
