"""The least time that a machine could need for the workload, from the model's arithmetic and its bytes.

FLOPs are those of the matrix products (two for a multiply-add) and of attention; bytes are those of weights and of
keys and values while decoding, and of weights and moments in the optimizer's step. Each at the measured rate.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What counts in a decoder."""

    body_weights: int
    """Weights of the linear layers, the output embedding left out."""
    head_weights: int
    """Of the output embedding."""
    parameters: int
    """That the optimizer moves."""
    layers: int
    query_width: int
    """Heads x their size."""
    key_width: int
    """Key-value heads x their size."""


@dataclass(frozen=True)
class Rates:
    """What the machine was measured to do."""

    flops: dict[str, float]
    """FLOP/s of a matrix product, by precision."""
    bandwidth: float
    """Bytes/s of reading memory."""


@dataclass(frozen=True)
class Floor:
    """Least seconds by stage."""

    prefill: float
    decode: float
    update: float

    @property
    def generate(self) -> float:
        """Prefill and decoding."""
        return self.prefill + self.decode

    @property
    def iteration(self) -> float:
        """All of it; rewards cost nothing here."""
        return self.generate + self.update


def shape_of(model: Any) -> Shape:
    """Count a Hugging Face decoder's weights."""
    from torch import nn

    config = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    return Shape(
        body_weights=sum(linear.weight.numel() for linear in linears),
        head_weights=head.weight.numel(),
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        layers=config.num_hidden_layers,
        query_width=heads * size,
        key_width=(getattr(config, "num_key_value_heads", None) or heads) * size,
    )


def forward_flops(shape: Shape, prompts: int, prompt_tokens: int, responses: int, response_tokens: int) -> float:
    """Of every prompt once and every response behind its prompt, logits for response tokens.

    A response's last token predicts nothing, so that it is no input. A token that sees c tokens, itself included, costs
    `4 * layers * query_width * c` in attention.
    """
    inputs = response_tokens - 1
    tokens = prompts * prompt_tokens + responses * inputs
    seen = prompts * _triangle(prompt_tokens) + responses * (inputs * prompt_tokens + _triangle(inputs))
    body = 2.0 * shape.body_weights * tokens
    head = 2.0 * shape.head_weights * responses * response_tokens
    return body + head + 4.0 * shape.layers * shape.query_width * seen


def floor_of(
    shape: Shape,
    rates: Rates,
    precision: str,
    *,
    prompts: int,
    prompt_tokens: int,
    responses: int,
    response_tokens: int,
) -> Floor:
    """Least seconds of an iteration, each prompt computed once for all of its responses.

    Prefill and update are bound by arithmetic. A decoding step takes as long as its arithmetic or as reading the
    weights, each prompt's keys and values once and each response's own, whichever is longer. The backward pass costs
    twice the forward; AdamW reads weight, gradient and two moments and writes all but the gradient, in float32.
    """
    rate, width = rates.flops[precision], 2 if precision == "bf16" else 4
    head = 2.0 * shape.head_weights
    attention = 4.0 * shape.layers * shape.query_width
    prefill = 2.0 * shape.body_weights * prompts * prompt_tokens + attention * prompts * _triangle(prompt_tokens)
    decode = prompts * head / rate  # the first tokens' logits
    for given in range(1, response_tokens):
        flops = responses * (2.0 * shape.body_weights + head + attention * (prompt_tokens + given))
        cached = prompts * prompt_tokens + responses * given
        read = width * (shape.body_weights + shape.head_weights + 2.0 * shape.layers * shape.key_width * cached)
        decode += max(flops / rate, read / rates.bandwidth)
    passes = 3.0 * forward_flops(shape, prompts, prompt_tokens, responses, response_tokens) / rate
    return Floor(prefill / rate, decode, passes + 7 * 4 * shape.parameters / rates.bandwidth)


def _triangle(count: int) -> float:
    return count * (count + 1) / 2


def measure(device: str, threads: int, for_s: float = 2.0) -> Rates:
    """The machine's rates, the best of many trials of each in so many seconds."""
    import torch

    torch.set_num_threads(threads)
    place, size = ("cuda", 8192) if device == "gpu" else ("cpu", 1536)
    clock = _on_gpu if device == "gpu" else functools.partial(_on_cpu, threads=threads)
    flops = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
        flops[name] = 2.0 * size**3 / _best(functools.partial(torch.matmul, left, right), clock, for_s)
    numbers = torch.ones((2**30 if device == "gpu" else 2**26), device=place)
    return Rates(flops, 4.0 * numbers.numel() / _best(numbers.sum, clock, for_s))


def _best(action: Callable[[], Any], clock: Callable[[Callable[[], Any]], float], for_s: float) -> float:
    """Seconds of the fastest trial."""
    clock(action)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < for_s:
        best = min(best, clock(action))
    return best


def _on_cpu(action: Callable[[], Any], threads: int) -> float:
    """By the clock, or by each thread's share of processor time, where other processes took the processor away."""
    start, spent = time.perf_counter(), time.process_time()
    action()
    return min(time.perf_counter() - start, (time.process_time() - spent) / threads)


def _on_gpu(action: Callable[[], Any]) -> float:
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - start
