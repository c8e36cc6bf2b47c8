"""Shadow estimators: the gradients that other estimators would have made of the same rollouts."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from tpg.aggregation import MinibatchSize
from tpg.errors import UserError
from tpg.estimators.base import Answers, Estimator, Requests
from tpg.method import Method, State, Weighed
from tpg.numerics import TokenStatistics
from tpg.policies.sketch import Projections, TokenSketches, sketched
from tpg.training.minibatches import MicroBatch
from tpg.training.module import IterationCallback, TrajectoryPolicyGradient
from tpg.trajectories import FinishReason, Trajectories

SKETCH = 32
"""Of the vocabulary and of the hidden state: a gradient is a vector of SKETCH^2 numbers."""
PROMPTS_SHARE, LEAST_PROMPTS = 4, 2
"""One prompt of so many is sketched, but at least so many prompts."""


def check_shadows(shadows: Mapping[str, Estimator], method: Method, responses_per_prompt: int) -> None:
    """Raise `UserError` for a shadow estimator that reads what the trained one's rollouts do not bring."""
    trained = method.estimator
    brought = asked_by(trained)
    for name, shadow in shadows.items():
        if responses_per_prompt < shadow.min_group:
            raise UserError(
                f"shadow_estimators: {name} compares the responses to one prompt and needs"
                f" rollout.responses_per_prompt of at least {shadow.min_group}"
            )
        if method.objective.response_level and not shadow.response_level:
            raise UserError(
                f"shadow_estimators: {name} gives each token its own weight, but objective"
                f" {type(method.objective).__name__} needs one weight for a whole response"
            )
        asks = asked_by(shadow)
        lacking = {
            "a critic's values": shadow.needs_critic and not trained.needs_critic,
            "greedy responses": asks.greedy and not brought.greedy,
            "continuations": asks.continuations is not None and shadow != trained,
            "score norms": asks.score_norms and not brought.score_norms,
        }
        for what, lacks in lacking.items():
            if lacks:
                raise UserError(
                    f"shadow_estimators: {name} needs {what}, which estimator {type(trained).__name__} does not ask"
                    " for in the same way; a shadow sees what the training's rollouts bring"
                )


def asked_by(estimator: Estimator) -> Requests:
    """What an estimator asks for, from rollouts made up for the question."""
    tokens = torch.full((2, 64), 2)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    zeros = torch.zeros(2, dtype=torch.long)
    return estimator.requests(
        Trajectories(
            prompt_ids_BP=tokens[:, :1],
            prompt_mask_BP=mask[:, :1],
            response_ids_BT=tokens,
            response_mask_BT=mask,
            action_mask_BT=mask,
            rollout_logprobs_BT=torch.zeros(2, 64),
            row_B=zeros,
            draw_B=zeros,
            response_index_B=torch.arange(2),
            finish_reason_B=torch.full((2,), int(FinishReason.STOP)),
            parent_B=zeros - 1,
            position_B=zeros,
            version_B=zeros,
            rewards_B=torch.tensor([0.0, 1.0]),
            scored_B=torch.tensor([True, True]),
            uniforms_BT=torch.linspace(0, 0.99, 128).view(2, 64),
        )
    )


def group_gradients(
    method: Method, weighed: Weighed, sketches: TokenSketches, max_response_tokens: int, state: State
) -> Tensor:
    """Each group's part of the sketched gradient of the expected reward, (K groups, L * R).

    The loss is the method's own, at the policy that generated the trajectories, less its entropy bonus, which is no sum
    over the tokens that were taken.
    """
    trajectories, kept_B = weighed.trajectories, weighed.kept_B
    assert trajectories.old_logprobs_BT is not None
    counted = trajectories.select(kept_B)
    size = MinibatchSize(len(counted), int(counted.action_mask_BT.sum()), max_response_tokens)
    coefficients_BT = torch.zeros_like(trajectories.old_logprobs_BT)
    if len(counted):
        with torch.enable_grad():
            assert counted.old_logprobs_BT is not None
            logprobs_BT = counted.old_logprobs_BT.detach().clone().requires_grad_()
            alone = dataclasses.replace(method, entropy_coefficient=0.0)
            loss = alone.loss(TokenStatistics(logprobs_BT, None, None), counted, size, state)
            if loss.value.requires_grad:
                (slopes_BT,) = torch.autograd.grad(loss.value, logprobs_BT)
                coefficients_BT[kept_B] = -slopes_BT
    sums_BD = sketches.sums(coefficients_BT)
    group_B = trajectories.group_B
    return sums_BD.new_zeros(int(group_B.max()) + 1, sums_BD.shape[1]).index_add(0, group_B, sums_BD)


