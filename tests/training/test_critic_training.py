"""A critic within the training loop: it is trained beside the policy, alone at first, and never in its way."""

import math
from dataclasses import replace

import pytest
import torch
from builders import scored
from iterations import ENGINE, SMOOTH, gradients, token_reward, trained, weights
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close

from tpg.aggregation import SequenceSum, TokenMean
from tpg.estimators.gae import GAE
from tpg.kl import KLInReward
from tpg.objectives.ppo_clip import PPOClip
from tpg.policies.critic import SeparateCritic, ValueHead
from tpg.training.metrics import value_metrics
from tpg.training.module import IterationCallback
from tpg.training.options import Optimizer, Update

SAME = {"atol": 1e-10, "rtol": 1e-8}
CRITICS = [ValueHead(lr=0.3), ValueHead(lr=0.3, detached=False, value_clip=0.01), SeparateCritic(lr=0.2)]


def ppo(tmp_path, critic, **options):
    defaults = {"estimator": GAE(lam=0.9), "objective": PPOClip(), "critic": critic}
    return trained(tmp_path, **(defaults | options))


def vector(module):
    return parameters_to_vector(module.parameters()).detach().clone()


class Copies(IterationCallback):
    """The weights of policy and critic after every iteration, and a checkpoint of the boundary it was told."""

    def __init__(self, checkpoint=None, save_after=0):
        self.policy, self.critic = [], []
        self.checkpoint, self.save_after = checkpoint, save_after

    def on_fit_start(self, trainer, pl_module):
        self.keep(pl_module)

    def on_iteration_end(self, module, iteration):
        self.keep(module)
        if iteration == self.save_after:
            module.trainer.save_checkpoint(self.checkpoint)

    def keep(self, module):
        self.policy.append(vector(module.policy))
        self.critic.append(vector(module.critic))


@pytest.mark.parametrize("minibatch", [None, 5])
@pytest.mark.parametrize("critic", CRITICS)
def test_micro_batches_change_no_number(tmp_path, critic, minibatch):
    def run(size):
        update = Update(responses_per_microbatch=size, responses_per_minibatch=minibatch)
        return ppo(tmp_path, critic, update=update, aggregation=TokenMean(), iterations=2, clip=0.05)

    whole, thirds, singles = run(16), run(3), run(1)
    assert whole.experience.trajectories.values_BT.abs().max() > 0.05
    assert whole.metrics["critic/grad_norm"] > 0.05
    for other in (thirds, singles):
        for expected, given in zip(gradients(whole), gradients(other), strict=True):
            assert_close(given, expected, **SAME)
        assert_close(weights(other), weights(whole), **SAME)
        for name in ("loss", "grad_norm", "critic/loss", "critic/grad_norm", "critic/explained_variance"):
            assert other.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-5, abs=1e-8), name


def test_the_value_losss_gradient_is_that_of_the_whole_minibatch(tmp_path):
    module = ppo(tmp_path, ValueHead(), update=Update(responses_per_microbatch=3))
    trajectories = module.experience.trajectories
    mask_BT = trajectories.action_mask_BT
    fresh = ppo(tmp_path, ValueHead(), reward=lambda sample: math.nan)
    hidden_BTH = fresh.policy.statistics(trajectories, 1.0, hidden=True).hidden
    # V is 0, so that each token's slope in the head's weight is -R times its hidden state.
    returns_BT = trajectories.rewards_B[:, None].expand_as(mask_BT)[mask_BT].double()
    expected = -(returns_BT[:, None] * hidden_BTH[mask_BT]).sum(0) / mask_BT.sum()
    weight, bias = module.recorder.gradients[0][-2:]
    assert_close(weight[0], expected.detach(), **SAME)
    assert_close(bias[0], -returns_BT.mean(), **SAME)


@pytest.mark.parametrize("critic", CRITICS)
def test_warm_up_moves_the_critic_alone(tmp_path, critic):
    copies = Copies()
    module = ppo(
        tmp_path,
        replace(critic, warmup_iterations=2),
        # Minibatches of 5, 5, 5 and 1 response in micro-batches of one, some of them empty.
        update=Update(responses_per_microbatch=1, responses_per_minibatch=5),
        optimizer=Optimizer(lr=0.1, eps=0.1, weight_decay=0.5),
        iterations=3,
        clip=1.0,
        callbacks=[copies],
    )
    assert 0 in module.recorder.micro_batches
    assert torch.equal(copies.policy[0], copies.policy[2])
    assert not torch.equal(copies.policy[2], copies.policy[3])
    for before, after in zip(copies.critic, copies.critic[1:], strict=False):
        assert not torch.equal(before, after)
    assert module.metrics["critic/warmup"] == 0.0
    still = ppo(tmp_path, replace(critic, warmup_iterations=1))
    assert still.metrics["critic/warmup"] == 1.0
    assert still.metrics["grad_norm"] == 0.0 < still.metrics["critic/grad_norm"]


