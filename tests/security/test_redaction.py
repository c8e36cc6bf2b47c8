"""Secrets stay out of configs, folders and loggers."""

import json
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import tpg.train
from tpg.composition import resolved, storable
from tpg.errors import UserError
from tpg.jobs.configs import experiment_of, own_config
from tpg.redaction import looks_secret, redacted, refuse_in_words
from tpg.training.tracking.session import record_environment

CONF = Path(__file__).parents[2] / "conf"
HF, OPENAI, GITHUB = "hf_" + "a1B2" * 8, "sk-proj-" + "a1B2" * 8, "ghp_" + "a1B2" * 9


def test_which_keys_look_secret():
    secret = ["api_key", "openai_api_key", "WANDB_API_KEY", "HF_TOKEN", "a.b.token", "x.password", "client_secret"]
    secret += ["auth_token", "OPENAI_APIKEY", "AWS_SECRET_ACCESS_KEY", "credentials"]
    plain = ["tokens", "max_response_tokens", "pad_token", "eos_token", "token_ids", "tokens_per_microbatch", "key"]
    plain += ["keyword", "secretary", "passwords_file", "task.key"]
    assert [looks_secret(key) for key in secret] == [True] * len(secret)
    assert [looks_secret(key) for key in plain] == [False] * len(plain)


def test_no_shipped_key_looks_secret():
    for file in CONF.rglob("*.yaml"):
        found = [OmegaConf.to_container(OmegaConf.load(file))]
        while found:
            node = found.pop()
            if isinstance(node, dict):
                assert not [key for key in node if looks_secret(str(key))], file
                found += node.values()


