"""A workload from literal values."""

from benchmarks.common.workload import Workload


def workload(**fields):
    values = {
        "method": "grpo",
        "model": "somewhere",
        "prompts": ((5, 6), (7, 8)),
        "responses_per_prompt": 2,
        "response_tokens": 3,
        "responses_per_microbatch": 4,
        "precision": "float32",
        "device": "cpu",
        "threads": 1,
    }
    return Workload(**(values | fields))
