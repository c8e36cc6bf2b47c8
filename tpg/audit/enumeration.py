"""A method's gradient estimate on given batches of a small world, computed by the classes that train."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tpg.aggregation import MinibatchSize
from tpg.audit.tabular import World, node_values
from tpg.estimators.base import Answers, Continuations
from tpg.method import Method, Weighed
from tpg.numerics import TokenStatistics
from tpg.rollouts.sampling import Sampling
from tpg.trajectories import FinishReason, Trajectories


@dataclass(frozen=True, eq=False)
class Batches:
    """N batches of B responses each, slot b answering prompt `prompt_B[b]`."""

    response_NB: Tensor
    """Which response of the tree."""
    uniforms_NBT: Tensor
    """What estimators decide by."""
    prompt_B: Tensor

    def __len__(self) -> int:
        return len(self.response_NB)

    def select(self, index: Tensor) -> "Batches":
        """Some of the batches."""
        return replace(self, response_NB=self.response_NB[index], uniforms_NBT=self.uniforms_NBT[index])


@dataclass(frozen=True, eq=False)
class Asked:
    """The prefixes that an estimator wants continued, each different one of a batch once."""

    owner_K: Tensor
    """Which of the U different prefixes a row of the request is."""
    batch_U: Tensor
    prompt_U: Tensor
    node_U: Tensor
    count: int


@dataclass(frozen=True, eq=False)
class Bench:
    """A method set up on a world, with tables of what the trainer would read at every token."""

    method: Method
    world: World
    sampling: Sampling

    @cached_property
    def current(self) -> TokenStatistics:
        """Of the policy that is updated, (K, R, T)."""
        return self.world.tree.statistics(self.world.logits, self.sampling.temperature)

    @cached_property
    def old(self) -> TokenStatistics:
        """Of the policy before the update."""
        return self.world.tree.statistics(self.world.old_logits, self.sampling.temperature)

    @cached_property
    def engine(self) -> TokenStatistics:
        """Of the engine's policy."""
        return self.world.tree.statistics(self.world.rollout_logits, self.sampling.temperature)

    @cached_property
    def reference(self) -> TokenStatistics:
        """Of the reference."""
        return self.world.tree.statistics(self.world.reference_logits, self.sampling.temperature)

    @cached_property
    def probability_KR(self) -> Tensor:
        """With which the engine generates each response."""
        return self.world.tree.sampled(self.world.rollout_logits, self.sampling)

    @cached_property
    def shaped_KR(self) -> Tensor:
        """The reward of each response that the estimator sees."""
        K, R = self.world.rewards_KR.shape
        everything = Batches(
            torch.arange(R)[:, None].expand(R, K), torch.zeros(R, K, self.world.tree.horizon), torch.arange(K)
        )
        return self.method.rewards(self.record(everything), self.method.initial_state()).view(R, K).T

    @cached_property
    def nodes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of the shaped reward, and mean length, after each node; (K, N) each."""
        return node_values(self.world.tree, self.probability_KR, self.shaped_KR)

    @cached_property
    def greedy_K(self) -> Tensor:
        """The response that the engine's likeliest tokens make."""
        tree = self.world.tree
        likeliest_KS = self.world.rollout_logits.argmax(-1)
        follows_KRT = likeliest_KS[:, tree.state_RT] == tree.tokens_RT
        return (follows_KRT | ~tree.mask_RT).all(-1).float().argmax(-1)

    @cached_property
    def path_RN(self) -> Tensor:
        """The node that each response has reached after 0, 1, ... tokens; its own end from there on."""
        tree = self.world.tree
        rows = [[tree.node[response[:t]] for t in range(len(response) + 1)] for response in tree.responses]
        return torch.tensor([row + [row[-1]] * (tree.horizon + 1 - len(row)) for row in rows])

    @cached_property
    def slopes(self) -> tuple[Tensor, Tensor]:
        """Derivatives of log-probability and entropy at each token in the logits before it, (K, R, T, V) each."""
        return self._slopes(self.world.logits)

    def _slopes(self, logits_KSV: Tensor) -> tuple[Tensor, Tensor]:
        tree, temperature = self.world.tree, self.sampling.temperature
        logp = (logits_KSV / temperature).log_softmax(-1)[:, tree.state_RT]
        prob = logp.exp()
        taken = torch.nn.functional.one_hot(tree.tokens_RT, tree.vocabulary)
        flatter = -prob * (logp - (prob * logp).sum(-1, keepdim=True))
        mask_RT1 = tree.mask_RT[..., None]
        return (taken - prob) * mask_RT1 / temperature, flatter * mask_RT1 / temperature

    @cached_property
    def score_norms_KR(self) -> Tensor:
        """The squared norm of each response's score function under the policy before the update."""
        # No two tokens of a response are chosen at the same prefix.
        return self._slopes(self.world.old_logits)[0].square().sum((-1, -2))

    def record(self, batches: Batches) -> Trajectories:
        """The batches as the trainer would hold them, N*B trajectories, each batch with a draw number of its own."""
        world, tree = self.world, self.world.tree
        N, B = batches.response_NB.shape
        r, k = batches.response_NB.flatten(), batches.prompt_B.expand(N, B).flatten()
        mask_BT = tree.mask_RT[r]
        ended_B = torch.ones(N * B, dtype=torch.bool)
        if tree.end:
            last_R = tree.tokens_RT.gather(-1, tree.mask_RT.sum(-1, keepdim=True) - 1)[:, 0]
            ended_B = (last_R == tree.vocabulary - 1)[r]
        within_B = torch.stack([(batches.prompt_B[:b] == p).sum() for b, p in enumerate(batches.prompt_B)])
        assert self.old.entropy is not None
        assert self.old.sum_squared_probs is not None
        return Trajectories(
            prompt_ids_BP=torch.zeros(N * B, 1, dtype=torch.long),
            prompt_mask_BP=torch.ones(N * B, 1, dtype=torch.bool),
            response_ids_BT=tree.tokens_RT[r],
            response_mask_BT=mask_BT,
            action_mask_BT=mask_BT,
            rollout_logprobs_BT=self.engine.logprobs[k, r],
            row_B=k,
            draw_B=torch.arange(N).repeat_interleave(B),
            response_index_B=within_B.repeat(N),
            finish_reason_B=torch.where(ended_B, int(FinishReason.STOP), int(FinishReason.LENGTH)),
            parent_B=torch.full((N * B,), -1),
            position_B=torch.zeros(N * B, dtype=torch.long),
            version_B=torch.zeros(N * B, dtype=torch.long),
            rewards_B=world.rewards_KR[k, r],
            scored_B=torch.ones(N * B, dtype=torch.bool),
            old_logprobs_BT=self.old.logprobs[k, r],
            ref_logprobs_BT=self.reference.logprobs[k, r] if self.method.kl.needs_reference else None,
            entropy_BT=self.old.entropy[k, r],
            sum_squared_probs_BT=self.old.sum_squared_probs[k, r],
            score_norms_B=self.score_norms_KR[k, r],
            uniforms_BT=batches.uniforms_NBT.flatten(0, 1),
        )

    @cached_property
    def critic_KS(self) -> Tensor:
        """What the critic says at every prefix: around the exact value under the policy before the update."""
        tree = self.world.tree
        generated_KR = tree.sampled(self.world.old_logits, Sampling(self.sampling.temperature))
        value_KN = node_values(tree, generated_KR, self.shaped_KR)[0]
        return value_KN[:, : len(tree.prefixes)] + self.world.critic_error_KS

    def _values(self, prompt_B: Tensor, response_B: Tensor) -> Tensor:
        """The critic's value before each token; for an oracle the hidden reward of each token."""
        tree, state_BT = self.world.tree, self.world.tree.state_RT[response_B]
        if getattr(self.method.estimator, "sees_token_rewards", False):
            return self.world.token_rewards[prompt_B[:, None], state_BT, tree.tokens_RT[response_B]]
        return self.critic_KS[prompt_B[:, None], state_BT]

    def asked(self, batches: Batches, wanted: Continuations) -> Asked:
        """What a request for continuations comes to."""
        B = batches.response_NB.shape[1]
        node_K = self.path_RN[batches.response_NB.flatten()[wanted.parent_K], wanted.position_K]
        identity = torch.stack([wanted.parent_K // B, batches.prompt_B[wanted.parent_K % B], node_K], dim=-1)
        different, owner_K = torch.unique(identity, dim=0, return_inverse=True)
        return Asked(owner_K, different[:, 0], different[:, 1], different[:, 2], wanted.count)

    def weighed(self, batches: Batches, values_U: Tensor | None = None) -> Weighed:
        """The batches through the estimator; `values_U` answers its request for continuations, if it makes one."""
        trajectories = self.record(batches)
        values_BT = self._values(trajectories.row_B, batches.response_NB.flatten())
        trajectories = trajectories.replace(values_BT=torch.where(trajectories.action_mask_BT, values_BT, 0.0))
        state = self.method.initial_state()
        answers = Answers(state=state["estimator"])
        requests = self.method.estimator.requests(trajectories)
        if requests.greedy:
            rewards_B = self.shaped_KR[torch.arange(len(self.greedy_K)), self.greedy_K][trajectories.row_B]
            answers = replace(
                answers, greedy_rewards_B=rewards_B, greedy_scored_B=torch.ones_like(rewards_B, dtype=torch.bool)
            )
        if requests.continuations is not None:
            asked = self.asked(batches, requests.continuations)
            if values_U is None:
                values_U = self.nodes[0][asked.prompt_U, asked.node_U]
            answers = replace(answers, continued_values_K=values_U[asked.owner_K])
        return self.method.weigh(trajectories, answers, state)

    def weighed_apart(self, batches: Batches, values_U: Tensor | None = None) -> Weighed:
        """The same with each batch through the estimator on its own."""
        trajectories = self.record(batches)
        parts = []
        for n, values in enumerate(self._of_each(batches, values_U)):
            parts.append(self.weighed(batches.select(torch.tensor([n])), values))
        weights_BT = torch.cat(
            [part.trajectories.weights_BT for part in parts if part.trajectories.weights_BT is not None]
        )
        kept_B, needed_B = (torch.cat([getattr(part, name) for part in parts]) for name in ("kept_B", "needed_B"))
        return replace(
            parts[0], trajectories=trajectories.replace(weights_BT=weights_BT), kept_B=kept_B, needed_B=needed_B
        )

    def _of_each(self, batches: Batches, values_U: Tensor | None) -> list[Tensor | None]:
        """The values that each batch asks for."""
        wanted = self.method.estimator.requests(self.record(batches)).continuations
        if values_U is None or wanted is None:
            return [None] * len(batches)
        counts = torch.bincount(self.asked(batches, wanted).batch_U, minlength=len(batches))
        return list(values_U.split(counts.tolist()))

    def gradients_apart(
        self, batches: Batches, values_U: Tensor | None = None, others: MinibatchSize | None = None
    ) -> Tensor:
        """`gradients` with each batch through estimator and loss on its own."""
        each = enumerate(self._of_each(batches, values_U))
        return torch.cat([self.gradients(batches.select(torch.tensor([n])), values, others) for n, values in each])

    def gradients(
        self,
        batches: Batches,
        values_U: Tensor | None = None,
        others: MinibatchSize | None = None,
        *,
        weights_apart: bool = False,
    ) -> Tensor:
        """The estimate of the gradient from each batch, (N, K*S*V): what the optimizer would ascend.

        All batches go through the loss at once, and through the estimator unless `weights_apart`. `others` counts
        responses and tokens of the minibatch that are not in the batches.
        """
        N, B = batches.response_NB.shape
        weighed = (self.weighed_apart if weights_apart else self.weighed)(batches, values_U)
        r, k = batches.response_NB.flatten(), batches.prompt_B.repeat(N)
        assert self.current.entropy is not None
        logprobs_BT = self.current.logprobs[k, r].requires_grad_()
        entropy_BT = self.current.entropy[k, r].requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        for rows, size in self._minibatches(weighed, N, others):
            statistics = TokenStatistics(logprobs_BT[rows], entropy_BT[rows], None)
            part = weighed.trajectories.select(rows)
            total = total + self.method.loss(statistics, part, size, self.method.initial_state()).value
        if not total.requires_grad:
            return torch.zeros(N, self.world.logits.numel(), dtype=torch.float64)
        slopes = torch.autograd.grad(-total, [logprobs_BT, entropy_BT], allow_unused=True)
        tree, (K, S, V) = self.world.tree, self.world.logits.shape
        found = torch.zeros(N, K, S * V, dtype=torch.float64)
        column_RTV = tree.state_RT[..., None] * V + torch.arange(V)
        for slope_BT, table in zip(slopes, self.slopes, strict=True):
            if slope_BT is None or not slope_BT.any():
                continue
            slope_NBT = slope_BT.view(N, B, -1)
            for b in range(B):
                prompt, taken_N = int(batches.prompt_B[b]), batches.response_NB[:, b]
                added_NTV = slope_NBT[:, b, :, None] * table[prompt][taken_N]
                found[:, prompt].scatter_add_(1, column_RTV[taken_N].flatten(1), added_NTV.flatten(1))
        return found.flatten(1)

    def _minibatches(
        self, weighed: Weighed, N: int, others: MinibatchSize | None
    ) -> Iterator[tuple[Tensor, MinibatchSize]]:
        """The rows that the update passes through, batches of equal size together, and the size of one of them."""
        kept_NB = weighed.kept_B.view(N, -1)
        tokens_NB = weighed.trajectories.action_mask_BT.sum(-1).view(N, -1) * kept_NB
        sizes = torch.stack([kept_NB.sum(-1), tokens_NB.sum(-1)], dim=-1)
        batch_B = torch.arange(N).repeat_interleave(kept_NB.shape[1])
        different, which_N = torch.unique(sizes[:, 0] * 2**32 + sizes[:, 1], return_inverse=True)
        for i, (responses, tokens) in enumerate((size >> 32, size % 2**32) for size in different.tolist()):
            rows = (weighed.needed_B & (which_N == i)[batch_B]).nonzero()[:, 0]
            more = others or MinibatchSize(0, 0, 0)
            if len(rows):
                yield rows, MinibatchSize(responses + more.responses, tokens + more.tokens, self.world.tree.horizon)
