"""A pass that does not fit is made again in parts, with the gradient of the whole; what cannot be cut is told."""

import contextlib
import weakref
from itertools import pairwise

import pytest
import torch
from iterations import gradients, trained, weights
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from test_microbatches import SAME

from tpg.errors import UserError
from tpg.estimators.gae import GAE
from tpg.estimators.group import GRPO
from tpg.kl import KLInReward
from tpg.objectives.p3o import P3O
from tpg.objectives.ppo_clip import PPOClip
from tpg.policies.base import Policy
from tpg.policies.critic import ValueHead
from tpg.policies.memory import ran_out
from tpg.training.faults.out_of_memory import Memory, told_if_out_of_memory
from tpg.training.options import Update
from tpg.training.parallel.ranks import Ranks

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)
ERRORS = {"cuda": lambda: torch.OutOfMemoryError("CUDA out of memory."), "cpu": lambda: RuntimeError(ALLOCATOR)}


class Backward(torch.autograd.Function):
    """Runs out of memory where the loss is differentiated."""

    @staticmethod
    def forward(ctx, x, error):
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise ctx.error()


def small_memory(monkeypatch, tokens, error=ERRORS["cuda"], *, during="forward", learning_only=True):
    """Passes of more than so many tokens (responses and their prompts, padding left out) do not fit; tells of each."""
    whole, passes = Policy.statistics, []

    def statistics(self, trajectories, *args, **options):
        prompts = {int(g): int(m.sum()) for g, m in zip(trajectories.group_B, trajectories.prompt_mask_BP, strict=True)}
        cost = int(trajectories.lengths_B.sum()) + sum(prompts.values())
        learning = torch.is_grad_enabled()
        fits = cost <= tokens or (learning_only and not learning)
        passes.append((cost, fits))
        if not fits and during == "forward":
            raise error()
        found = whole(self, trajectories, *args, **options)
        if not fits:
            found = found._replace(logprobs=Backward.apply(found.logprobs, error))
        return found

    monkeypatch.setattr(Policy, "statistics", statistics)
    return passes


CASES = {
    "one step": {},
    "three micro-batches a step": {"update": Update(responses_per_microbatch=6)},
    "four steps": {"update": Update(responses_per_minibatch=4), "objective": PPOClip()},
    "a critic": {"estimator": GAE(), "critic": ValueHead()},
    "a reference": {"kl": KLInReward(coefficient=0.1), "estimator": GRPO()},
}


@pytest.mark.parametrize("during", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_the_whole_ones(tmp_path, monkeypatch, capsys, case, during):
    expected = trained(tmp_path, iterations=2, **CASES[case])
    passes = small_memory(monkeypatch, 16, during=during)
    module = trained(tmp_path, iterations=2, **CASES[case])
    assert any(not fits for _, fits in passes)
    for given, wanted in zip(gradients(module), gradients(expected), strict=True):
        torch.testing.assert_close(given, wanted, **SAME)
    torch.testing.assert_close(weights(module), weights(expected), **SAME)
    for name, value in expected.metrics.items():
        if not name.startswith(("timing_s/", "step_time", "perf/")):
            assert module.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-8, nan_ok=True), name
    said = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert said
    assert len(said) == sum(not fits for _, fits in passes)
    assert said[-1].endswith(f"computes at most {module.collector.memory.tokens} (update.tokens_per_microbatch)")