def test_a_text_loses_its_secrets_and_nothing_else(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MY_PASSWORD", "short")
    told = f"+key=0123456789abcdef {HF} {OPENAI} https://me:pass@host/a?b OPENAI_API_KEY='abc' short"
    assert redacted(told) == "+key=*** *** *** https://me:***@host/a?b OPENAI_API_KEY='***' short"
    code = (
        "+    token = tokenizer.decode(ids)\n-pad_token: str = '</s>'\n+API_KEY = os.environ['API_KEY']\n"
        "+see https://host:8080/path and a@b.c, rollout.max_response_tokens=16 logger.x.api_key=${oc.env:API_KEY}\n"
    )
    assert redacted(code) == code


REFUSED = {
    "+callbacks.x.api_key=abc": "callbacks.x.api_key: holds a secret, ...'${oc.env:CALLBACKS_X_API_KEY}'",
    "+callbacks.x={api_key: abc}": "callbacks.x.api_key: holds a secret, ...",
    f"task.system_prompt={HF}": "task.system_prompt: holds a secret, ...",
    f"logger.wandb.tags=[a,{GITHUB}]": "logger.wandb.tags: holds a secret, ...:LOGGER_WANDB_TAGS}' in its place",
    "policy.path=https://me:pass@host/a": "policy.path: holds an address with a password, ...${oc.env:POLICY_PATH}'",
    "policy.path='https://me:pass@${oc.env:HOST}'": "policy.path: holds an address with a password, ...",
}


@pytest.mark.parametrize("override", [*REFUSED], ids=range(len(REFUSED)))
def test_a_secret_in_plain_text_is_refused_before_anything_is_written(entry, tmp_path, override):
    multirun = entry(tpg.train, "-m", "seed=1,2", f"run_dir={tmp_path}/runs", override)
    for code, out, err in (entry(tpg.train, f"run_dir={tmp_path}/run", override), multirun):
        assert (code, out, len(err)) == (2, "", 1)
        start, _, end = REFUSED[override].partition("...")
        assert err[0].startswith(f"error: {start}")
        assert err[0].endswith(end)
        assert not any(secret in err[0] for secret in (HF, GITHUB, "abc", "pass@"))
    assert not list(tmp_path.iterdir())


def test_a_secret_in_a_config_file_is_refused():
    config = OmegaConf.create({"logger": {"mine": {"password": "abc", "user": "me"}}})
    with pytest.raises(UserError, match=r"^logger\.mine\.password: holds a secret") as told:
        resolved(config)
    assert "abc" not in str(told.value)


def test_patterns_and_templates_that_speak_of_secrets_are_no_secrets():
    refuse_in_words(["reward_model.regex.pattern='token: (.*)'", "task.system_prompt='password: guess it'", "-m"])
    refuse_in_words(["+x.api_key=${oc.env:A}", "+x.token=null", "logger.mlflow.tracking_uri=http://host:5000"])


def test_a_named_secret_stays_a_name_until_it_is_used(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MY_NAME", "me")
    given = {
        "x": {"api_key": "${oc.env:MY_API_KEY}", "user": "${oc.env:MY_NAME}", "header": "Bearer ${x.api_key}"},
        "y": "${oc.env:MY_API_KEY}",
        "n": "${m}",
        "m": 3,
    }
    stored = storable(OmegaConf.create(given))
    assert stored == {"x": {**given["x"], "user": "me"}, "y": given["y"], "n": 3, "m": 3}
    assert resolved(OmegaConf.create(stored)) == {
        "x": {"api_key": "0123456789abcdef", "user": "me", "header": "Bearer 0123456789abcdef"},
        "y": "0123456789abcdef",
        "n": 3,
        "m": 3,
    }


def test_a_secret_stays_a_name_in_lists_and_under_other_names(monkeypatch):
    monkeypatch.setenv("MINE_KEY", "0123456789abcdef")
    monkeypatch.setenv("PLACE", "https://me:pass@host")
    monkeypatch.setenv("SOME", "word")
    given = {
        "headers": ["Bearer ${oc.env:MINE_KEY}", "${oc.env:SOME}", {"more": ["${x.api_key}"]}],
        "x": {"api_key": "${oc.env:OTHER,short}", "name": "${oc.env:SOME}"},
        "y": "${x}",
        "z": "${headers}",
        "w": "${y.api_key} ${oc.env:SOME}",
        "place": "${oc.env:PLACE}",
        "same": ["${place}"],
        "nested": "${oc.env:${oc.env:NAME_OF,MINE_KEY}}",
        "plain": "${n}",
        "n": {"a": "${oc.env:SOME}", "b": [1]},
    }
    stored = storable(OmegaConf.create(given))
    told = {"headers": [given["headers"][0], "word", given["headers"][2]], "x": {**given["x"], "name": "word"}}
    assert stored == {**given, **told, "plain": {"a": "word", "b": [1]}, "n": {"a": "word", "b": [1]}}
    assert resolved(OmegaConf.create(stored)) == resolved(OmegaConf.create(given))


def test_secrets_in_plain_text_are_refused_in_lists_and_beside_references():
    nested = {"a": [1, {"b": ["x", {"password": "abc"}]}]}
    with pytest.raises(UserError, match=r"^a\.b\.password: holds a secret.*'\${oc.env:A_B_PASSWORD}' in its place$"):
        resolved(OmegaConf.create(nested))
    with pytest.raises(UserError, match=r"^a: holds a secret"):
        resolved(OmegaConf.create({"a": f"${{oc.env:X,{HF}}}"}))
    allowed = ["https://me:${oc.env:PASSWORD,x}@host", f"${{oc.env:X,none}} {HF[:8]}"]
    assert resolved(OmegaConf.create({"a": allowed}))["a"] == ["https://me:x@host", f"none {HF[:8]}"]


def remedy_of(line):
    """The key and the reference that a message says to use."""
    return line.rpartition("and name it: ")[2].replace("'", "").split("=")


@pytest.mark.parametrize("key", ["logger.mlflow.tracking_uri", "policy.path"])
def test_the_remedy_for_an_address_with_a_password_works(entry, tmp_path, monkeypatch, key):
    value, given = "https://me:pass@host/a", ["logger=[mlflow]", "policy=huggingface", "policy.path=a/b"]
    seen = []

    def keep(config):
        stored = own_config(config)
        text = OmegaConf.to_yaml(OmegaConf.create(stored))
        seen.append((text, experiment_of(OmegaConf.to_container(OmegaConf.create(text)))))
        return 0.0

    monkeypatch.setattr(tpg.train, "train", keep)
    _, _, (line,) = entry(tpg.train, *given, f"{key}={value}")
    name, reference = remedy_of(line)
    variable = key.replace(".", "_").upper()
    assert (name, reference) == (key, f"${{oc.env:{variable}}}")
    monkeypatch.setenv(variable, value)
    assert entry(tpg.train, *given, f"{key}={reference}") == (0, "", [])
    ((text, experiment),) = seen
    assert f"{key.split('.')[-1]}: {reference}\n" in text
    assert "pass@" not in text
    built = experiment.logger["mlflow"].tracking_uri if "logger" in key else experiment.policy.path
    assert built == value


def test_a_run_stores_the_name_and_not_the_secret(entry, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Mine(Callback):\n"
        "    def __init__(self, api_key, headers):\n"
        "        assert [api_key, *headers] == ['a-very-secret-key', 'Bearer a-very-secret-key']\n"
    )
    monkeypatch.setenv("MINE_KEY", "a-very-secret-key")
    small = ["debug=fast", "iterations=1", "task=sort", "task.train_size=16", "reward_model=[sorted_digits]"]
    small += ["trainer=cpu", "reward_workers=1", "policy.hidden_size=32", "policy.layers=2", "evaluation.every=0"]
    own = "+callbacks.mine={_target_: mine.Mine, api_key: '${oc.env:MINE_KEY}', headers: ['Bearer ${oc.env:MINE_KEY}']}"
    code, _, err = entry(tpg.train, *small, f"run_dir={tmp_path}/run", own)
    assert (code, err) == (0, [])
    assert "api_key: ${oc.env:MINE_KEY}" in (tmp_path / "run" / "config.yaml").read_text()
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file():
            assert b"a-very-secret-key" not in file.read_bytes(), file


def test_the_record_of_a_start_has_no_secret(tmp_path, monkeypatch):
    repository = tmp_path / "code"
    repository.mkdir()
    monkeypatch.chdir(repository)
    (repository / "a.py").write_text("x = 1\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    (repository / "a.py").write_text(f"x = '{HF}'\nurl = 'https://me:pass@host'\n")
    monkeypatch.setattr("sys.argv", ["train", "+x.y=0123456789abcdef"])
    monkeypatch.setenv("MY_TOKEN_OLD", "0123456789abcdef")
    monkeypatch.setenv("HF_TOKEN", "0123456789abcdef")
    (tmp_path / "run").mkdir()
    record_environment(tmp_path / "run", 0)
    (started,) = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert started["command"] == ["train", "+x.y=***"]
    diff = (tmp_path / "run" / "code.diff").read_text()
    assert "+x = '***'\n+url = 'https://me:***@host'\n" in diff


def test_a_mistake_in_a_secret_value_does_not_repeat_it():
    from pydantic import ValidationError

    from tpg.component import component
    from tpg.composition import _complaint

    @component
    class Own:
        api_key: int

    with pytest.raises(ValidationError) as told:
        Own(api_key="abc")
    assert _complaint(told.value, "x", Own).startswith("x.api_key=***: ")


def test_a_mistake_in_an_address_with_a_password_does_not_repeat_it(entry, tmp_path, monkeypatch):
    monkeypatch.setenv("PORT", "https://me:pass@host")
    code, _, err = entry(tpg.train, "iterations='${oc.env:PORT}'", f"run_dir={tmp_path}/run")
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith("error: iterations=https://me:***@host: ")
