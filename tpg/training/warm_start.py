"""Supervised steps on a task's demonstrations, before any reward."""

from collections.abc import Callable

import torch

from tpg.policies.base import Policy
from tpg.rollouts.engine import Continuation, Prefix, assembled
from tpg.tasks.base import Example, Task
from tpg.tasks.rendering import render_prompts
from tpg.training.options import WarmStart
from tpg.trajectories import FinishReason


def warm_start(
    policy: Policy, task: Task, options: WarmStart, seed: int, max_prompt_tokens: int, on_step: Callable[[float], None]
) -> None:
    """Train the policy in place on completions alone (prompts carry no loss), with AdamW and a linear fall to zero.

    `seed` is the one that the task is loaded with: it decides on the prompts held out, which are not demonstrated.
    """
    pairs = task.demonstrations(seed, options.steps * options.examples_per_step)
    examples = [Example(prompt) for prompt, _ in pairs]
    prompts = render_prompts(task, examples, policy.tokenizer, max_prompt_tokens, "raise").token_ids
    end = min(policy.end_ids)
    responses = [(*policy.tokenizer(text, add_special_tokens=False).input_ids, end) for _, text in pairs]
    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=options.lr, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * (1 - step / options.steps)
        chosen = range(step * options.examples_per_step, (step + 1) * options.examples_per_step)
        rows = [Continuation(Prefix(prompts[i], len(responses[i]), (0,), row=i), 0, 0) for i in chosen]
        ids = [responses[i] for i in chosen]
        zeros = [torch.zeros(len(tokens)) for tokens in ids]
        demonstrations = assembled(rows, ids, zeros, [FinishReason.STOP] * len(rows), policy, 0).to(policy.device)
        logprobs_BT = policy.statistics(demonstrations, 1.0).logprobs
        loss = -logprobs_BT.sum() / demonstrations.action_mask_BT.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        on_step(float(loss.detach()))
    optimizer.zero_grad(set_to_none=True)
