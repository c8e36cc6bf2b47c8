"""Where so many responses cannot be decoded at once, fewer are, and they are the same."""

import pytest
import torch
from builders import tiny_policy
from torch.testing import assert_close

from tpg.errors import UserError
from tpg.randomness import key
from tpg.rollouts.engine import Prefix
from tpg.rollouts.native.decoding import Decoding
from tpg.rollouts.native.engine import Native
from tpg.rollouts.transformers import Transformers

ENGINES = {"native": Native, "transformers": Transformers}
PREFIXES = [
    Prefix(prompt_ids=(10 + row, 40), max_tokens=8, keys=tuple(key(3, row, i) for i in range(4)), row=row)
    for row in range(3)
]


class SmallMemory:
    """Decodes no more than so many responses at once; notes how many were tried."""

    def __init__(self, monkeypatch, limit, step=3):
        self.tried = []
        self.step = step
        decode, begin = Decoding.run, Decoding.__init__

        def begun(decoding, *args, lanes, **options):
            decoding.lanes_given = lanes
            begin(decoding, *args, lanes=lanes, **options)

        def run(decoding, take, on_step):
            self.tried.append(decoding.lanes_given)
            for number, ended in enumerate(decode(decoding, take, on_step)):
                if number == step and decoding.lanes_given > limit:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                yield ended

        monkeypatch.setattr(Decoding, "__init__", begun)
        monkeypatch.setattr(Decoding, "run", run)
        from tpg.rollouts import transformers

        generate = transformers._generate_batch

        def _generate_batch(policy, rows, *args):
            self.tried.append(len(rows))
            if len(rows) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return generate(policy, rows, *args)

        monkeypatch.setattr(transformers, "_generate_batch", _generate_batch)


def made(name, **options):
    policy = tiny_policy(hidden_size=16, layers=2)
    policy.model.generation_config.eos_token_id = [1, *range(60, 80)]
    return ENGINES[name](**options).build(policy)


@pytest.mark.parametrize(("name", "tried"), [("native", [12, 6, 3]), ("transformers", [12, 6, 3, 3, 3, 3])])
def test_the_responses_are_the_same(monkeypatch, capsys, name, tried):
    engine = made(name)
    expected = engine.generate(PREFIXES, engine.options.sampling)
    memory = SmallMemory(monkeypatch, 4)
    told = []
    given = engine.generate(PREFIXES, engine.options.sampling, on_finished=lambda ended: told.extend(ended))
    assert memory.tried == tried
    for field in ("response_ids_BT", "response_mask_BT", "action_mask_BT", "finish_reason_B", "row_B"):
        assert torch.equal(getattr(given, field), getattr(expected, field)), field
    assert_close(given.rollout_logprobs_BT, expected.rollout_logprobs_BT, atol=1e-5, rtol=1e-5)
    assert sorted(response.place for response in told) == list(range(12))
    err = capsys.readouterr().err.splitlines()
    assert [line.split(" responses")[0] for line in err] == [
        f"warning: out of memory in decoding {count}" for count in (12, 6)
    ]
    memory.tried.clear()
    engine.generate(PREFIXES, engine.options.sampling)
    assert max(memory.tried) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "remedy"), [("native", "rollout.dtype=bfloat16"), ("transformers", "policy.dtype=bfloat16")]
)
def test_one_response_that_does_not_fit_is_told(monkeypatch, name, remedy):
    engine = made(name, batch_responses=2)
    SmallMemory(monkeypatch, 0, step=0)
    with pytest.raises(UserError, match=r"^out of memory: a single response cannot be decoded; use a smaller") as told:
        engine.generate(PREFIXES, engine.options.sampling)
    assert f"rollout.max_prompt_tokens, {remedy}, or" in str(told.value)
