"""Any causal language model of the Hugging Face hub or of a local folder."""

from pathlib import Path
from typing import Any

from tpg.component import component
from tpg.errors import UserError, one_line
from tpg.policies.base import PolicyOptions


@component
class HuggingFace(PolicyOptions):
    """A causal language model by hub id or local folder; safetensors only."""

    path: str
    revision: str | None = None
    trust_remote_code: bool = False

    def check(self) -> None:
        """Raise `UserError` if a local folder is missing or holds no model."""
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            if self.path.startswith((".", "/", "~")) or self.path.count("/") > 1:
                raise UserError(f"policy.path={self.path}: no such folder; give a local folder or a hub id (org/name)")
            return
        if not (folder / "config.json").is_file():
            raise UserError(f"policy.path={self.path}: the folder holds no config.json, so it is no Hugging Face model")
        if not any(folder.glob("*.safetensors")):
            raise UserError(
                f"policy.path={self.path}: the folder holds no *.safetensors; pickled weights (*.bin, *.pt) can run"
                " code and are not loaded; where you trust them, convert them: AutoModelForCausalLM.from_pretrained("
                f"'{self.path}', use_safetensors=False).save_pretrained('{self.path}')"
            )

    def load_model_and_tokenizer(self, seed: int) -> tuple[Any, Any]:
        """Read both. Raises `UserError` in one line when the hub or the folder does not give them."""
        return load_pretrained(self.path, self, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def outlined_model(self) -> Any:
        """From its config alone. Raises `UserError` in one line when the hub or the folder does not give it."""
        return outlined(self.path, self, revision=self.revision, trust_remote_code=self.trust_remote_code)


def outlined(path: str | Path, options: PolicyOptions, **kwargs: Any) -> Any:
    """A causal language model from its config alone, held as `options` say; no weights are read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(_place(path), **kwargs)
        return AutoModelForCausalLM.from_config(
            config,
            dtype=options.dtype,
            attn_implementation=options.attention,
            trust_remote_code=kwargs.get("trust_remote_code", False),
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"policy.path={path}: {one_line(error)}") from error


def load_pretrained(path: str | Path, options: PolicyOptions, **kwargs: Any) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, held as `options` say."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = _place(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **kwargs)
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=options.dtype, attn_implementation=options.attention, use_safetensors=True, **kwargs
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"policy.path={path}: {one_line(error)}") from error
    return model, tokenizer


def _place(path: str | Path) -> str:
    """A folder where there is one, else the hub id."""
    place = Path(path).expanduser()
    return str(place if place.is_dir() else path)
