"""A checkpoint file is complete or absent; a damaged one is told apart and left out."""

import hashlib
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from iterations import trained, weights
from lightning.pytorch import Callback

from tpg.errors import Interrupted, UserError
from tpg.training.checkpoint_files import FOOTER, AtomicCheckpointIO, FoundCheckpoints, damage
from tpg.training.checkpoints import Checkpoints, StopRequest
from tpg.training.options import Checkpointing, Update
from tpg.training.run_folder import RunFolder

STATE = {"weight": torch.arange(1000.0), "step": 3}


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.create("seed: 1\n")
    return made


def saved(folder, iteration):
    path = folder.checkpoints / f"iteration-{iteration:06d}.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    return path


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def names(folder):
    return sorted(path.name for path in folder.checkpoints.iterdir())


def test_it_ends_with_the_digest_of_the_rest_and_torch_reads_over_it(folder):
    path = saved(folder, 1)
    content = path.read_bytes()
    assert FOOTER == 72
    assert content[-72:] == b"sha256:" + hashlib.sha256(content[:-72]).hexdigest().encode() + b"\n"
    assert damage(path) is None
    for mapped in (False, True):
        state = torch.load(path, weights_only=True, mmap=mapped)
        assert torch.equal(state["weight"], STATE["weight"])
        assert state["step"] == 3


def test_every_flipped_bit_is_noticed(folder):
    path = saved(folder, 1)
    size = path.stat().st_size
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randint(size, (60,), generator=generator).tolist()
    for place in [0, *drawn, *range(size - FOOTER + 7, size)]:
        flip(path, place, bit=place % 8)
        assert damage(path) is not None, place
        flip(path, place, bit=place % 8)
    assert damage(path) is None


@pytest.mark.parametrize("kept", [0, 1, 72, 500, -100, -73])
def test_a_truncated_one_is_noticed(folder, kept):
    path = saved(folder, 1)
    path.write_bytes(path.read_bytes()[:kept])
    assert damage(path) == "its end is missing"


@pytest.mark.parametrize("kept", [-72, -71, -1])
def test_one_without_its_checksum_is_taken_if_torch_reads_all_of_it(folder, kept):
    path = saved(folder, 1)
    path.write_bytes(path.read_bytes()[:kept])
    assert damage(path) is None
    assert FoundCheckpoints.of(folder).newest == path
    flip(path, path.read_bytes().index(STATE["weight"].numpy().tobytes()) + 500)
    assert damage(path) == "its end is missing"


def test_the_newest_complete_one_is_found_and_the_damaged_are_named(folder):
    for iteration in (4, 8, 12, 16):
        saved(folder, iteration)
    flip(folder.checkpoints / "iteration-000012.ckpt", 700)
    newest = folder.checkpoints / "iteration-000016.ckpt"
    newest.write_bytes(newest.read_bytes()[:900])
    found = FoundCheckpoints.of(folder)
    assert [path.name for path in found.complete] == ["iteration-000004.ckpt", "iteration-000008.ckpt"]
    assert found.newest == folder.checkpoints / "iteration-000008.ckpt"
    assert found.warnings == [
        "checkpoint iteration-000012.ckpt is damaged (its checksum is another): left out; continuing after iteration 8",
        "checkpoint iteration-000016.ckpt is damaged (its end is missing): left out; continuing after iteration 8",
    ]


def test_with_none_left_the_run_ends_and_nothing_is_deleted(folder):
    assert FoundCheckpoints.of(folder) == FoundCheckpoints((), {})
    flip(saved(folder, 4), 700)
    (folder.path / "metrics.tmp").write_text("half")
    with pytest.raises(UserError) as told:
        FoundCheckpoints.of(folder)
    assert str(told.value) == (
        f"no complete checkpoint is left in {folder.path}: iteration-000004.ckpt is damaged (its checksum is another);"
        f" nothing was deleted; delete {folder.checkpoints} to begin anew with iteration 1"
    )
    assert names(folder) == ["iteration-000004.ckpt"]
    assert (folder.path / "metrics.tmp").exists()
    shutil.rmtree(folder.checkpoints)
    assert FoundCheckpoints.of(folder) == FoundCheckpoints((), {})
    assert names(folder) == []


def test_one_that_cannot_be_read_is_not_taken_for_damaged(folder):
    (folder.checkpoints / "iteration-000004.ckpt").mkdir()
    with pytest.raises(UserError, match=r"iteration-000004.ckpt: Is a directory; delete it to continue without it$"):
        FoundCheckpoints.of(folder)


def test_what_a_killed_run_was_writing_is_removed_first(folder):
    saved(folder, 4)
    folder.write_tokens(4, ["{}"])
    half = [folder.checkpoints / "iteration-000008.ckpt.tmp", folder.path / "metrics.tmp", folder.tokens / "a.tmp"]
    for path in half:
        path.write_text("half")
    (folder.path / "policy.tmp").mkdir()
    (folder.path / "policy.tmp" / "config.json").write_text("{}")
    assert FoundCheckpoints.of(folder).warnings == []
    assert names(folder) == ["iteration-000004.ckpt"]
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "config.yaml", "tokens"]
    assert [path.name for path in folder.tokens.iterdir()] == ["iteration-000004.jsonl"]


