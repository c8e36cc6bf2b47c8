"""Small worlds in which everything can be counted: a softmax policy that is a table, and hidden rewards of tokens.

A prompt has a table of its own: a row of logits for every prefix. `vocabulary` tokens, at most `horizon` of them; with
`end` the last token of the vocabulary ends a response.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tpg.numerics import TokenStatistics, token_statistics
from tpg.rollouts.sampling import Sampling, truncated

RewardKind = Literal["dense", "key", "first", "last", "terminal_binary"]


@dataclass(frozen=True)
class Tree:
    """All responses there are, R of them, and the S prefixes at which a token is chosen."""

    vocabulary: int
    horizon: int
    end: bool

    @cached_property
    def responses(self) -> list[tuple[int, ...]]:
        """Every response, short ones ended by the end token."""
        found: list[tuple[int, ...]] = []
        open_: list[tuple[int, ...]] = [()]
        for _ in range(self.horizon):
            grown = [(*prefix, token) for prefix in open_ for token in range(self.vocabulary)]
            found += [response for response in grown if self._ended(response)]
            open_ = [response for response in grown if not self._ended(response)]
        return sorted(found + open_)

    def _ended(self, response: tuple[int, ...]) -> bool:
        return self.end and response[-1] == self.vocabulary - 1

    @cached_property
    def prefixes(self) -> list[tuple[int, ...]]:
        """Every prefix after which a token is chosen, short ones first."""
        found = {response[:t] for response in self.responses for t in range(len(response))}
        return sorted(found, key=lambda prefix: (len(prefix), prefix))

    @cached_property
    def node(self) -> dict[tuple[int, ...], int]:
        """The number of each prefix, then of each complete response."""
        return {tokens: i for i, tokens in enumerate([*self.prefixes, *self.responses])}

    @cached_property
    def mask_RT(self) -> Tensor:
        """Where a response has a token."""
        steps = torch.arange(self.horizon)
        return steps < torch.tensor([len(response) for response in self.responses])[:, None]

    @cached_property
    def tokens_RT(self) -> Tensor:
        """The tokens of every response, padded with 0."""
        return torch.tensor([[*response, *[0] * (self.horizon - len(response))] for response in self.responses])

    @cached_property
    def state_RT(self) -> Tensor:
        """The prefix before each token, padded with 0."""
        rows = [[self.node[response[:t]] for t in range(len(response))] for response in self.responses]
        return torch.tensor([row + [0] * (self.horizon - len(row)) for row in rows])

    @cached_property
    def through_RN(self) -> Tensor:
        """Which nodes, prefixes and complete responses, lie on each response."""
        through = torch.zeros(len(self.responses), len(self.node), dtype=torch.bool)
        for r, response in enumerate(self.responses):
            through[r, [self.node[response[:t]] for t in range(len(response) + 1)]] = True
        return through

    def statistics(self, logits_KSV: Tensor, temperature: float) -> TokenStatistics:
        """What the trainer would read off the logits at every token, each (K, R, T) and 0 past the end."""
        prompts = len(logits_KSV)
        tokens = self.tokens_RT.expand(prompts, -1, -1)
        read = token_statistics(logits_KSV[:, self.state_RT], tokens, temperature, distribution=True)
        return TokenStatistics(*(torch.where(self.mask_RT, values, 0.0) for values in read if values is not None))

    def sampled(self, logits_KSV: Tensor, sampling: Sampling) -> Tensor:
        """The probability of every response when it is sampled so, (K, R)."""
        logits = truncated(logits_KSV.flatten(0, 1) / sampling.temperature, sampling).view_as(logits_KSV)
        return torch.where(self.mask_RT, self.statistics(logits, 1.0).logprobs, 0.0).sum(-1).exp()


@dataclass(frozen=True)
class World:
    """A policy, its older selves, a reference and rewards, for each of K prompts. Logits are (K, S, V), float64."""

    tree: Tree
    logits: Tensor
    """Of the policy that is updated."""
    old_logits: Tensor
    """Of the policy before the update; differs where the update is off-policy."""
    rollout_logits: Tensor
    """Of the engine's policy; differs from the old one where the engine computes differently."""
    reference_logits: Tensor
    token_rewards: Tensor
    """The hidden reward of every token at every prefix, (K, S, V); all zero for a reward of the whole response."""
    rewards_KR: Tensor
    """What the response as a whole is given: the sum of its tokens' rewards."""
    critic_error_KS: Tensor
    """What the critic is off by at every prefix."""


@dataclass(frozen=True)
class Worlds:
    """What worlds are drawn like; distances are standard deviations of what is added to the old policy's logits."""

    tree: Tree = Tree(vocabulary=3, horizon=3, end=False)
    prompts: int = 1
    reward: RewardKind = "dense"
    success_rate: float = 1 / 3
    """Probability of a terminal binary reward of 1, as nearly as the responses allow."""
    discount: float = 1.0
    """Of hidden token rewards: token t's counts `discount^(t-1)`."""
    reward_scales: tuple[float, ...] = (1.0,)
    """Of the prompts in turn."""
    off_policy: float = 0.0
    mismatch: float = 0.0
    reference_distance: float = 0.5
    critic_error: float = 0.0
    """Standard deviation of the critic's error at each prefix."""


