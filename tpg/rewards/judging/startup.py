"""Whether a judge is there, asked before a run's folder is made."""

from collections.abc import Callable, Mapping

from tpg.errors import UserError
from tpg.rewards.judging.options import JudgeOptions


def check_endpoint(options: JudgeOptions, headers: Mapping[str, str], clean: Callable[[str], str], key: str) -> None:
    """Ask for the endpoint's models. Raises `UserError` unless it answers, takes the key and has the model."""
    import httpx2

    base, skip = options.base_url, f"{key}.check_at_start=false"
    try:
        response = httpx2.get(f"{base}/models", headers=headers, timeout=options.timeout_s)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise UserError(
            f"{key}.base_url={base}: no answer ({clean(str(error)) or type(error).__name__}); start the judge's server,"
            f" give another address, or {skip}"
        ) from None
    told = clean(response.text)
    if response.status_code in (401, 403):
        given = f"the key in {options.api_key_env}" if options.api_key_env else "requests without a key"
        raise UserError(
            f"{key}.api_key_env: {base} refuses {given} ({response.status_code}: {told}); name the variable that holds"
            " its key"
        )
    remedy = f"an address mostly ends with /v1; give another, or {skip}"
    if response.status_code != 200:
        raise UserError(f"{key}.base_url={base}: /models answers {response.status_code} ({told}); {remedy}")
    try:
        served = [str(model["id"]) for model in response.json()["data"]]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{key}.base_url={base}: /models gives no list of models ({told}); {remedy}") from None
    if options.model not in served:
        raise UserError(
            f"{key}.model={options.model}: {base} serves {', '.join(served[:10]) or 'none'}; name one, or {skip}"
        )
