"""What looks like a secret: keys, tokens and addresses with a password. They belong in the environment."""

import os
import re

from tpg.errors import UserError

KEY = re.compile(
    r"(.*[_.-])?((api|access|private|secret)_?key|secret|password|passwd|passphrase|credentials?)"
    r"|(.*[_.-])?(hf|hub|auth|access|api|bearer|refresh|session|wandb|github)_?token|token",
    flags=re.IGNORECASE,
)
VALUE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16})"
)
"""Tokens of Hugging Face, OpenAI and Anthropic, GitHub, GitLab, Slack and AWS."""
ADDRESS = re.compile(r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*:)(?P<password>[^\s/@]+)(?=@)")
GIVEN = re.compile(r"""(?P<key>[A-Za-z_][\w.]*)(?P<sign>\s*[=:]\s*["'\\]*)(?P<value>[^\s"',}\]]+)""")
"""A key and its value, in an override or in a line of code."""
SHORTEST = 8
"""Characters of a value of the environment that is looked for in texts."""
STAR = "***"


def looks_secret(key: str) -> bool:
    """Whether a config's key or an environment variable of this name holds a secret; a dotted key's last part tells."""
    return KEY.fullmatch(key.rpartition(".")[2]) is not None


def is_reference(value: str) -> bool:
    """Whether a value names where the secret is, as `${oc.env:NAME}` does."""
    return "${" in value


def refuse_literal(key: str, value: object) -> None:
    """Raise `UserError` if a config's value is a secret in plain text. It is not repeated."""
    if value is None or value in ("", "null", "???"):
        return
    if isinstance(value, str) and is_reference(value):
        return
    text = str(value)
    what = None
    if ADDRESS.search(text):
        what = "an address with a password"
    elif VALUE.search(text) or (looks_secret(key) and isinstance(value, str)):
        what = "a secret"
    if what:
        name = re.sub(r"\W", "_", key.rpartition(".")[2]).upper()
        raise UserError(
            f"{key}: holds {what}, which would be written to the run's folder and sent to its loggers; put it in the"
            f" environment and name it: {key}='${{oc.env:{name}}}'"
        )


def refuse_in_words(words: list[str]) -> None:
    """Raise `UserError` for a secret in plain text on the command line, before anything writes the command down."""
    for word in words:
        key, equals, value = word.lstrip("+~").partition("=")
        value = value.strip("\"'\\")
        if equals:
            refuse_literal(key, value)
        for given in GIVEN.finditer(value) if value.startswith("{") else ():
            if looks_secret(given["key"]):
                refuse_literal(f"{key}.{given['key']}", given["value"])


def redacted(text: str) -> str:
    """The text with stars for tokens, passwords in addresses, and what the environment holds under a secret's name.

    A capital name of a secret, as in `API_KEY=...`, has its value starred too.
    """
    for name, value in os.environ.items():
        if looks_secret(name) and len(value) >= SHORTEST:
            text = text.replace(value, STAR)
    text = VALUE.sub(STAR, text)
    text = ADDRESS.sub(rf"\g<before>{STAR}", text)
    return GIVEN.sub(_starred, text)


def _starred(given: re.Match[str]) -> str:
    hides = given["key"].isupper() and looks_secret(given["key"]) and not is_reference(given["value"])
    called = "(" in given["value"] or "[" in given["value"]  # where code takes it from
    return f"{given['key']}{given['sign']}{STAR}" if hides and not called else given[0]