def draw_world(worlds: Worlds, seed: int) -> World:
    """A world of standard normal logits and rewards; the same seed gives the same ones whatever the distances are."""
    tree, prompts = worlds.tree, worlds.prompts
    generator = torch.Generator().manual_seed(seed)
    shape = (prompts, len(tree.prefixes), tree.vocabulary)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    old = normal(*shape)
    token_rewards, rewards_KR = _rewards(worlds, tree.sampled(old, Sampling()), generator)
    scales = torch.tensor(
        [worlds.reward_scales[k % len(worlds.reward_scales)] for k in range(prompts)], dtype=torch.float64
    )
    token_rewards, rewards_KR = token_rewards * scales[:, None, None], rewards_KR * scales[:, None]
    reference, newer, engine = normal(*shape), normal(*shape), normal(*shape)
    return World(
        tree=tree,
        logits=old + worlds.off_policy * newer,
        old_logits=old,
        rollout_logits=old + worlds.mismatch * engine,
        reference_logits=old + worlds.reference_distance * reference,
        token_rewards=token_rewards,
        rewards_KR=rewards_KR,
        critic_error_KS=worlds.critic_error * normal(prompts, shape[1]),
    )


def _rewards(worlds: Worlds, probability_KR: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hidden token rewards (K, S, V) and the responses' rewards (K, R)."""
    tree, prompts, kind = worlds.tree, worlds.prompts, worlds.reward
    shape = (prompts, len(tree.prefixes), tree.vocabulary)
    if kind == "terminal_binary":
        solved_KR = torch.stack([_solved(row, worlds.success_rate, generator) for row in probability_KR])
        return torch.zeros(shape, dtype=torch.float64), solved_KR
    rewards = torch.randn(shape, dtype=torch.float64, generator=generator)
    depth_S = torch.tensor([len(prefix) for prefix in tree.prefixes])
    if kind == "first":
        rewards = rewards * (depth_S == 0)[:, None]
    elif kind == "key":
        key_K = torch.randint(tree.horizon, (prompts,), generator=generator)
        rewards = rewards * (depth_S == key_K[:, None])[..., None]
    elif kind == "last":
        rewards = rewards * _last_tokens(tree)
    rewards = rewards * worlds.discount ** depth_S[:, None]
    taken = rewards[:, tree.state_RT, tree.tokens_RT]
    return rewards, torch.where(tree.mask_RT, taken, 0.0).sum(-1)


def _solved(probability_R: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Which responses get 1: as they come in random order, those that bring the probability of success nearer."""
    solved_R = torch.zeros_like(probability_R)
    for r in torch.randperm(len(solved_R), generator=generator).tolist():
        missing = rate - float(probability_R @ solved_R)
        if abs(missing - float(probability_R[r])) < abs(missing):
            solved_R[r] = 1.0
    # Rewards that are all equal have no gradient.
    if not solved_R.any() or solved_R.all():
        solved_R[probability_R.argmin()] = 1.0 - solved_R[0]
    return solved_R


def _last_tokens(tree: Tree) -> Tensor:
    """Which tokens at which prefixes complete a response, (S, V)."""
    complete = [
        [
            (*prefix, token) in tree.node and tree.node[(*prefix, token)] >= len(tree.prefixes)
            for token in range(tree.vocabulary)
        ]
        for prefix in tree.prefixes
    ]
    return torch.tensor(complete)


def node_values(tree: Tree, probability_KR: Tensor, rewards_KR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """At every node, prefixes first and then complete responses: mean and variance of the final reward, mean length.

    Each (K, N). Nodes that are never reached read the plain mean of what lies behind them.
    """
    through_NR = tree.through_RN.T.to(probability_KR.dtype)
    reach_KN = probability_KR @ through_NR.T
    # What cannot be reached still needs a finite value: weights of probability 0 multiply it.
    weight_KNR = torch.where(reach_KN[..., None] > 0, probability_KR[:, None] * through_NR, through_NR)
    weight_KNR = weight_KNR / weight_KNR.sum(-1, keepdim=True)
    mean_KN = (weight_KNR * rewards_KR[:, None]).sum(-1)
    spread_KNR = (rewards_KR[:, None] - mean_KN[..., None]) * through_NR
    length_R = tree.mask_RT.sum(-1).to(probability_KR.dtype)
    return mean_KN, (weight_KNR * spread_KNR.square()).sum(-1), (weight_KNR * length_R).sum(-1)


def all_tuples(sizes: list[int]) -> Tensor:
    """Every choice of one out of each of `sizes`, (number of choices, len(sizes))."""
    return torch.stack(torch.unravel_index(torch.arange(math.prod(sizes)), sizes), dim=-1)
