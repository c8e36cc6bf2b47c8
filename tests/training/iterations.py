"""One process, no workers: iterations of a small policy whose rewards a function gives."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from builders import in_double_precision, tiny_policy
from lightning.pytorch import Callback

from tpg.aggregation import SequenceSum
from tpg.estimators.rloo import RLOO
from tpg.kl import NoKL
from tpg.method import Method
from tpg.mismatch import NoMismatch
from tpg.objectives.policy_gradient import PolicyGradient
from tpg.policies.base import Reference
from tpg.policies.gathered import Gathered, whole
from tpg.rewards.model import Rewards
from tpg.rollouts.transformers import Transformers
from tpg.tasks.base import Example
from tpg.tasks.rendering import Rendered
from tpg.training.curriculum.base import NoCurriculum
from tpg.training.experience import Collector
from tpg.training.module import TrajectoryPolicyGradient
from tpg.training.options import Optimizer, Update
from tpg.training.parallel.ranks import Ranks
from tpg.training.prompts import PromptStream
from tpg.training.trainer import TrainerOptions

CPU = TrainerOptions(accelerator="cpu")
ENGINE = Transformers(prompts=4, responses_per_prompt=4, max_response_tokens=8)
SMOOTH = Optimizer(lr=0.1, eps=0.1)
"""AdamW with an epsilon far above rounding, so that equal gradients make equal steps."""


class FunctionReward:
    """A reward model of one term that is a function of the sample; NaN leaves it unscored."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def score(self, samples):
        values = [float(self.function(sample)) for sample in samples]
        return Rewards(values, [not math.isnan(value) for value in values], {"term": values}, {}, {})

    def learn(self, iteration, each):
        """A function learns nothing."""

    def state(self):
        return {}

    def restore(self, states):
        assert states == {}


class UnskippedCollector(Collector):
    """Passes responses of zero weight through the policy too."""

    def collect(self, iteration, state):
        experience = super().collect(iteration, state)
        return replace(experience, weighed=replace(experience.weighed, needed_B=experience.weighed.kept_B))


class Recorder(Callback):
    """The gradients of every optimizer step before clipping, and how many micro-batches came."""

    def __init__(self) -> None:
        self.gradients = []
        self.micro_batches = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        grads = [parameter.grad for parameter in pl_module.parameters()]
        self.gradients.append([None if grad is None else whole(grad).clone() for grad in grads])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.micro_batches.append(0 if batch.trajectories is None else len(batch.trajectories))


def token_reward(sample):
    """Varies from response to response."""
    return sum(sample.token_ids) % 7 / 7


def trained(
    tmp_path,
    *,
    reward=token_reward,
    update=None,
    aggregation=None,
    objective=None,
    estimator=None,
    kl=None,
    mismatch=None,
    critic=None,
    entropy_coefficient=0.0,
    engine=ENGINE,
    optimizer=SMOOTH,
    clip=None,
    skip=True,
    iterations=1,
    callbacks=(),
    checkpoint=None,
    stop=lambda: None,
    dtype=torch.float64,
    hardware=CPU,
    ranks=None,
    curriculum=None,
    answer=None,
):
    """The module after so many iterations from the same policy, with a `Recorder` as `module.recorder`."""
    kl, update = kl or NoKL(), update or Update()
    torch.set_num_threads(1)  # the second core may have other work, for which the first would wait
    policy = tiny_policy(hidden_size=16, layers=2).to(dtype)
    if dtype == torch.float64:
        policy = in_double_precision(policy)
    policy.model.generation_config.eos_token_id = [1, *range(60, 80)]  # so that responses end, at many lengths
    rows = 8
    examples = tuple(Example(str(row), answer) for row in range(rows))
    prompts = Rendered(examples, tuple((10 + row, 40) for row in range(rows)), 0)
    gathered = Gathered(policy) if hardware.shards else None
    collector = (Collector if skip else UnskippedCollector)(
        policy=policy,
        engine=engine.build(policy if gathered is None else gathered.policy),
        stream=PromptStream(prompts, 3),
        reward_model=FunctionReward(reward),
        method=Method(
            estimator=estimator or RLOO(),
            objective=objective or PolicyGradient(),
            aggregation=aggregation or SequenceSum(),
            kl=kl,
            mismatch=mismatch or NoMismatch(),
            entropy_coefficient=entropy_coefficient,
        ),
        update=update,
        reference=Reference(policy) if kl.needs_reference else None,
        on_step=stop,
        critic=critic.build(policy).to(dtype) if critic else None,
        ranks=ranks or Ranks(),
        gathered=gathered,
        curriculum=curriculum or NoCurriculum(),
    )
    module = TrajectoryPolicyGradient(collector, optimizer, 100)
    module.recorder = Recorder()
    hardware = replace(hardware, gradient_clip_val=clip)
    trainer = hardware.build(iterations, tmp_path, [module.recorder, *callbacks], [], [])
    trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return module


def weights(module):
    """All parameters in one vector."""
    return torch.cat([whole(parameter.detach()).flatten() for parameter in module.parameters()])


def gradients(module):
    """Each optimizer step's gradient in one vector."""
    return [torch.cat([grad.flatten() for grad in step]) for step in module.recorder.gradients]