def compared(shadow_KD: Tensor, trained_KD: Tensor) -> dict[str, float]:
    """How one gradient relates to another, from their parts by prompt.

    `scale` is the shadow's length along the trained gradient, over its length; `variance_ratio` the ratio of the
    traces of their covariances over prompts, at one learning rate. NaN where the trained gradient is zero, or a prompt
    is alone.
    """
    shadow_D, trained_D = shadow_KD.sum(0), trained_KD.sum(0)
    product, square = float(shadow_D @ trained_D), float(trained_D @ trained_D)
    lengths = float(shadow_D.norm() * trained_D.norm())
    spreads = [float((parts_KD - parts_KD.mean(0)).square().sum()) for parts_KD in (shadow_KD, trained_KD)]
    return {
        "cosine": product / lengths if lengths else math.nan,
        "scale": product / square if square else math.nan,
        "variance_ratio": spreads[0] / spreads[1] if spreads[1] else math.nan,
    }


class Shadows(IterationCallback):
    """Logs `shadow/{name}/cosine`, `scale` and `variance_ratio` of the gradient in the output layer's weight.

    Before the update, a forward pass over the responses to a part of the prompts sketches their score functions; its
    seconds are `timing_s/shadow`.
    """

    def __init__(self, estimators: Mapping[str, Estimator]) -> None:
        self.estimators = dict(estimators)
        self.states = {name: estimator.initial_state() for name, estimator in self.estimators.items()}
        self._projections: Projections | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: MicroBatch, batch_idx: int
    ) -> None:
        """Before an iteration's first backward pass, while the policy is the one that generated."""
        if batch_idx == 0:
            assert isinstance(pl_module, TrajectoryPolicyGradient)
            assert pl_module.experience is not None
            start = time.perf_counter()
            with torch.no_grad():
                pl_module.metrics |= self._compare(pl_module)
            seconds = time.perf_counter() - start
            pl_module.experience.seconds["shadow"] = seconds
            pl_module.update_metrics.started += seconds

    def state_dict(self) -> dict[str, Any]:
        """What the shadows carry from one iteration to the next."""
        return {"states": self.states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back; a shadow that is new starts anew."""
        self.states |= {name: state for name, state in state_dict["states"].items() if name in self.states}

    def _compare(self, module: TrajectoryPolicyGradient) -> dict[str, float]:
        experience, collector = module.experience, module.collector
        assert experience is not None
        if self._projections is None:
            self._projections = Projections.random(collector.policy, SKETCH, SKETCH, seed=0)
        whole, passes = experience.trajectories, collector.passes
        reads = {name for name, estimator in self.estimators.items() if asked_by(estimator).distribution}
        chosen_B = _chosen(whole.group_B)
        with module.trainer.precision_plugin.forward_context():
            sketches, part = sketched(
                collector.policy,
                whole.select(chosen_B),
                passes.temperature,
                self._projections,
                collector.update.responses_per_microbatch,
                distribution=bool(reads),
            )
        state, limit = module.method_state, collector.rollout.max_response_tokens

        def gradients(method: Method, weighed: Weighed, index_B: Tensor) -> Tensor:
            """Of the sketched trajectories, which are those of `weighed` at `index_B`."""
            assert weighed.trajectories.weights_BT is not None
            chosen = part.replace(weights_BT=weighed.trajectories.weights_BT[index_B])
            restricted = dataclasses.replace(weighed, trajectories=chosen, kept_B=weighed.kept_B[index_B])
            return group_gradients(method, restricted, sketches, limit, state)

        trained_KD = gradients(collector.method, experience.weighed, chosen_B)
        all_B = torch.ones(len(part), dtype=torch.bool)
        metrics: dict[str, float] = {}
        for name, estimator in self.estimators.items():
            method = dataclasses.replace(collector.method, estimator=estimator)
            own = {**state, "estimator": self.states[name]}
            # What reads the policy's distributions weighs the responses for which there are some.
            seen, answers, index_B = whole, experience.answers, chosen_B
            if name in reads:
                seen, answers, index_B = part, _of(experience.answers, chosen_B), all_B
            weighed = method.weigh(seen, dataclasses.replace(answers, state=own["estimator"]), own)
            self.states[name] = weighed.state["estimator"]
            found = compared(gradients(method, weighed, index_B), trained_KD)
            metrics |= {f"shadow/{name}/{key}": value for key, value in found.items()}
        return metrics


def _of(answers: Answers, chosen_B: Tensor) -> Answers:
    """The answers about some trajectories."""
    if answers.greedy_rewards_B is None or answers.greedy_scored_B is None:
        return answers
    rewards_B, scored_B = answers.greedy_rewards_B[chosen_B], answers.greedy_scored_B[chosen_B]
    return dataclasses.replace(answers, greedy_rewards_B=rewards_B, greedy_scored_B=scored_B)


def _chosen(group_B: Tensor) -> Tensor:
    """The responses that are sketched, (B,) bool: those to the prompts that were drawn first."""
    groups = list(dict.fromkeys(group_B.tolist()))
    count = max(LEAST_PROMPTS, len(groups) // PROMPTS_SHARE)
    return torch.isin(group_B, torch.tensor(groups[:count]))
