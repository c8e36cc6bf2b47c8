"""Nothing that a model, a checkpoint or a config brings along is run unless the user says so."""

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import tiny_policy
from hydra.utils import get_class
from omegaconf import OmegaConf

import tpg.train
from tpg.component import component
from tpg.composition import built
from tpg.errors import UserError
from tpg.policies.huggingface import HuggingFace
from tpg.training.checkpoint_files import AtomicCheckpointIO
from tpg.training.experiment import Experiment

PACKAGE, CONF = Path(tpg.__file__).parent, Path(__file__).parents[2] / "conf"
FILES = sorted(PACKAGE.rglob("*.py"))
SMALL = [
    "debug=fast", "iterations=1", "task=sort", "task.train_size=16", "reward_model=[sorted_digits]", "logger=[csv]",
    "trainer=cpu", "reward_workers=1", "policy.hidden_size=32", "policy.layers=2", "evaluation.every=0",
]  # fmt: skip
PICKLE = {
    "rewards/workers.py",
    "tasks/reasoning_gym.py",
    "training/parallel/ranks.py",
    "training/checkpoint_files.py",  # catches what torch raises for a damaged file
}
"""Where pickles go between a process and its own children, or the ranks of one run."""


@component
class Owner:
    """Of one part of any kind."""

    x: Any


def calls(text):
    """Every call of a source with the dotted name of what is called, as far as it is one."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(node, name):
    return next((ast.unparse(each.value) for each in node.keywords if each.arg == name), None)


def unsafe(text):
    """What in a source loads or runs more than data."""
    found = []
    for name, node in calls(text):
        last = name.rpartition(".")[2]
        if name.endswith("torch.load") and keyword(node, "weights_only") != "True":
            found.append(f"{name} without weights_only=True")
        if last == "fit" and keyword(node, "ckpt_path") and "True" not in (keyword(node, "weights_only") or ""):
            found.append(f"{name} without weights_only")
        if last == "load_from_checkpoint" or name in ("eval", "exec", "os.system", "os.popen", "yaml.load"):
            found.append(name)
        if keyword(node, "shell") == "True" or keyword(node, "allow_pickle") == "True":
            found.append(f"{name} with shell or allow_pickle")
        if keyword(node, "trust_remote_code") == "True":
            found.append(f"{name} trusts remote code")
        loads_weights = last == "from_pretrained" and "ForCausalLM" in name and not keyword(node, "gguf_file")
        if loads_weights and keyword(node, "use_safetensors") != "True":
            found.append(f"{name} without use_safetensors=True")
    return found


SANDBOXED = {"rewards/code/candidate.py", "rewards/code/judge.py"}
"""What runs a response's code and a dataset's tests, in processes without network, files and privileges."""


def test_the_source_loads_data_only():
    assert len(FILES) > 100
    found = {str(file.relative_to(PACKAGE)): unsafe(file.read_text()) for file in FILES}
    allowed = {file for file in SANDBOXED if set(found[file]) == {"exec"}}
    assert {file: told for file, told in found.items() if told and file not in allowed} == {}


def test_pickle_is_for_own_children_alone():
    users = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {"pickle", "dill", "cloudpickle", "marshal", "shelve"} & {name.split(".")[0] for name in names}:
                users.add(str(file.relative_to(PACKAGE)))
    assert users == PICKLE


def test_the_walk_finds_what_it_looks_for():
    bad = [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "trainer.fit(m, ckpt_path=p)",
        "yaml.load(x)",
        "eval(x)",
        "subprocess.run(x, shell=True)",
        "AutoModelForCausalLM.from_pretrained(p)",
        "f(trust_remote_code=True)",
    ]
    assert [len(unsafe(line)) for line in bad] == [1] * len(bad)
    assert unsafe("torch.load(p, weights_only=True)\nmodel.eval()\nAutoTokenizer.from_pretrained(p)") == []


class Runs:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def model(tmp_path):
    """A folder with a whole model."""
    policy = tiny_policy(hidden_size=16, layers=1)
    policy.save(tmp_path / "model")
    return tmp_path / "model"


def test_a_whole_folder_is_loaded(model):
    HuggingFace(path=str(model)).check()
    assert HuggingFace(path=str(model)).load(0) is not None


def test_pickled_weights_are_refused_with_the_remedy_and_never_opened(model, tmp_path):
    for file in model.glob("*.safetensors"):
        file.unlink()
    torch.save({"x": Runs(tmp_path / "ran")}, model / "pytorch_model.bin")
    policy = HuggingFace(path=str(model))
    with pytest.raises(UserError, match=r"pickled weights .* can run code and are not loaded; .*save_pretrained"):
        policy.check()
    with pytest.raises(UserError, match=r"^policy\.path="):  # a check that was passed over
        policy.load(0)
    assert not (tmp_path / "ran").exists()


def test_the_remedy_makes_a_folder_that_loads(model):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    (weights,) = model.glob("*.safetensors")
    torch.save(load_file(weights), model / "pytorch_model.bin")
    weights.unlink()
    AutoModelForCausalLM.from_pretrained(str(model), use_safetensors=False).save_pretrained(str(model))
    assert HuggingFace(path=str(model)).load(0) is not None


def test_code_in_a_models_folder_runs_only_when_it_is_trusted(model, tmp_path):
    (model / "mine.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "from transformers import LlamaConfig as Base\n"
        "class Mine(Base):\n    model_type = 'mine'\n"
    )
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="trust_remote_code"):
        HuggingFace(path=str(model)).load(0)
    assert not (tmp_path / "ran").exists()


def test_remote_code_is_trusted_nowhere_by_default():
    trusting = []
    for file in CONF.rglob("*.yaml"):
        text = file.read_text()
        if "trust_remote_code" in text:
            trusting.append(file.name)
            options = OmegaConf.to_container(OmegaConf.load(file))
            assert options["trust_remote_code"] is False
            defaults = {each.name: each.default for each in dataclasses.fields(get_class(options["_target_"]))}
            assert defaults["trust_remote_code"] is False
    assert "huggingface.yaml" in trusting


def test_a_checkpoint_that_would_run_code_is_not_resumed_from(entry, tmp_path):
    run = tmp_path / "run"
    assert entry(tpg.train, *SMALL, f"run_dir={run}")[0] == 0
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    kept = torch.load(checkpoint, weights_only=True)
    AtomicCheckpointIO().save_checkpoint({**kept, "more": Runs(tmp_path / "ran")}, checkpoint)
    code, _, err = entry(tpg.train, f"resume={run}", "iterations=2")
    assert code != 0
    assert "Weights only load failed" in "\n".join(err)
    assert not (tmp_path / "ran").exists()


TARGETS = [
    "os.system", "posix.system", "builtins.eval", "builtins.exec", "builtins.open", "subprocess.Popen",
    "shutil.rmtree", "importlib.import_module", "runpy.run_path", "pickle.Unpickler", "pathlib.Path", "ctypes.CDLL",
    "multiprocessing.Process", "socket.socket", "webbrowser.open", "code.InteractiveInterpreter",
    # functions, and classes of the standard library under the name of a module that imports them
    "torch.load", "torch.hub.load", "transformers.pipeline", "tpg.jobs.entry.Path", "tpg.training.checkpoints.Path",
    "tpg.jobs.entry.os.system", "tpg.jobs.entry.run_entry", "", "Popen", "..os.system",
    # installed packages that are not the user's, by their name or another's; classes that are there for other ends
    "omegaconf.DictConfig", "tpg.jobs.configs.DictConfig", "tpg.jobs.records.Job", "torch.PyTorchFileWriter",
    "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler", "transformers.Trainer",
    "lightning.Trainer",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_config_may_not_build(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = OmegaConf.create({"callbacks": {"x": {"_target_": target, "command": "touch ran", "args": "touch ran"}}})
    with pytest.raises(UserError, match=r"^callbacks\.x\._target_="):
        built(config, Experiment)
    assert not list(tmp_path.iterdir())


def test_a_class_of_torch_that_starts_a_program_is_not_built(tmp_path):
    target = "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler"
    given = {"entrypoint": "touch", "args": [str(tmp_path / "ran")], "env": {}, "local_rank_id": 0}
    config = OmegaConf.create({"x": {"_target_": target, "stdout": None, "stderr": None, **given}})
    with pytest.raises(UserError, match=r"^x\._target_=torch.*: is no option of tpg and no Callback, Logger or Module"):
        built(config, Experiment)
    assert not (tmp_path / "ran").exists()


def package_in(folder, name):
    """A package that leaves a file where it is imported."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(
        "from pathlib import Path\nPath('imported').touch()\nclass Mine:\n    pass\n"
    )
    return folder


