"""Reward models made of policies: whose weights they have, what they read, and what a pass and a margin change."""

import pytest
import torch
from builders import family_policy, gpt2_policy, in_double_precision, tiny_policy
from stage_options import SMALL, assert_passes_change_nothing, preference_stage

from tpg.errors import UserError
from tpg.policies.base import LoRA
from tpg.rewards.base import Sample
from tpg.rewards.learned.options import Classifier
from tpg.rewards.learned.rendering import conversation_ids
from tpg.stages.classifier import RewardClassifier
from tpg.stages.preference import PreferenceModule, tokens_of
from tpg.tasks.preferences import Pair

PAIRS = [
    Pair("abc", "x", "a longer response"),
    Pair("a longer prompt:", "yes", "no", 0.5),
    Pair("b", "something else", "1"),
    Pair("cd", "12345", "123"),
    Pair(({"role": "user", "content": "e"},), "67", "76"),
]
POLICIES = {
    "tiny": lambda: tiny_policy(**SMALL),
    "gpt2": gpt2_policy,
    "qwen3": lambda: family_policy("qwen3"),
    "lora": lambda: tiny_policy(**SMALL, lora=LoRA(rank=4, alpha=8)),
}


def made(policy=None, **options):
    policy = policy or tiny_policy(**SMALL)
    stage = preference_stage(**options)
    tokens = tokens_of(PAIRS, policy.tokenizer, policy.max_positions, stage)
    return PreferenceModule(RewardClassifier(policy, seed=3), tokens, tokens, stage)


def test_conversations_are_those_that_a_reward_term_reads():
    module = made()
    tokens, tokenizer = module.data, module.classifier.tokenizer
    assert list(tokens.chosen[1]) == conversation_ids(tokenizer, "a longer prompt:", "yes")
    assert tokenizer.decode(tokens.rejected[0]) == "abc\n\na longer response"
    assert tokenizer.decode(tokens.chosen[4]) == "e\n\n67"


@pytest.mark.parametrize("name", POLICIES)
def test_a_reward_is_a_head_on_the_last_hidden_state_of_the_policy(name):
    policy = POLICIES[name]()
    module = made(policy)
    model = policy.model.get_base_model() if hasattr(policy.model, "get_base_model") else policy.model
    head = module.classifier.model.score
    assert head.weight.shape[0] == 1
    tokens = module.data
    with torch.no_grad():
        together = module.classifier([*tokens.chosen, *tokens.rejected])
        for row, ids in enumerate((*tokens.chosen, *tokens.rejected)):
            last = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
            torch.testing.assert_close(together[row], head.weight[0] @ last, atol=1e-5, rtol=1e-5)


def test_the_head_is_a_function_of_the_seed():
    heads = [RewardClassifier(tiny_policy(**SMALL), seed).model.score.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert 0.1 < heads[0].std().item() < 0.25  # 1 / sqrt(32 + 1) = 0.174


@pytest.mark.parametrize("name", ["tiny", "lora"])
def test_what_is_written_scores_as_what_was_trained(name, tmp_path):
    module = made(POLICIES[name]())
    for name_of, weight in module.classifier.named_parameters():
        if weight.requires_grad:  # adapters begin without effect
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(len(name_of)))
    module.classifier.save(tmp_path)
    scorer = Classifier(path=str(tmp_path), device="cpu").load("reward_model.classifier")
    samples = [Sample(prompt=pair.prompt, response=pair.chosen) for pair in PAIRS[:4]]
    found = scorer.outcomes([scorer.begin(sample) for sample in samples])
    with torch.no_grad():
        expected = module.classifier(list(module.data.chosen[:4]))
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-4, rtol=1e-4)
    assert float(expected.std()) > 1e-2
    assert module.trained.state_dict().keys() == made(POLICIES[name]()).trained.state_dict().keys()  # as it was


def test_adapters_and_the_head_alone_are_trained():
    module = made(POLICIES["lora"]())
    trained = {name for name, weight in module.trained.named_parameters() if weight.requires_grad}
    assert any(name.endswith("score.weight") for name in trained)
    assert all("lora_" in name or name.endswith("score.weight") for name in trained)
    loss, _ = module.share((0, 1), (0, 1))
    loss.backward()
    assert all(weight.grad is not None for weight in module.trained.parameters() if weight.requires_grad)


def test_passes_change_nothing():
    def module(tokens):
        policy = in_double_precision(tiny_policy(**SMALL))
        return made(policy, tokens_per_microbatch=tokens, margin=0.25, centering=0.1)

    assert_passes_change_nothing(module, (None, 120, 1), tolerance=1e-9)


def test_a_rectangle_holds_both_conversations_of_each_pair():
    tokens = made().data
    lengths = [tokens.length(row) for row in range(5)]
    assert lengths == [22, 21, 17, 9, 5]
    assert tokens.parts([0, 1, 2, 3, 4], 90) == [(4, 3), (2, 1), (0,)]  # 2 * 2 * 9, 2 * 2 * 21, 2 * 22


def test_a_pairs_own_margin_comes_before_the_constant():
    assert made(margin=0.25).data.margins == (0.25, 0.5, 0.25, 0.25, 0.25)


def test_what_is_too_long_is_refused_or_left_out_and_counted():
    with pytest.raises(
        UserError, match=r"^max_tokens=21: 1 of 5 pairs have a longer conversation, the longest 22 tokens"
    ):
        made(max_tokens=21)
    assert made(max_tokens=21, overlong="filter").data.overlong == 1


def test_a_model_without_a_classifier_is_refused():
    with pytest.raises(UserError, match=r"^policy: transformers has no sequence classifier of a granite; use another"):
        RewardClassifier(family_policy("granite"), seed=0)
