"""Memory of one device, part by part and phase by phase."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from tpg.planning.activations import activations, layer_of
from tpg.planning.outline import bytes_of
from tpg.planning.setting import Setting
from tpg.policies.attention import base_model
from tpg.policies.head import LOGITS_AT_A_TIME, TOKENS_AT_A_TIME
from tpg.rewards.learned.options import Learned
from tpg.rollouts.vllm.local import CPU_CACHE_GIB
from tpg.training.optimizers import AdamW8bit, OptimizerOptions

RUNTIME = {"cuda": 0.6e9, "mps": 0.6e9, "cpu": 0.6e9}
"""Bytes of a process before it holds a model: libraries, and a GPU's context."""
SAMPLED = {2: 14, 4: 12}
"""Bytes a logit while a token is drawn: as it is computed, in float32, its exponential, their running sum."""
BLOCK_8BIT = 256
"""Numbers that share a scale in an 8-bit moment."""
SMALLEST_8BIT = 4096
"""Numbers of a tensor whose moments are in 8 bits."""


class Part(NamedTuple):
    """What takes memory, in bytes."""

    name: str
    detail: str
    generation: float
    update: float
    checkpoint: float = 0.0
    """While one is written; counted where the device is the computer itself."""


@dataclass(frozen=True)
class Memory:
    """All that a device holds."""

    parts: tuple[Part, ...]
    device_memory: float
    margin: float
    """Part of it that must stay free."""

    @property
    def generation(self) -> float:
        """Bytes at its peak."""
        return sum(part.generation for part in self.parts)

    @property
    def update(self) -> float:
        """Bytes at its peak."""
        return sum(part.update for part in self.parts)

    @property
    def checkpoint(self) -> float:
        """Bytes while one is written; 0 where that does not take the device's memory."""
        return sum(part.checkpoint for part in self.parts)

    @property
    def phases(self) -> dict[str, float]:
        """Bytes at the peak of each phase that takes the device's memory."""
        found = {"generation": self.generation, "update": self.update, "checkpoint": self.checkpoint}
        return {phase: size for phase, size in found.items() if size}

    @property
    def peak(self) -> float:
        """Bytes of the largest phase."""
        return max(self.phases.values())

    @property
    def allowed(self) -> float:
        """Bytes that may be taken."""
        return self.device_memory * (1 - self.margin)

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.peak <= self.allowed


