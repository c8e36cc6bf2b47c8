"""A pass that does not fit is made again in parts, with the gradient of the whole; what cannot be cut is told."""

import weakref
from itertools import pairwise

import pytest
import torch
from iterations import gradients, trained, weights
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
from tpg.training.faults.out_of_memory import Memory
from tpg.training.options import Update
from tpg.training.parallel.ranks import Ranks

CPU = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
ERRORS = {"cuda": lambda: torch.OutOfMemoryError("CUDA out of memory."), "cpu": lambda: RuntimeError(CPU)}


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


def test_no_graph_is_held_while_parts_are_made(tmp_path, monkeypatch):
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
    trained(tmp_path)
    assert len(held) > 3
    assert max(held) == 0
