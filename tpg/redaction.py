"""What looks like a secret: keys, tokens and addresses with a password. They belong in the environment."""

import os
import re
from collections.abc import Iterator

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
VARIABLE = re.compile(r"(.*_)?(KEY|TOKEN|PASS|PAT|AUTH)")
"""Names of environment variables that hold secrets, beside those that `KEY` knows."""
ENVIRONMENT = re.compile(r"""oc\.env:[\s\\'"]*(\w+)""")
REFERENCE = re.compile(r"\$\{[\w.:,]*\}")
"""A reference that holds no words of its own."""
SHORTEST = 8
"""Characters of a value of the environment that is looked for in texts."""
STAR = "***"


def looks_secret(key: str) -> bool:
    """Whether a config's key or an environment variable of this name holds a secret; a dotted key's last part tells."""
    return KEY.fullmatch(key.rpartition(".")[2]) is not None


def is_reference(value: str) -> bool:
    """Whether a value names where the secret is, as `${oc.env:NAME}` does."""
    return "${" in value


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return looks_secret(name) or VARIABLE.fullmatch(name) is not None


def names_secret(text: str) -> bool:
    """Whether a reference takes its value from an environment variable that holds a secret."""
    return any(map(is_secret_variable, ENVIRONMENT.findall(text)))


def known_secrets(text: str, config: object) -> set[str]:
    """What the environment holds under names of secrets, and what a resolved config holds under such keys.

    `text` is the config as written; a value of a variable that it names counts however short it is.
    """
    named = set(ENVIRONMENT.findall(text))
    held = {value for name, value in os.environ.items() if is_secret_variable(name) and _counts(value, name in named)}
    return held | set(_under_secret_keys("", config)) - {""}


def _counts(value: str, named: bool) -> bool:
    return len(value) >= (1 if named else SHORTEST)


def _under_secret_keys(key: str, node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _under_secret_keys(str(name), child)
    elif isinstance(node, list):
        for child in node:
            yield from _under_secret_keys(key, child)
    elif isinstance(node, str) and looks_secret(key):
        yield node


def tells_secret(key: str, value: object, secrets: set[str]) -> bool:
    """Whether a resolved value is or holds one of the secrets, or what looks like one."""
    if isinstance(value, dict):
        return any(tells_secret(str(name), child, secrets) for name, child in value.items())
    if isinstance(value, list):
        return any(tells_secret(key, child, secrets) for child in value)
    if value is None or value == "":
        return False
    text = str(value)
    hidden = looks_secret(key) or VALUE.search(text) or ADDRESS.search(text)
    return bool(hidden) or any(secret in text for secret in secrets)


def refuse_literal(key: str, value: object, in_list: bool = False) -> None:
    """Raise `UserError` if a config's value is or holds a secret in plain text. It is not repeated."""
    if isinstance(value, dict):
        for name, child in value.items():
            refuse_literal(f"{key}.{name}", child, in_list)
    if isinstance(value, list):
        for child in value:
            refuse_literal(key, child, in_list=True)
    if isinstance(value, dict | list) or value is None or value in ("", "null", "???"):
        return
    text = str(value)
    what = None
    if ADDRESS.search(REFERENCE.sub("", text)):
        what = "an address with a password"
    elif VALUE.search(text) or (looks_secret(key) and isinstance(value, str) and not is_reference(value)):
        what = "a secret"
    if what:
        name = re.sub(r"\W+", "_", key).upper()
        reference = f"'${{oc.env:{name}}}'"
        alone = not in_list and text[0] not in "[{"
        raise UserError(
            f"{key}: holds {what}, which would be written to the run's folder and sent to its loggers; put it in the"
            f" environment as {name} and name it: {f'{key}={reference}' if alone else f'{reference} in its place'}"
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
        if is_secret_variable(name) and len(value) >= SHORTEST:
            text = text.replace(value, STAR)
    text = VALUE.sub(STAR, text)
    text = ADDRESS.sub(rf"\g<before>{STAR}", text)
    return GIVEN.sub(_starred, text)


def _starred(given: re.Match[str]) -> str:
    hides = given["key"].isupper() and looks_secret(given["key"]) and not is_reference(given["value"])
    called = "(" in given["value"] or "[" in given["value"]  # where code takes it from
    return f"{given['key']}{given['sign']}{STAR}" if hides and not called else given[0]
