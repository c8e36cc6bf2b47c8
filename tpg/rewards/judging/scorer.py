"""What the scorers of judges have in common."""

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from tpg.errors import with_kind
from tpg.rewards.base import Failure, Sample, Scorer, Told
from tpg.rewards.judging.endpoint import Endpoint
from tpg.rewards.judging.options import JudgeOptions

Options = TypeVar("Options", bound=JudgeOptions)


class EndpointScorer(Scorer, Generic[Options]):
    """Asks an endpoint about responses."""

    def __init__(self, options: Options, key: str) -> None:
        self._options = options
        self._endpoint = Endpoint(options, options.verdict(), key)

    def ask(self, sample: Sample, responses: Mapping[str, str]) -> "Future[Any] | Failure":
        """Begin to ask about responses to a sample's prompt, by their names in the rubric."""
        try:
            messages = self._options.messages(sample, dict(responses), self._options.form())
        except (LookupError, TypeError) as error:
            return Failure("raised", with_kind(error))
        return self._endpoint.ask(messages)

    def metrics(self) -> dict[str, Told]:
        """See `Endpoint.metrics`."""
        return self._endpoint.metrics()

    def close(self) -> None:
        """Give up what is under way."""
        self._endpoint.close()
