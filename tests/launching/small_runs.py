"""A run of a few seconds, for the tests of this folder."""

TINY = [
    *["policy=tiny", "policy.hidden_size=32", "policy.layers=2", "task=sort", "logger=[csv]", "reward_workers=2"],
    *["reward_model=[sorted_digits,length]", "reward_model.length.target_tokens=6", "trainer.precision=32-true"],
    *["rollout.prompts=4", "rollout.responses_per_prompt=4", "rollout.max_response_tokens=10"],
    *["rollout.max_prompt_tokens=32", "optimizer.lr=1e-3", "evaluation.every=2", "evaluation.prompts=8"],
]
TWO = [*TINY, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
