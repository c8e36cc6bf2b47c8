"""The sum of token-level rewards, as one reward for the response, has their policy gradient. (arXiv 2506.02553.)

A real token classifier rewards every token of every response that a small world has; `token_sum` scores the responses.
"""

from dataclasses import replace

import pytest
import torch
from builders import in_double_precision
from small_models import saved, small_model, tokenizer

from tpg.aggregation import SequenceSum
from tpg.audit.enumeration import Bench
from tpg.audit.exact import moments
from tpg.audit.oracles import TokenRewardToGo
from tpg.audit.tabular import Tree, Worlds, draw_world
from tpg.estimators.reinforce import Reinforce
from tpg.estimators.rloo import RLOO
from tpg.kl import NoKL
from tpg.method import Method
from tpg.mismatch import NoMismatch
from tpg.objectives.policy_gradient import PolicyGradient
from tpg.rewards.base import Sample
from tpg.rewards.learned.options import TokenSum
from tpg.rollouts.sampling import Sampling

PROMPTS = ["2+2=", "spell it:"]
LETTERS = "ab."


def world_of(scorer, end):
    """A drawn policy in a world that the reward model rewards."""
    world = draw_world(Worlds(tree=Tree(vocabulary=3, horizon=3, end=end), prompts=len(PROMPTS)), seed=3)
    tree, tokens, model = world.tree, scorer.tokenizer, scorer.models[0]
    of_tokens = torch.zeros_like(world.token_rewards)
    for k, prompt in enumerate(PROMPTS):
        for s, prefix in enumerate(tree.prefixes):
            for token in range(tree.vocabulary):
                text = f"{prompt}\n\n" + "".join(LETTERS[each] for each in (*prefix, token))
                ids = torch.tensor([tokens(text)["input_ids"]])
                with torch.no_grad():
                    of_tokens[k, s, token] = model(input_ids=ids).logits[0, -1, 0]
    samples = [
        Sample(prompt=prompt, response="".join(LETTERS[each] for each in response))
        for prompt in PROMPTS
        for response in tree.responses
    ]
    sums = scorer.outcomes([scorer.begin(sample) for sample in samples])
    rewards_KR = torch.tensor(sums, dtype=torch.float64).view(len(PROMPTS), -1)
    return replace(world, token_rewards=of_tokens, rewards_KR=rewards_KR)


def expected(world, estimator, group):
    parts = {"objective": PolicyGradient(), "aggregation": SequenceSum(), "kl": NoKL(), "mismatch": NoMismatch()}
    return moments(Bench(Method(estimator=estimator, **parts), world, Sampling()), group)


@pytest.mark.parametrize("end", [False, True])
def test_the_sum_has_the_gradient_of_the_token_rewards(end, tmp_path):
    scorer = TokenSum(path=saved(tmp_path, small_model("token"), tokenizer())).load("reward_model.token_sum")
    in_double_precision(scorer.models[0])
    world = world_of(scorer, end)
    oracle = expected(world, TokenRewardToGo(), 1)
    summed = expected(world, Reinforce(), 1)
    compared = expected(world, RLOO(), 2)
    assert oracle.true.norm() > 0.1
    for found in (oracle, summed, compared):
        assert found.enumerated
        assert (found.mean - oracle.mean).abs().max() < 1e-12
        assert (found.mean - found.true).abs().max() < 1e-12
    assert summed.trace > 1.05 * oracle.trace  # what the sum costs is variance
