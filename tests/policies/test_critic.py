"""A critic's values: at which positions, from which pass, with which gradient; and its loss by hand."""

import pytest
import torch
from builders import gpt2_policy, record, tiny_policy, widened
from torch import nn

from tpg.errors import UserError
from tpg.policies.base import LoRA
from tpg.policies.critic import NoCritic, SeparateCritic, ValueHead
from tpg.policies.huggingface import HuggingFace
from tpg.policies.tiny import Tiny

PAD, EOS = 0, 1
PROMPTS = [[40], [PAD, 12, EOS, 13, PAD], [50, 51, 52]]
RESPONSES = [[30, 31, 32, EOS], [EOS], [PAD, 41, PAD, EOS, 42, PAD]]
OPTIONS = {"value_head": ValueHead(), "shared": ValueHead(detached=False), "separate": SeparateCritic()}


def made(policy, options, dtype=torch.float64):
    """A critic whose head is no longer zero."""
    critic = options.build(policy).to(dtype)
    size = critic.head.in_features
    with torch.no_grad():
        critic.head.weight.copy_(torch.sin(torch.arange(1.0, size + 1))[None] / size**0.5)
        critic.head.bias.fill_(0.25)
    return critic


def values_of(critic, policy, trajectories):
    hidden = policy.statistics(trajectories, 1.0, hidden=True).hidden if critic.reads_policy else None
    return critic(trajectories, hidden)


@pytest.fixture(params=[tiny_policy, gpt2_policy], ids=["llama", "gpt2"])
def policy(request):
    policy = request.param()
    policy.model.double()
    return policy


@pytest.fixture(params=OPTIONS)
def critic(request, policy):
    return made(policy, OPTIONS[request.param])


def test_values_are_read_where_the_token_is_predicted(policy, critic):
    values_BT = values_of(critic, policy, record(PROMPTS, RESPONSES))
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        outputs = policy.model(input_ids=torch.tensor([prompt + response]), output_hidden_states=True)
        states = outputs.hidden_states[-1][0, len(prompt) - 1 : -1]
        expected = states @ critic.head.weight[0] + 0.25
        torch.testing.assert_close(values_BT[i, : len(response)], expected, rtol=0, atol=1e-6)
        assert not values_BT[i, len(response) :].any()
    assert values_BT.std() > 0.1


def test_a_value_knows_the_tokens_before_its_own_alone(policy, critic):
    one = values_of(critic, policy, record([[40, 41]], [[30, 31, 32, 33]]))
    other = values_of(critic, policy, record([[40, 41]], [[30, 31, 50, 33]]))
    torch.testing.assert_close(one[0, :3], other[0, :3], rtol=0, atol=1e-12)
    assert (one[0, 3] - other[0, 3]).abs() > 1e-3


def test_padding_changes_nothing(policy, critic):
    trajectories = record(PROMPTS, RESPONSES)
    wide = values_of(critic, policy, widened(trajectories, prompt=4, response=5))
    torch.testing.assert_close(wide[:, :6], values_of(critic, policy, trajectories), rtol=0, atol=1e-6)
    assert not wide[:, 6:].any()


def test_both_layouts_give_the_same_hidden_states(policy):
    trajectories = record(PROMPTS, RESPONSES)
    padded, packed = (
        policy.statistics(trajectories, 1.0, hidden=True, layout=layout).hidden for layout in ("padded", "packed")
    )
    assert padded.shape == (3, 6, policy.model.get_output_embeddings().weight.shape[1])
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-6)


def test_hidden_states_come_with_the_same_pass_and_change_no_statistic(policy):
    calls = []
    policy.model.get_input_embeddings().register_forward_pre_hook(lambda *_: calls.append(1))
    trajectories = record(PROMPTS, RESPONSES)
    plain = policy.statistics(trajectories, 0.7, distribution=True)
    beside = policy.statistics(trajectories, 0.7, distribution=True, hidden=True)
    assert len(calls) == 2
    assert plain.hidden is None
    for name in ("logprobs", "entropy", "sum_squared_probs"):
        assert torch.equal(getattr(beside, name), getattr(plain, name))
    assert not policy.model.get_output_embeddings()._forward_pre_hooks


def slopes(policy, critic):
    """The size of the value loss's gradient in the policy's weights, and in the critic's."""
    trajectories = record(PROMPTS, RESPONSES, returns_BT=torch.ones(3, 6).double())
    critic.loss(values_of(critic, policy, trajectories), trajectories, 11).backward()
    return tuple(
        sum(float(weight.grad.abs().sum()) for weight in module.parameters() if weight.grad is not None)
        for module in (policy, critic)
    )


@pytest.mark.parametrize(("name", "reaches"), [("value_head", False), ("shared", True), ("separate", False)])
def test_whether_the_value_loss_reaches_the_policy(policy, name, reaches):
    inside, own = slopes(policy, made(policy, OPTIONS[name]))
    assert (inside > 1e-3) == reaches
    assert inside == 0 or reaches
    assert own > 1e-3


def test_a_separate_critic_is_a_copy_that_shares_no_weight(policy):
    critic = SeparateCritic().build(policy)
    places = {weight.data_ptr() for weight in policy.parameters()}
    assert not places & {weight.data_ptr() for weight in critic.parameters()}
    names = [name for name, _ in critic.named_parameters()]
    assert not any("lm_head" in name for name in names)
    before = nn.utils.parameters_to_vector(policy.parameters()).clone()
    with torch.no_grad():
        for weight in critic.parameters():
            weight.add_(1.0)
    assert torch.equal(nn.utils.parameters_to_vector(policy.parameters()), before)