def test_a_detached_critic_leaves_the_policys_step_alone(tmp_path):
    # The first values are zero and so is a value's pull on a trunk; a critic far off must not shorten the step either.
    few, many = (
        ppo(tmp_path, ValueHead(lr=0.3, coefficient=coefficient), estimator=GAE(), clip=0.01)
        for coefficient in (1.0, 1000.0)
    )
    assert many.metrics["critic/grad_norm"] > 100 * few.metrics["critic/grad_norm"] > 0.1
    assert few.metrics["grad_norm"] > 0.01
    assert torch.equal(vector(few.policy), vector(many.policy))


class Explained(IterationCallback):
    """The explained variance of every iteration."""

    def __init__(self):
        self.shares = []

    def on_iteration_end(self, module, iteration):
        self.shares.append(module.metrics["critic/explained_variance"])


@pytest.mark.parametrize(
    ("critic", "lr"),
    [
        (SeparateCritic(lr=0.01, warmup_iterations=100), 1e-3),
        (ValueHead(lr=0.05, detached=False, coefficient=10.0), 1e-2),
    ],
)
def test_a_critic_learns_a_reward_that_depends_on_the_prompt(tmp_path, critic, lr):
    explained = Explained()
    module = ppo(
        tmp_path,
        critic,
        estimator=GAE(),
        reward=lambda sample: float(int(sample.prompt) % 2),
        optimizer=Optimizer(lr=lr),
        iterations=40,
        callbacks=[explained],
    )
    assert explained.shares[0] == 0.0
    assert sum(explained.shares[-10:]) / 10 > 0.5
    assert module.metrics["critic/loss"] < 0.1 * getattr(critic, "coefficient", 1.0)


def test_a_detached_head_learns_the_mean_and_leaves_the_policy_in_its_place(tmp_path):
    copies = Copies()
    critic = ValueHead(lr=0.003, warmup_iterations=100)
    options = {"reward": lambda sample: 0.75, "optimizer": Optimizer(lr=1e-3), "callbacks": [copies]}
    first, last = (ppo(tmp_path, critic, iterations=iterations, **options).metrics for iterations in (1, 30))
    assert first["critic/loss"] == pytest.approx(0.5 * 0.75**2)
    assert last["critic/loss"] < 0.25 * first["critic/loss"]
    assert last["critic/value_mean"] == pytest.approx(0.75, abs=0.2)
    assert torch.equal(copies.policy[-1], copies.policy[0])


def test_a_critic_has_its_own_learning_rate_on_the_same_schedule(tmp_path):
    module = ppo(tmp_path, SeparateCritic(lr=0.2), optimizer=Optimizer(lr=0.1, eps=0.1, warmup_steps=4))
    policy, critic = module.trainer.optimizers[0].param_groups
    assert {id(weight) for weight in policy["params"]} == {id(weight) for weight in module.policy.parameters()}
    assert {id(weight) for weight in critic["params"]} == {id(weight) for weight in module.critic.parameters()}
    assert (policy["lr"], critic["lr"]) == (0.05, 0.1)  # two of the four steps
    assert module.metrics["learning_rate"] == 0.025


@pytest.mark.parametrize("critic", CRITICS)
def test_a_resumed_critic_goes_on_as_it_was(tmp_path, critic):
    path, critic = tmp_path / "boundary.ckpt", replace(critic, warmup_iterations=1)
    whole = ppo(tmp_path, critic, iterations=4, callbacks=[Copies(path, save_after=2)])
    resumed = ppo(tmp_path, critic, iterations=4, checkpoint=path)
    assert len(resumed.recorder.gradients) == 2
    assert any(name.startswith("critic.") for name in whole.state_dict())
    assert torch.equal(weights(resumed), weights(whole))
    names = ("loss", "critic/loss", "critic/value_mean", "critic/explained_variance", "reward")
    assert [resumed.metrics[name] for name in names] == [whole.metrics[name] for name in names]