def test_the_bound_is_halved_and_stays(tmp_path, monkeypatch):
    passes = small_memory(monkeypatch, 40, ERRORS["cpu"])
    module = trained(tmp_path, iterations=3)
    failed = [cost for cost, fits in passes if not fits]
    assert module.collector.memory.tokens == failed[-1] // 2
    assert all(later <= earlier // 2 for earlier, later in pairwise(failed))
    # None fails after the first iteration's.
    first_failures = [fits for _, fits in passes].index(True)
    assert all(fits for _, fits in passes[first_failures:])


def test_a_continued_run_keeps_the_bound(tmp_path, monkeypatch):
    small_memory(monkeypatch, 40)
    module = trained(tmp_path, iterations=1)
    path = tmp_path / "last.ckpt"
    module.trainer.save_checkpoint(path)
    passes = small_memory(monkeypatch, 40)
    later = trained(tmp_path, iterations=2, checkpoint=path)
    assert later.collector.memory.tokens == module.collector.memory.tokens
    assert all(fits for _, fits in passes)


@pytest.mark.parametrize(
    ("now", "tokens"), [(2048, 10), (8192, None), (None, None), (64, None)], ids=["the same", "more", "none", "less"]
)
def test_a_bound_that_is_given_anew_replaces_the_kept_one(tmp_path, now, tokens):
    module = trained(tmp_path, iterations=1)
    module.collector.memory.tokens = 10
    path = tmp_path / "last.ckpt"
    module.trainer.save_checkpoint(path)
    later = trained(tmp_path, iterations=1, update=Update(tokens_per_microbatch=now), checkpoint=path)
    assert later.collector.memory.tokens == tokens


def test_of_several_processes_none_leaves_the_passes_that_the_strategy_sees(tmp_path):
    update, plain = Update(responses_per_microbatch=6), []
    expected = weights(trained(tmp_path, update=update))

    class Alone(Ranks):
        """One of two, whose other has nothing to add."""

        world = 2
        replicas = 1

        def each(self, work):
            return [work()]

        def shares(self, count):
            return [range(count)] * 2

    class Bounded(Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.collector.memory.tokens = 1

        def on_before_backward(self, trainer, pl_module, loss):
            plain.append(loss.grad_fn is not None)

    module = trained(tmp_path, update=update, callbacks=[Bounded()], ranks=Alone())
    assert len(plain) > 1
    assert all(plain)
    torch.testing.assert_close(weights(module), expected, **SAME)


def test_passes_without_a_gradient_are_cut_too(tmp_path, monkeypatch):
    options = {"kl": KLInReward(coefficient=0.1), "update": Update(responses_per_minibatch=4), "objective": PPOClip()}
    expected = trained(tmp_path, **options)
    small_memory(monkeypatch, 30, learning_only=False)
    module = trained(tmp_path, **options)
    for name in ("old_logprobs_BT", "ref_logprobs_BT"):
        given, wanted = (getattr(each.experience.trajectories, name) for each in (module, expected))
        torch.testing.assert_close(given, wanted, **SAME)
    torch.testing.assert_close(weights(module), weights(expected), **SAME)


def test_a_response_that_does_not_fit_alone_is_told(tmp_path, monkeypatch):
    small_memory(monkeypatch, 1)
    with pytest.raises(UserError, match=r"^out of memory: a single response with \d+ tokens in all .*gradient_check"):
        trained(tmp_path)


def test_a_group_that_must_stay_whole_is_told(tmp_path, monkeypatch):
    expected = trained(tmp_path, objective=P3O())
    small_memory(monkeypatch, 40)
    module = trained(tmp_path, objective=P3O())
    torch.testing.assert_close(weights(module), weights(expected), **SAME)
    small_memory(monkeypatch, 5)
    with pytest.raises(
        UserError, match=r"^out of memory: the responses to a prompt, .*fewer rollout.responses_per_pro"
    ):
        trained(tmp_path, objective=P3O())


def test_one_of_several_processes_does_not_go_its_own_way():
    with pytest.raises(UserError, match=r"^out of memory on rank 1 .*resume=\.\.\. update.tokens_per_microbatch=50"):
        Memory().lower(100, Ranks(1, 2), divisible=True)


def test_other_errors_pass(tmp_path, monkeypatch):
    small_memory(monkeypatch, 1, lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trained(tmp_path)


def test_torch_says_so_in_these_words():
    with pytest.raises(RuntimeError) as told:
        torch.empty(2**60, dtype=torch.int8)
    assert ran_out(told.value)
    assert ran_out(torch.OutOfMemoryError())
    assert not ran_out(RuntimeError("shapes do not match"))
    assert not ran_out(ValueError("out of memory"))


class Hold(torch.autograd.Function):
    """Keeps a token in the graph."""

    @staticmethod
    def forward(ctx, x, token):
        ctx.token = token
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Scaling(Callback):
    """Puts a scaler between the loss and Lightning, as half precision has on a GPU."""

    def setup(self, trainer, pl_module, stage):
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))
        plugin.forward_context = contextlib.nullcontext  # the policy stays in its own precision
        trainer.strategy._precision_plugin = plugin


@pytest.mark.parametrize("callbacks", [[], [Scaling()]], ids=["plain", "scaled"])
@pytest.mark.parametrize("minibatch", [None, 4], ids=["one step", "four steps"])
def test_no_graph_is_held_while_parts_are_made(tmp_path, monkeypatch, callbacks, minibatch):
    update = Update(responses_per_minibatch=minibatch)
    options = {"callbacks": callbacks, "update": update, "objective": PPOClip()}
    expected = weights(trained(tmp_path, **options))
    small_memory(monkeypatch, 30, during="backward")
    whole, graphs, held = Policy.statistics, [], []

    def statistics(self, trajectories, *args, **options):
        if not torch.is_grad_enabled():
            return whole(self, trajectories, *args, **options)
        held.append(sum(graph() is not None for graph in graphs))
        token = type("Token", (), {})()
        graphs.append(weakref.ref(token))
        found = whole(self, trajectories, *args, **options)
        return found._replace(logprobs=Hold.apply(found.logprobs, token))

    monkeypatch.setattr(Policy, "statistics", statistics)
    given = weights(trained(tmp_path, **options))
    assert len(held) > 3
    assert max(held) == 0
    torch.testing.assert_close(given, expected, **SAME)


@pytest.mark.parametrize("error", [MemoryError(), *(make() for make in ERRORS.values())], ids=["python", *ERRORS])
def test_what_is_not_made_in_parts_is_told_with_remedies(tmp_path, monkeypatch, error):
    def fail(self, *args, **options):
        raise error

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    with pytest.raises(UserError) as told, told_if_out_of_memory(tmp_path):
        trained(tmp_path)
    message = str(told.value)
    assert message.startswith(f"out of memory in tpg.training.optimizers.step ({type(error).__name__}:")
    assert message.endswith(f"optimizer=adamw_8bit; continue with python -m tpg.train resume={tmp_path}")
    assert "\n" not in message


def test_what_is_told_already_and_other_errors_pass(tmp_path):
    for error in (UserError("out of memory: a single response"), RuntimeError("no"), ValueError("out of memory")):
        with pytest.raises(type(error)) as told, told_if_out_of_memory(tmp_path):
            raise error
        assert told.value is error