def test_values_start_at_zero_and_the_policy_holds_no_head():
    policy = tiny_policy()
    before = set(policy.state_dict())
    for options in OPTIONS.values():
        assert not values_of(options.build(policy), policy, record(PROMPTS, RESPONSES)).any()
    assert set(policy.state_dict()) == before
    assert NoCritic().build(policy) is None


def test_with_adapters_only_they_and_the_head_are_trained():
    policy = tiny_policy(lora=LoRA(rank=4))
    for options, adapters in [(ValueHead(), False), (SeparateCritic(), True)]:
        critic = made(policy, options, torch.float32)
        trainable = [name for name, weight in critic.named_parameters() if weight.requires_grad]
        assert [name for name in trainable if "lora_" not in name] == ["head.weight", "head.bias"]
        assert any("lora_" in name for name in trainable) == adapters
        assert slopes(policy, critic)[1] > 1e-3
    assert slopes(policy, made(policy, ValueHead(detached=False), torch.float32))[0] > 1e-3


@pytest.mark.parametrize("name", ["shared", "separate"])
def test_gradient_checkpointing_changes_no_gradient(name):
    plain, checkpointed = (
        slopes(policy, made(policy, OPTIONS[name], torch.float32))
        for policy in (tiny_policy(), tiny_policy(gradient_checkpointing=True))
    )
    assert checkpointed == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("name", OPTIONS)
def test_dropout_stays_off(name):
    policy = gpt2_policy(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    critic = made(policy, OPTIONS[name], torch.float32).train()
    first, second = (values_of(critic, policy, record(PROMPTS, RESPONSES)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_head_stays_in_float32_in_mixed_precision(name):
    policy = tiny_policy()
    critic = made(policy, OPTIONS[name], torch.float32)
    exact = values_of(critic, policy, record(PROMPTS, RESPONSES))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = values_of(critic, policy, record(PROMPTS, RESPONSES))
    assert mixed.dtype == torch.float32
    # A head in bfloat16 would give numbers that bfloat16 holds.
    assert not torch.equal(mixed, mixed.bfloat16().float())
    torch.testing.assert_close(mixed, exact, rtol=0, atol=0.1)


# (0.9 - 1)^2 = 0.01, (0.3 - 1)^2 = 0.49, (-0.1 - 0)^2 = 0.01; the last token is not the policy's.
VALUES = [[0.9, 0.3], [-0.1, 7.0]]
RETURNS = [[1.0, 1.0], [0.0, 0.0]]
OLD = [[0.5, 0.5], [0.5, 0.5]]


def judged(**fields):
    mask = torch.tensor([[True, True], [True, False]])
    tensors = {"returns_BT": torch.tensor(RETURNS), "values_BT": torch.tensor(OLD), "action_mask_BT": mask}
    return record([[2], [2]], [[3, 3], [3, 3]], **(tensors | fields))


def test_the_loss_is_half_the_mean_squared_error_over_the_minibatchs_tokens():
    critic = ValueHead().build(tiny_policy())
    assert float(critic.loss(torch.tensor(VALUES), judged(), 3)) == pytest.approx(0.5 * 0.51 / 3)
    assert float(critic.loss(torch.tensor(VALUES), judged(), 10)) == pytest.approx(0.5 * 0.51 / 10)
    half = ValueHead(coefficient=0.5).build(tiny_policy())
    assert float(half.loss(torch.tensor(VALUES), judged(), 3)) == pytest.approx(0.25 * 0.51 / 3)


def test_a_clipped_value_counts_its_larger_error():
    # Held within 0.2 of 0.5: 0.7, 0.3, 0.3, whose errors are 0.09, 0.49, 0.09.
    critic = ValueHead(value_clip=0.2).build(tiny_policy())
    values_BT = torch.tensor(VALUES, requires_grad=True)
    loss = critic.loss(values_BT, judged(), 3)
    assert float(loss.detach()) == pytest.approx(0.5 * (0.09 + 0.49 + 0.09) / 3)
    loss.backward()
    # Beyond the clip, on the way to the target, nothing pulls; 0.3 stands on the edge, where clip and value are one.
    assert values_BT.grad[0, 0] == values_BT.grad[1, 0] == values_BT.grad[1, 1] == 0
    assert float(values_BT.grad[0, 1]) < 0


def test_a_minibatch_without_a_token_has_no_loss():
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    critic = ValueHead().build(tiny_policy())
    assert float(critic.loss(torch.full((2, 2), float("nan")), judged(action_mask_BT=nothing), 0)) == 0.0


def test_a_critic_from_a_folder(tmp_path):
    policy = tiny_policy()
    start = tiny_policy(seed=5, layers=1)
    start.save(tmp_path)
    options = SeparateCritic(path=str(tmp_path))
    options.check(Tiny())
    critic = options.build(options.source(policy, Tiny(), 0))
    assert len(critic.trunk.layers) == 1
    assert torch.equal(critic.trunk.embed_tokens.weight, start.model.get_input_embeddings().weight)
    assert SeparateCritic().source(policy, Tiny(), 0) is policy


def test_a_critic_that_reads_other_tokens_is_refused(tmp_path):
    tiny_policy().save(tmp_path)
    other = tiny_policy()
    other.tokenizer.add_tokens(["<other>"])
    with pytest.raises(UserError, match=r"^critic\.path=.*: its tokenizer is not the policy's"):
        SeparateCritic(path=str(tmp_path)).source(other, Tiny(), 0)


def test_a_missing_folder_is_told_by_the_critics_key():
    with pytest.raises(UserError, match=r"^critic\.path=\./nope: no such folder"):
        SeparateCritic(path="./nope").check(HuggingFace(path="somewhere"))