@pytest.mark.parametrize(("critic", "passes"), [(ValueHead(), 1), (SeparateCritic(), 1)])
def test_values_take_no_second_pass_of_the_policy(tmp_path, critic, passes):
    calls = []

    class Counting(IterationCallback):
        def on_fit_start(self, trainer, pl_module):
            embedding = pl_module.policy.model.get_input_embeddings()
            embedding.register_forward_hook(lambda _, __, out: calls.append(out.shape[0]))

    module = ppo(tmp_path, critic, update=Update(epochs=2), callbacks=[Counting()])
    # One for the old log-probabilities with the values and one each update epoch, in one row; the rollout's have more.
    assert calls.count(1) == 3 * passes
    assert module.experience.trajectories.values_BT.shape == module.experience.trajectories.action_mask_BT.shape


def test_every_kept_response_teaches_the_critic(tmp_path):
    def constant(sample):
        return math.nan if int(sample.prompt) == 0 else 0.0

    module = ppo(tmp_path, ValueHead(lr=0.3), reward=constant, engine=replace(ENGINE, prompts=8))
    assert not module.experience.trajectories.weights_BT.any()
    assert module.metrics["completions/updated"] == 28.0
    assert not module.experience.trajectories.returns_BT[module.experience.trajectories.row_B == 0].any()


def test_nothing_scored_changes_nothing(tmp_path):
    copies = Copies()
    module = ppo(tmp_path, ValueHead(lr=0.3), reward=lambda sample: math.nan, callbacks=[copies], clip=1.0)
    assert torch.equal(copies.policy[0], copies.policy[1])
    assert torch.equal(copies.critic[0], copies.critic[1])
    critic = [value for name, value in module.metrics.items() if name.startswith("critic/")]
    assert len(critic) == 5
    assert critic == [0.0] * 5


def test_the_critic_learns_the_reward_that_the_estimator_sees(tmp_path):
    module = ppo(tmp_path, ValueHead(lr=0.3), kl=KLInReward(coefficient=0.5), aggregation=SequenceSum(), iterations=2)
    trajectories = module.experience.trajectories
    logratio_BT = trajectories.old_logprobs_BT - trajectories.ref_logprobs_BT
    charged_B = trajectories.rewards_B - 0.5 * (logratio_BT * trajectories.action_mask_BT).sum(-1)
    assert (charged_B - trajectories.rewards_B).abs().max() > 1e-3
    expected = charged_B[:, None].expand_as(logratio_BT)
    assert_close(trajectories.returns_BT.double(), expected.double(), atol=1e-6, rtol=0)


def test_returns_are_the_reward_discounted_by_the_tokens_that_follow():
    trajectories = scored([4.0, 2.0], lengths=[3, 1])
    assert GAE().returns(trajectories).tolist() == [[4, 4, 4], [2, 2, 2]]
    discounted = GAE(gamma=0.5).returns(trajectories)
    assert discounted[0].tolist() == [1, 2, 4]
    assert discounted[1, 0] == 2


def test_with_exact_values_a_discounted_advantage_has_no_bias_within_a_response():
    # V = returns: every delta and with it every advantage is zero, as the tokens say nothing that V does not know.
    estimator = GAE(lam=0.5, gamma=0.5)
    trajectories = scored([4.0], lengths=[3])
    exact = trajectories.replace(values_BT=estimator.returns(trajectories))
    assert estimator.weights(exact, None).abs().max() == 0


@pytest.mark.parametrize(
    ("values", "returns", "explained"),
    [
        ([0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0], 0.0),
        ([0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0], 1.0),
        ([5.0, 6.0, 5.0, 6.0], [0.0, 1.0, 0.0, 1.0], 1.0),  # a constant error is no variance
        ([0.25, 0.75, 0.25, 0.75], [0.0, 1.0, 0.0, 1.0], 0.75),
        ([1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0], -3.0),
        ([1.0, 0.0], [0.1, 0.1], 0.0),
        ([], [], 0.0),
    ],
)
def test_explained_variance(values, returns, explained):
    metrics = value_metrics(torch.tensor(values), torch.tensor(returns))
    assert metrics["critic/explained_variance"] == pytest.approx(explained)
    assert metrics["critic/value_mean"] == pytest.approx(sum(values) / max(1, len(values)))


def test_without_a_critic_there_is_no_trace_of_one(tmp_path):
    module = trained(tmp_path, reward=token_reward, optimizer=SMOOTH)
    assert not [name for name in module.metrics if name.startswith("critic/")]
    assert module.experience.trajectories.values_BT is None
    assert module.experience.trajectories.returns_BT is None
