"""Worlds and methods of these tests, and gradients counted a second time without the audit's own tables."""

import itertools
import math

import torch

from tpg.aggregation import SequenceSum
from tpg.audit.causes import Setting, causes
from tpg.audit.enumeration import Bench
from tpg.audit.exact import Moments, moments
from tpg.audit.tabular import Tree, World, Worlds, draw_world
from tpg.audit.verdict import Judgement, judged
from tpg.kl import NoKL
from tpg.method import Method
from tpg.mismatch import NoMismatch
from tpg.objectives.policy_gradient import PolicyGradient
from tpg.rollouts.sampling import Sampling


def method(estimator, **parts) -> Method:
    plain = {"objective": PolicyGradient(), "aggregation": SequenceSum(), "kl": NoKL(), "mismatch": NoMismatch()}
    return Method(estimator=estimator, **(plain | parts))


def hand_world(**fields) -> World:
    """Two tokens out of two at even odds; the first 1 is worth 1, a second 1 after it 2."""
    zeros = torch.zeros(1, 3, 2, dtype=torch.float64)
    plain = {
        "tree": Tree(vocabulary=2, horizon=2, end=False),
        "logits": zeros,
        "old_logits": zeros,
        "rollout_logits": zeros,
        "reference_logits": zeros,
        "token_rewards": torch.tensor([[[0.0, 1.0], [0.0, 0.0], [0.0, 2.0]]], dtype=torch.float64),
        "rewards_KR": torch.tensor([[0.0, 0.0, 1.0, 3.0]], dtype=torch.float64),
        "critic_error_KS": torch.zeros(1, 3, dtype=torch.float64),
    }
    return World(**(plain | fields))


def setting(estimator, group=1, sampling=None, worlds=None, **parts) -> Setting:
    return Setting(method(estimator, **parts), sampling or Sampling(), worlds or Worlds(), group)


def of_world(world, estimator, group=1, sampling=None, limit=50_000, samples=20_000, seed=0, **parts) -> Moments:
    bench = Bench(method(estimator, **parts), world, sampling or Sampling())
    return moments(bench, group, limit=limit, samples=samples, seed=seed)


def judge(tried: Setting, seeds=range(3), limit=50_000, samples=2000) -> Judgement:
    return judged([tried.moments(seed, limit, samples) for seed in seeds])


def blamed(tried: Setting) -> list[str]:
    return [cause.name for cause in causes(tried, judge(tried), judge)]


# A second count, in plain Python: responses as tuples, gradients as dictionaries of (prompt, prefix, token).


def responses(vocabulary, horizon, end):
    found = []
    for length in range(1, horizon + 1):
        for tokens in itertools.product(range(vocabulary), repeat=length):
            early = end and vocabulary - 1 in tokens[:-1]
            complete = length == horizon or (end and tokens[-1] == vocabulary - 1)
            if complete and not early:
                found.append(tokens)
    return sorted(found)


def softmax(row):
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


class Count:
    """A drawn world, with everything looked up by prefix."""

    def __init__(self, world: World, logits=None):
        self.tree, self.world = world.tree, world
        self.responses = responses(world.tree.vocabulary, world.tree.horizon, world.tree.end)
        self.logits = world.logits if logits is None else logits
        rows = {prefix: s for s, prefix in enumerate(world.tree.prefixes)}
        self.rows = rows
        self.policy = [{prefix: softmax(table[s].tolist()) for prefix, s in rows.items()} for table in self.logits]

    def probability(self, k, response):
        return math.prod(self.policy[k][response[:t]][token] for t, token in enumerate(response))

    def reward(self, k, response):
        return float(self.world.rewards_KR[k, self.responses.index(response)])

    def score(self, k, response, t):
        """Of token t, a tensor like the logits."""
        found = torch.zeros_like(self.logits)
        row = found[k, self.rows[response[:t]]]
        row -= torch.tensor(self.policy[k][response[:t]], dtype=torch.float64)
        row[response[t]] += 1.0
        return found

    def batches(self, prompts):
        """Every batch of a response to each of `prompts`, with its probability."""
        for batch in itertools.product(self.responses, repeat=len(prompts)):
            yield batch, math.prod(self.probability(k, one) for k, one in zip(prompts, batch, strict=True))


def mean_and_trace(pairs):
    """Of (gradient, probability) pairs."""
    pairs = list(pairs)
    assert abs(sum(chance for _, chance in pairs) - 1) < 1e-12
    mean = sum(chance * gradient for gradient, chance in pairs)
    return mean.flatten(), float(sum(chance * (gradient - mean).square().sum() for gradient, chance in pairs))


def drawn(seed=0, **fields) -> World:
    return draw_world(Worlds(**fields), seed)