@pytest.mark.parametrize("place", ["site-packages", "dist-packages"])
def test_an_installed_package_is_not_even_imported_unless_the_user_calls_it_own(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    name = f"theirs_{place[:4]}"
    monkeypatch.syspath_prepend(package_in(tmp_path / "lib" / place, name))
    config = OmegaConf.create({"x": {"_target_": f"{name}.Mine"}})
    with pytest.raises(
        UserError, match=rf"^x\._target_={name}\.Mine: only classes of .* set TPG_MODULES={name} in the"
    ):
        built(config, Owner)
    assert not (tmp_path / "imported").exists()
    monkeypatch.setenv("TPG_MODULES", f"other, {name}")
    assert type(built(config, Owner).x).__module__ == name
    assert (tmp_path / "imported").exists()


def test_a_package_of_the_users_own_elsewhere_is_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(package_in(tmp_path / "code", "users_package"))  # as an editable install has it
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "users_module.py").write_text("from omegaconf import DictConfig\nclass Mine:\n    pass\n")
    for target in ("users_package.Mine", "users_module.Mine"):
        assert type(built(OmegaConf.create({"x": {"_target_": target}}), Owner).x).__name__ == "Mine"
    with pytest.raises(
        UserError, match=r"^x\._target_=users_module\.DictConfig: is omegaconf\.dictconfig\.DictConfig; "
    ):
        built(OmegaConf.create({"x": {"_target_": "users_module.DictConfig"}}), Owner)


@pytest.mark.parametrize(
    ("target", "given"),
    [
        ("lightning.pytorch.callbacks.LearningRateMonitor", {}),
        ("torch.nn.Linear", {"in_features": 2, "out_features": 2}),
    ],
    ids=["callback", "module"],
)
def test_what_a_callback_may_be_or_take_is_built(target, given):
    assert (
        type(built(OmegaConf.create({"x": {"_target_": target, **given}}), Owner).x).__name__ == target.split(".")[-1]
    )
