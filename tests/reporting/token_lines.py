"""A literal record of tokens, as a run writes it: three prompts of iteration 4."""

import json


def line(row, draw, prompt, answer, index, tokens, logprobs, weights, changes, reward, **fields):
    return {
        **{"iteration": 4, "row": row, "draw": draw, "index": index, "prompt": prompt, "answer": answer},
        **{"reward": reward, "rewards": {"sorted": reward, "length": 0.5}, "kept": True, "truncated": False},
        **{"tokens": tokens, "logprobs": logprobs, "weights": weights, "changes": changes},
        **fields,
    }


FIRST = (7, 0, "sort 31:\n", "13")
EQUAL = (9, 2, "sort 22:", None)
LAST = (4, 0, "sort 54:", "45")
LINES = [
    line(*FIRST, 0, ["1", "3", "<eos>"], [-0.5, -0.25, -0.125], [0.5] * 3, [0.1, 0.02, 0.0], 1.0),
    line(*FIRST, 1, ["a\n", " [b]"], [-1.0, -2.0], [-0.5, -0.25], [-0.3, 0.0], 0.0, truncated=True),
    line(*EQUAL, 0, ["2"], [-0.5], [0.0], [0.01], 0.25),
    line(*EQUAL, 1, ["22"], [-0.75], [0.0], [0.02], 0.25),
    line(*LAST, 0, ["45"], [-0.5], [0.125], [0.05], 0.75),
    line(*LAST, 1, ["\t\x1b[31m"], [-1.5], [0.0], [0.0], None, rewards={"sorted": None, "length": 0.5}, kept=False),
    line(*LAST, 2, ["<b>&", ""], [-1.0, -1.0], [1.0, -0.125], [0.0, 0.0], 0.5),
]


def write(run, iteration=4, lines=LINES):
    """The record in a run's folder."""
    (run / "tokens").mkdir(parents=True, exist_ok=True)
    file = run / "tokens" / f"iteration-{iteration:06d}.jsonl"
    text = "".join(json.dumps({**each, "iteration": iteration}, ensure_ascii=False) + "\n" for each in lines)
    file.write_text(text, encoding="utf-8")
    return file
