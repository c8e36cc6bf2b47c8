"""What an experiment is warned of before it begins."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tpg.policies.critic import NoCritic
from tpg.training.curriculum.base import NoCurriculum

if TYPE_CHECKING:
    from tpg.training.experiment import Experiment


def warnings(experiment: "Experiment") -> Iterator[str]:
    """What is allowed and may yet surprise, a line each."""
    parts = (experiment.combination, experiment.curriculum, experiment.estimator, experiment.objective)
    combination, curriculum, estimator, objective = (type(part).__name__ for part in parts)
    rollout = experiment.rollout
    if experiment.combination.min_group > 1:
        yield (
            f"combination: with {combination} a response's reward depends on the others to its prompt, so that the"
            " gradient is not that of the expected sum of the terms but of another objective"
        )
        if not isinstance(experiment.curriculum, NoCurriculum):
            yield (
                f"curriculum: {curriculum} tells by rewards what is solved, and combination {combination} makes them"
                " relative to the others to a prompt"
            )
    if not (experiment.estimator.needs_critic or isinstance(experiment.critic, NoCritic)):
        yield (
            f"critic: estimator {estimator} reads no critic, so that there is none; use estimator=gae, or critic=none"
        )
    steps = experiment.update.steps(rollout.prompts * rollout.responses_per_prompt)
    if steps > 1 and not experiment.objective.off_policy:
        yield (
            f"{steps} optimizer steps an iteration, but objective {objective} corrects for none: all but the first are"
            " off-policy; objective=ppo_clip corrects"
        )
    if rollout.sampling.truncates:
        yield (
            "rollout.top_k, top_p or min_p cut the policy's distribution: responses are no samples of the policy"
            " whose gradient is taken, which biases it"
        )
    yield from experiment.curriculum.warnings(experiment.method)
    yield from precision_warnings(experiment)


def precision_warnings(experiment: "Experiment") -> Iterator[str]:
    """Whether rollout and update will compute in different precisions; not known before one is chosen."""
    precision = experiment.trainer.precision
    decodes = None if precision == "auto" else experiment.rollout.other_precision(precision)
    if decodes and not experiment.mismatch.corrects:
        yield (
            f"the rollout decodes in {decodes}, the update computes in {precision}: their log-probabilities differ"
            " (sampling/sampling_logp_difference), which mismatch=sequence_truncate corrects"
        )
