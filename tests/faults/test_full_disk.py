"""A disk that is full ends a run in one line; continued when there is space, it gives the same numbers."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import TINY, reproducible, resume, train
from safetensors.torch import save_file

from tpg.errors import UserError
from tpg.launching import spec
from tpg.training.faults.full_disk import told_if_full

RUN = [*TINY, "iterations=6", "checkpoint.every=2", "+callbacks.filling._target_=filling.FillingDisk"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A whole run, and what is left of one that found the disk full, by the kind of file that did not fit."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parent)
        whole = train(root / "whole", *RUN)

        def filled(kind):
            patch.setenv("FULL_AT", kind)
            folder = train(root / kind, *RUN, code=2)
            patch.delenv("FULL_AT")
            return folder

        yield whole, filled


@pytest.mark.long
@pytest.mark.parametrize("kind", ["checkpoint", "tokens", "metrics.csv", "completions.jsonl"])
def test_it_is_told_and_the_run_goes_on_from_the_last_whole_checkpoint(runs, kind):
    whole, filled = runs
    folder = filled(kind)
    log = folder.with_name(folder.name + ".log")
    last = log.read_text().splitlines()[-1]
    assert last.startswith(f"error: no space left to write the run in {folder} ("), log.read_text()[-3000:]
    assert last.endswith(f"and continue with python -m tpg.train resume={folder}")
    assert "Traceback" not in log.read_text()
    assert sorted(path.name for path in folder.glob("checkpoints/*.ckpt")) == ["iteration-000002.ckpt"]
    resume(folder)
    assert reproducible(folder) == reproducible(whole)
    assert (folder / "completions.jsonl").read_bytes() == (whole / "completions.jsonl").read_bytes()
    weights = "policy/model.safetensors"
    assert (folder / weights).read_bytes() == (whole / weights).read_bytes()
    assert list(folder.glob("checkpoints/*.tmp")) == []


@pytest.mark.parametrize("step", ["prepare", "write_atomically", "run"])
def test_it_is_told_of_whatever_a_continued_run_writes(tmp_path, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("prepare", "write_atomically", "run"):
        monkeypatch.setattr(spec, name, full if name == step else lambda *_: None)
    continued = spec.RunSpec(SimpleNamespace(), {}, "", tmp_path, begun=True)
    with pytest.raises(OSError if step == "prepare" else UserError, match=r"[Nn]o space left"):
        spec.carry_out(continued)


def test_memory_that_runs_out_in_a_run_is_told_too(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(spec, "prepare", lambda *_: None)
    monkeypatch.setattr(spec, "run", fail)
    with pytest.raises(UserError, match=r"^out of memory in tpg.launching.spec.carry_out \(MemoryError:\): use policy"):
        spec.carry_out(spec.RunSpec(SimpleNamespace(), {}, "", tmp_path / "run", begun=False))


WRITERS = {
    "text": lambda: open("/dev/full", "w").write("x" * 100_000),  # noqa: SIM115
    "torch": lambda: torch.save({"x": torch.zeros(100_000)}, "/dev/full"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_writer_s_words_are_understood(tmp_path, kind):
    with (
        pytest.raises(UserError, match=r"no space left to write the run in .*: free some") as told,
        told_if_full(tmp_path),
    ):
        WRITERS[kind]()
    assert "\n" not in str(told.value)
    assert "resume=" in str(told.value)


def test_safetensors_says_it_in_its_own_words(tmp_path):
    with pytest.raises(UserError, match="no space left"), told_if_full(tmp_path):
        save_limited(tmp_path)


def save_limited(folder):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        save_file({"x": torch.zeros(100_000)}, folder / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EACCES, "Permission denied"), ValueError("too small"), UserError("no")],
    ids=lambda e: type(e).__name__,
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, told_if_full(tmp_path):
        raise error
    assert raised.value is error