def optimizer_bytes(options: OptimizerOptions, parameters: Iterable[nn.Parameter]) -> float:
    """Of the optimizer's state after a step: two moments of each number, and each tensor's count of steps.

    In 8 bits each block of 256 numbers has a scale besides, and tensors of fewer than 4096 keep 32 bits. Paged moments
    are counted as if they stayed; they move to the computer's memory when the device is full.
    """
    total = 0.0
    for parameter in parameters:
        count = parameter.numel()
        if not isinstance(options, AdamW8bit):
            total += 2 * count * parameter.element_size() + 4
        elif count < SMALLEST_8BIT:
            total += 8 * count
        else:
            total += 2 * (count + 4 * -(-count // BLOCK_8BIT))
    return total


def memory_of(setting: Setting) -> Memory:
    """The estimate."""
    parts = [*_held(setting), *_generating(setting), *_updating(setting)]
    if setting.device == "cpu":
        parts = _on_cpu(parts, setting)
    return Memory(tuple(part for part in parts if max(part[2:])), setting.device_memory, setting.plan.margin)


def _on_cpu(parts: list[Part], setting: Setting) -> list[Part]:
    """With what the allocator does not give back between phases, and a checkpoint, which is put together in memory."""
    trainable = setting.outline.trainable
    weights = {id(p): p for part in (setting.outline.policy, setting.outline.critic) for p in _parameters(part)}
    written = optimizer_bytes(setting.experiment.optimizer, trainable)
    written += sum(p.numel() * p.element_size() for p in weights.values())
    after_generation = sum(part.generation - part.update for part in parts if part.generation > part.update)
    after_update = sum(part.update - part.generation for part in parts if part.update > part.generation)
    held = [part._replace(checkpoint=min(part.generation, part.update)) for part in parts]
    return [
        *held,
        Part("freed, not given back", "of earlier phases", 0.0, after_generation, after_generation + after_update),
        Part("checkpoint", "put together in memory", 0.0, 0.0, written),
    ]


def _held(setting: Setting) -> Iterable[Part]:
    """What both phases hold."""
    outline, layout = setting.outline, setting.layout
    options = setting.experiment.optimizer
    trainable = outline.trainable
    cut = layout.shards

    def always(name: str, detail: str, size: float, in_update: float | None = None) -> Part:
        return Part(name, detail, size, size if in_update is None else in_update)

    yield always("process", f"libraries, {setting.device} context", RUNTIME[setting.device])
    policy = bytes_of(outline.policy)
    yield always("policy weights", f"{_millions(outline.policy.parameters())} x {setting.held} B", policy / cut)
    yield always("critic weights", _millions(_parameters(outline.critic)), bytes_of(outline.critic) / cut)
    yield always("reference", f"frozen, {_millions(_parameters(outline.reference))}", bytes_of(outline.reference) / cut)
    for name, models in outline.reward_models.items():
        yield always("reward model", *_reward_model(setting, name, models))
    gradients = sum(p.numel() * p.element_size() for p in trainable)
    if layout.data_parallel > 1 and not layout.sharded:
        yield always("gradients", f"{_millions(trainable)} trained, in what DDP exchanges", gradients / cut)
    else:
        yield _update("gradients", f"{_millions(trainable)} trained", gradients / cut)
    moments = optimizer_bytes(options, trainable)
    paged = isinstance(options, AdamW8bit) and options.paged
    kind = "8-bit AdamW" if isinstance(options, AdamW8bit) else "AdamW"
    kind += ", paged: counted as if it stayed" if paged else ""
    yield always("optimizer state", kind, moments / cut)
    if layout.sharded and layout.data_parallel > 1:
        yield always("gathered layer", "largest layer, whole", _largest(outline.policy) / layout.tensor_parallel)
    if layout.shards > 1:
        width = setting.decoded if setting.decodes_itself else setting.held
        yield always("whole copy", f"gathered to generate, {width} B", policy * width / setting.held)
    if setting.copies_weights and (layout.shards == 1 or setting.experiment.rollout.lag > 0):
        numbers = sum(p.numel() for p in _plain(outline.policy))
        width = setting.decoded
        yield always("decoding copy", f"{numbers / 1e6:.1f} M x {width} B", numbers * width)
    vllm = setting.vllm
    if vllm is not None:
        size, detail = _vllm_share(setting)
        yield always("vLLM", detail, size, 0.0 if vllm.sleep and setting.device == "cuda" else size)


def _generating(setting: Setting) -> Iterable[Part]:
    """What generation holds besides; beside the update too where they go on at once."""
    if setting.vllm is not None or hasattr(setting.experiment.rollout, "server"):
        return
    model = setting.outline.policy
    beside = setting.experiment.rollout.lag > 0 and setting.decodes_itself

    def now(name: str, detail: str, size: float) -> Part:
        return Part(name, detail, size, size if beside else 0.0)

    width = setting.decoded if setting.decodes_itself else setting.held
    layer = layer_of(model, width, width)
    rows, prompts = setting.rows, -(-setting.rows // setting.rows_share)
    a_token = layer.kv_bytes(width)
    if setting.decodes_itself:
        # Prompts are held once more while lanes are arranged, and an own cache while one layer of it grows.
        tokens = 2 * prompts * setting.prompt_tokens + rows * setting.response_tokens
        shown = f"{rows} rows, {prompts} prompts"
    else:
        tokens = rows * (setting.prompt_tokens + setting.response_tokens)
        shown = f"{rows} rows with prompts of their own"
        if setting.mixed:
            yield now("weights in short", "autocast's copies", 2.0 * _linear_numbers(model))
    yield now("keys and values", shown, tokens * a_token)
    if setting.experiment.estimator.continues and setting.decodes_itself:
        group = setting.experiment.rollout.responses_per_prompt
        kept = setting.generated * (setting.response_tokens + setting.prompt_tokens / group)
        yield now("kept for continuations", f"{setting.generated} responses", kept * a_token)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    drawing = rows * vocabulary * SAMPLED[2 if width == 2 else 4]
    reading = prompts * setting.prompt_tokens * width * (4 * layer.hidden + 2 * layer.query + 3 * layer.intermediate)
    yield now("logits or prompt states", "the larger", max(drawing, reading))


def _updating(setting: Setting) -> Iterable[Part]:
    """What the update holds besides."""
    model, layout = setting.outline.policy, setting.layout
    responses = setting.microbatch_responses
    tokens = setting.tokens(responses)
    checkpointed = setting.experiment.policy.gradient_checkpointing
    layer = layer_of(model, setting.held, setting.computed)
    if setting.mixed:
        # Autocast's copies live as long as the pass: FSDP gathers anew, but the graph keeps what was cast.
        yield _update("weights in short", "autocast's copies", 2.0 * _linear_numbers(model) / layout.tensor_parallel)
    kept = activations(layer, tokens, checkpointed=checkpointed, tensor_parallel=layout.tensor_parallel)
    shown = f"{tokens} tokens x {kept / max(1, tokens) / 1e6:.2f} MB{', recomputed' if checkpointed else ''}"
    yield _update("activations", shown, kept)
    if setting.outline.own_critic:
        yield _update("critic activations", f"{tokens} tokens", kept)
        if setting.mixed:
            numbers = _linear_numbers(setting.outline.critic)
            yield _update("critic weights in short", "autocast's copies", 2.0 * numbers / layout.tensor_parallel)
    yield _update("logits and head", *_head_bytes(setting, responses * setting.response_tokens))


def _update(name: str, detail: str, size: float) -> Part:
    return Part(name, detail, 0.0, size)


def _head_bytes(setting: Setting, predicted: int) -> tuple[str, float]:
    """The chunk of logits in hand, states that predict, and the output layer's gradient before it is added."""
    weight = setting.outline.policy.get_output_embeddings().weight
    vocabulary, hidden = weight.shape
    states = predicted * hidden * (4 + setting.held + 2 * setting.computed)
    if setting.rectangles and not setting.outline.own_critic:
        logits = predicted * vocabulary * (setting.computed + 3 * 4)
        chunk = "all logits"
    else:
        at_once = LOGITS_AT_A_TIME.get(setting.device, LOGITS_AT_A_TIME["cpu"])
        forward = min(predicted, TOKENS_AT_A_TIME) * vocabulary * (setting.computed + 4)
        logits = max(min(at_once, predicted * vocabulary) * (4 + 4 + setting.computed), forward)
        chunk = "a chunk"
    in_short = vocabulary * hidden * 2 if setting.mixed else 0
    gradient = vocabulary * hidden * setting.held if weight.requires_grad else 0
    return chunk, states + logits + (in_short + gradient) / setting.layout.tensor_parallel


def _reward_model(setting: Setting, name: str, models: Sequence[nn.Module]) -> tuple[str, float]:
    """Whose weights and how many, and their bytes: a copy of each process, where the term's option puts it."""
    term = setting.experiment.reward_model[name]
    assert isinstance(term, Learned)
    kind, _, number = term.device.partition(":")
    if kind not in ("auto", setting.device):
        return "", 0.0
    copies = setting.layout.devices if number else 1
    numbers = _millions(parameter for model in models for parameter in model.parameters())
    shown = f"{name}, {numbers} in {term.dtype}{f', {copies} copies' if copies > 1 else ''}; passes not counted"
    return shown, copies * float(sum(map(bytes_of, models)))


def _vllm_share(setting: Setting) -> tuple[float, str]:
    """Bytes of vLLM's weights and cache, and how they come."""
    vllm = setting.vllm
    assert vllm is not None
    weights = sum(p.numel() for p in _plain(setting.outline.policy)) * setting.decoded
    gib = vllm.kv_cache_gib or (CPU_CACHE_GIB if setting.device != "cuda" else None)
    if gib is not None:
        return weights + gib * 2**30, f"weights and {gib:g} GiB cache"
    return vllm.gpu_memory_share * setting.device_memory, f"{vllm.gpu_memory_share:.0%} of the device"


def _plain(model: Any) -> list[nn.Parameter]:
    """The weights without adapters."""
    names = dict(base_model(model).named_parameters())
    return [parameter for name, parameter in names.items() if "lora_" not in name]


def _linear_numbers(module: Any) -> int:
    """Weights that products read, the output layer's left out."""
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear) and m is not head)


def _largest(model: Any) -> float:
    """Bytes of the largest layer's weights and gradients, or of the embeddings', which are gathered together."""
    base = base_model(model)
    layers = [bytes_of(layer) for layer in base.get_decoder().layers]
    embeddings = {id(e.weight): e.weight for e in (base.get_input_embeddings(), base.get_output_embeddings())}
    return 2.0 * max(*layers, sum(w.numel() * w.element_size() for w in embeddings.values()))


def _parameters(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())


def _millions(parameters: Iterable[nn.Parameter]) -> str:
    return f"{sum(parameter.numel() for parameter in parameters) / 1e6:.1f} M"
