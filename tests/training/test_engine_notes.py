from builders import gpt2_policy

from tpg import evaluate, train

SORT = ("policy=huggingface", "task=sort", "reward_model=[sorted_digits]", "rollout.max_response_tokens=4")


def test_what_native_cannot_decode_is_said_before_it_starts(entry, tmp_path):
    gpt2_policy().save(tmp_path / "gpt2")
    policy = f"policy.path={tmp_path / 'gpt2'}"
    said = "note: rollout=native does not know this policy: gpt2 is none of the families"
    code, out, _ = entry(evaluate, *SORT, policy, "evaluation.prompts=2", "samples=0")
    assert code == 0
    assert said in out
    run = ("iterations=1", "rollout.prompts=2", "evaluation.every=0", "logger=[]", f"run_dir={tmp_path / 'run'}")
    code, out, _ = entry(train, *SORT, policy, *run)
    assert code == 0
    assert said in out
