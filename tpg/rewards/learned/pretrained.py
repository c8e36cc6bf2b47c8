"""Reward models as Hugging Face folders: what must be in one, and reading it. Weights are safetensors alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpg.errors import UserError, one_line
from tpg.rewards.learned.normalization import FILE
from tpg.spelling import did_you_mean

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model")


def local(path: str) -> Path | None:
    """The folder that is meant; None for a hub id."""
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else None


def check_folder(key: str, path: str, *, tokenizer: bool = True) -> None:
    """Raise `UserError` if a local folder is missing or holds no model that is read. Reads names alone."""
    folder = local(path)
    if folder is None:
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise UserError(f"{key}={path}: no such folder; give a local folder or a hub id (org/name)")
        return
    if not (folder / "config.json").is_file():
        raise UserError(f"{key}={path}: the folder holds no config.json, so it is no Hugging Face model")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{key}={path}: the folder holds no *.safetensors; pickled weights (*.bin, *.pt) can run code and are not"
            " loaded; where you trust them, load the model with use_safetensors=False and save it with save_pretrained"
        )
    if tokenizer and not any(any(folder.glob(name)) for name in TOKENIZERS):
        raise UserError(
            f"{key}={path}: the folder holds no tokenizer; put it beside the weights with"
            f" tokenizer.save_pretrained({path!r})"
        )


def read_config(key: str, folder: Path) -> dict[str, Any]:
    """A local folder's `config.json`."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{key}={folder}: config.json cannot be read: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"{key}={folder}: config.json is not what describes a model")
    return config


def labels(config: Mapping[str, Any]) -> dict[int, str]:
    """The labels of a classifier by number, as its config has them; transformers leaves out what it assumes: two."""
    if config.get("id2label"):
        return {int(number): str(name) for number, name in config["id2label"].items()}
    return {number: f"LABEL_{number}" for number in range(int(config.get("num_labels") or 2))}


def label_number(key: str, label: str | int | None, labels: Mapping[int, str]) -> int | None:
    """The number of the label that is asked for; None where one logit is the reward."""
    offered = ", ".join(f"{name!r} ({number})" for number, name in sorted(labels.items()))
    if len(labels) == 1:
        if label is not None:
            raise UserError(f"{key}.label={label}: the model has one logit, which is the reward; leave label out")
        return None
    if label is None:
        raise UserError(f"{key}.label: the model has {len(labels)} labels; name one of {offered}")
    if isinstance(label, int):
        if label not in labels:
            raise UserError(f"{key}.label={label}: the model's labels are {offered}")
        return label
    found = [number for number, name in labels.items() if name == label]
    if not found:
        hint = did_you_mean(label, labels.values())
        raise UserError(f"{key}.label={label}: the model's labels are {offered}{hint}")
    return found[0]


def check_one_label(key: str, path: str, count: int) -> None:
    """Raise `UserError` unless a token-level head has one label."""
    if count != 1:
        raise UserError(f"{key}={path}: the model gives each token {count} labels; a token-level reward is one number")


def load_tokenizer(key: str, path: str, revision: str | None) -> Any:
    """The tokenizer of a model."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(_place(path), revision=revision, trust_remote_code=False)
    except Exception as error:  # tokenizers raise what they like
        raise UserError(f"{key}={path}: no tokenizer can be read: {one_line(error)}") from error
    return tokenizer


def load_model(key: str, path: str, revision: str | None, auto: str, dtype: str) -> Any:
    """The model as transformers' class `auto` reads it: frozen, for inference, on the CPU.

    Raises `UserError` where the folder or the hub does not give it, and where its weights lack some of its parts, which
    transformers would fill with random numbers.
    """
    import transformers
    from safetensors import SafetensorError

    try:
        model, found = getattr(transformers, auto).from_pretrained(
            _place(path),
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{key}={path}: {one_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{key}={path}: the weights lack {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}, so this is no"
            f" trained {type(model).__name__}"
        )
    return model.eval().requires_grad_(False)


def outlined(key: str, path: str, revision: str | None, auto: str, dtype: str) -> Any:
    """The model on the meta device, made from its config alone. Raises `UserError` where that is not to be had."""
    import torch
    import transformers

    check_folder(key, path, tokenizer=False)
    try:
        config = transformers.AutoConfig.from_pretrained(_place(path), revision=revision, trust_remote_code=False)
        with torch.device("meta"):
            return getattr(transformers, auto).from_config(config, dtype=getattr(torch, dtype))
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{key}={path}: {one_line(error)}") from error


def check_vocabulary(key: str, path: str, tokenizer: Any, model: Any) -> None:
    """Raise `UserError` if the tokenizer has tokens that the model does not know."""
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise UserError(
            f"{key}={path}: the tokenizer has {len(tokenizer)} tokens and the model {known}; they do not belong"
            " together"
        )


def longest(tokenizer: Any, model: Any, asked: int | None) -> int | None:
    """How many tokens a conversation may have: what is asked for, what the tokenizer says and what positions allow."""
    from torch import nn

    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for module in model.modules():
        # RoBERTa counts positions from behind the padding's.
        if isinstance(module, nn.Embedding) and module.num_embeddings == positions and module.padding_idx is not None:
            positions -= module.padding_idx + 1
            break
    declared = tokenizer.model_max_length  # 1e30 where nobody has said
    limits = [asked, positions, int(declared) if declared and declared < 10**9 else None]
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)


def statistics(path: str, revision: str | None) -> Path | None:
    """The file of reference statistics that a model comes with."""
    if (folder := local(path)) is not None:
        return folder / FILE
    from transformers.utils import cached_file

    try:
        found = cached_file(path, FILE, revision=revision)
    except OSError:
        return None
    return None if found is None else Path(found)


def _place(path: str) -> str:
    """A folder where there is one, else the hub id."""
    return str(local(path) or path)