def test_a_failed_write_leaves_the_old_file(folder, monkeypatch):
    path = saved(folder, 4)
    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", lambda state, file: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        AtomicCheckpointIO().save_checkpoint(STATE, path)
    assert path.read_bytes() == before


def keep(folder, keep_last, iterations):
    """Save these iterations with a trainer that writes little; what stood when each was written."""
    found = FoundCheckpoints.of(folder)
    callback = Checkpoints(folder, Checkpointing(every=1, keep_last=keep_last), 100, StopRequest(), found=found)
    stood = []

    def save_checkpoint(path):
        stood.append(names(folder))
        AtomicCheckpointIO().save_checkpoint(STATE, path)

    for iteration in iterations:
        callback.on_iteration_end(SimpleNamespace(trainer=SimpleNamespace(save_checkpoint=save_checkpoint)), iteration)
    return stood


def test_an_old_one_is_deleted_when_the_next_is_complete(folder):
    stood = keep(folder, 2, [1, 2, 3, 4])
    assert stood[2:] == [
        ["iteration-000001.ckpt", "iteration-000002.ckpt"],
        ["iteration-000002.ckpt", "iteration-000003.ckpt"],
    ]
    assert names(folder) == ["iteration-000003.ckpt", "iteration-000004.ckpt"]


def test_damaged_ones_do_not_count_and_are_written_anew(folder):
    for iteration in (1, 2, 3, 6):
        saved(folder, iteration)
    flip(folder.checkpoints / "iteration-000003.ckpt", 700)
    flip(folder.checkpoints / "iteration-000006.ckpt", 700)
    keep(folder, 3, [3])
    assert names(folder) == [f"iteration-00000{iteration}.ckpt" for iteration in (1, 2, 3)]
    assert [damage(path) for path in folder.checkpoints.iterdir()] == [None] * 3


def stopped(folder, number, options):
    """What a run of four iterations leaves that is asked to stop in the third's update, and the last micro-batch."""
    stop, came = StopRequest(), []

    class Ask(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            came.append((pl_module.iteration, batch_idx))
            if came[-1] == (3, 1):
                stop.signal, stop.since = number, -1e9  # long ago

    callbacks = [Ask(), Checkpoints(folder, options, 4, stop)]
    update = Update(epochs=2, responses_per_minibatch=8)  # 4 micro-batches an iteration
    with pytest.raises(Interrupted) as raised:
        trained(folder.path, iterations=4, update=update, callbacks=callbacks)
    assert raised.value.args == (number,)
    return names(folder), came[-1]


def test_sigterm_during_a_long_update_leaves_it_and_the_checkpoint_before(folder):
    options = Checkpointing(every=2, stop_within_s=25.0)
    assert stopped(folder, signal.SIGTERM, options) == (["iteration-000002.ckpt"], (3, 1))


@pytest.mark.parametrize(
    ("number", "limit"),
    [(signal.SIGINT, 25.0), (signal.SIGTERM, None), (signal.SIGTERM, 2e9)],
    ids=["Ctrl-C", "no limit", "time enough"],
)
def test_else_the_update_is_completed_and_saved(folder, number, limit):
    options = Checkpointing(every=2, stop_within_s=limit)
    assert stopped(folder, number, options) == (["iteration-000003.ckpt"], (3, 3))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("moment", [(1, 0), (3, 1), (3, 3)], ids=["first update", "amid an update", "last micro-batch"])
def test_a_signal_during_an_update_is_heard_by_the_run_alone(folder, number, moment):
    class Signal(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if (pl_module.iteration, batch_idx) == moment:
                signal.raise_signal(number)

    update = Update(epochs=2, responses_per_minibatch=8)  # 4 micro-batches an iteration
    callbacks = [Signal(), Checkpoints(folder, Checkpointing(every=2), 4, StopRequest())]
    with pytest.raises(Interrupted) as raised:
        trained(folder.path, iterations=4, update=update, callbacks=callbacks)
    assert raised.value.args == (number,)
    assert names(folder)[-1] == f"iteration-{moment[0]:06d}.ckpt"


@pytest.mark.parametrize(
    ("number", "handler"),
    [(signal.SIGUSR1, "kept"), (signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.SIG_DFL)],
    ids=["USR1", "TERM", "INT"],
)
def test_only_after_a_request_to_end_does_a_second_one_kill(number, handler):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    stop = StopRequest()
    try:
        stop.install()
        signal.raise_signal(number)
        assert stop.asked() == number
        expected = stop._requested if handler == "kept" else handler
        assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == [expected] * 2
    finally:
        for each, handler_before in before.items():
            signal.signal(each, handler_before)


def test_an_interruption_in_the_middle_of_an_update_saves_no_half_updated_policy(folder):
    class Raise(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if pl_module.iteration == 2:
                raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        trained(folder.path, iterations=4, callbacks=[Raise(), Checkpoints(folder, Checkpointing(), 4, StopRequest())])
    assert names(folder) == []


def test_what_is_kept_continues_with_the_same_weights(folder):
    whole = trained(folder.path, iterations=3)
    options = Checkpointing(every=1, keep_last=5)
    trained(folder.path, iterations=2, callbacks=[Checkpoints(folder, options, 2, StopRequest())])
    path = folder.checkpoints / "iteration-000001.ckpt"
    assert torch.equal(weights(trained(folder.path, iterations=3, checkpoint=path)), weights(whole))
