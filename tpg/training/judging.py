"""One policy on one task's held-out prompts: what `tpg.evaluate` runs."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pydantic import Field
from rich.console import Console

from tpg.component import component
from tpg.errors import UserError
from tpg.policies.base import PolicyOptions
from tpg.randomness import Purpose, torch_seed
from tpg.rewards.base import Term
from tpg.rewards.combination import Combination, WeightedSum
from tpg.rewards.model import RewardModel, check_terms, load_scorers
from tpg.rollouts.engine import RolloutOptions
from tpg.tasks.base import Task
from tpg.tasks.rendering import render_prompts
from tpg.training.agreement import agreement
from tpg.training.best_of_n import Answered, complete, curve
from tpg.training.evaluation import EvaluationResult, Evaluator
from tpg.training.judging_report import Judgement, print_judgement, write_report
from tpg.training.options import Evaluation
from tpg.training.preparation import quiet_libraries
from tpg.training.prompts import PromptStream
from tpg.training.trainer import TrainerOptions


@component
class EvaluationRun:
    """Everything that `tpg.evaluate` runs on."""

    policy: PolicyOptions
    task: Task
    reward_model: dict[str, Term] = Field(default_factory=dict)
    combination: Combination = Field(default_factory=WeightedSum)
    against: dict[str, Term] | None = None
    """The terms whose weighted sum is the truth that the reward is compared with; None: it is not compared."""
    against_success_reward: float = 1.0
    """A response whose truth reaches this is right."""
    best_of_n: int | None = Field(default=None, ge=1)
    """The answer to a prompt is that one of so many responses which the reward ranks highest; None: each is one."""
    rollout: RolloutOptions
    evaluation: Evaluation
    trainer: TrainerOptions
    seed: int = Field(ge=0, lt=2**62)
    samples: int = Field(ge=0)
    """Answers to show."""
    report: str | None = None
    """A JSON file to write what is found to, with a picture beside it."""
    reward_workers: int = Field(ge=1)
    reward_memory_gb: float | None = Field(default=None, gt=0)

    def check(self) -> list[str]:
        """Raise `UserError` for what is missing or cannot go together; there is nothing to warn of."""
        if not self.reward_model:
            compared = f", and against=[{','.join(self.against)}] compares it" if self.against else ""
            raise UserError(
                f"reward_model is empty{compared}; name one or more terms, e.g. reward_model=[exact_answer]"
            )
        self._check_against()
        if self.best_of_n is not None and self.best_of_n > 1 and self.evaluation.temperature == 0:
            raise UserError(
                f"best_of_n={self.best_of_n}: with evaluation.temperature=0 all responses to a prompt are the same;"
                " give a temperature above 0"
            )
        self._check_report()
        self.combination.check(self.reward_model)
        check_terms(self.reward_model, self.task.columns())
        check_terms(self.against or {}, self.task.columns(), "against")
        self.task.check()
        self.policy.check()
        self.rollout.check()
        self.trainer.check()
        return []

    @property
    def options(self) -> Evaluation:
        """How prompts are answered: with as many responses as the best is to be chosen from, or more."""
        wanted = max(self.evaluation.responses_per_prompt, self.best_of_n or 1)
        return replace(self.evaluation, responses_per_prompt=wanted)

    def _check_against(self) -> None:
        for name, term in (self.against or {}).items():
            same = next((other for other, own in self.reward_model.items() if own == term), None)
            if same is not None:
                own = "reward_model" if same == name else f"reward_model.{same}"
                raise UserError(
                    f"against.{name}: {own} has the same term, which always agrees with itself; name another"
                )

    def _check_report(self) -> None:
        if self.report is None:
            return
        path = Path(self.report)
        if path.suffix != ".json":
            raise UserError(f"report={path}: should be a file that ends in .json; the picture is written beside it")
        for file in (path, path.with_suffix(".png")):
            if file.exists():
                raise UserError(f"report={path}: {file} is there already; name another file")


def judge(run: EvaluationRun) -> float:
    """Evaluate, print what is found; returns the answers' mean reward, their mean truth if there is one."""
    quiet_libraries()
    console = Console()
    policy = run.policy.load(torch_seed(run.seed, Purpose.INITIALIZATION))
    task, limit = run.task, run.rollout.max_prompt_tokens
    examples = task.load(run.seed)
    held_out = render_prompts(task, examples.evaluation, policy.tokenizer, limit, task.overlong_prompts)
    for note in examples.notes:
        console.print(f"note: {note}", highlight=False)
    trainer_options, note = run.trainer.on_this_machine(policy)
    if note:
        console.print(f"note: {note}", highlight=False)
    trainer = trainer_options.build(1, None, [], [], [])
    device = trainer.strategy.root_device
    policy.to(device)
    engine = run.rollout.build(policy)
    if engine.note:
        console.print(f"note: {engine.note}", highlight=False)
    count = run.options.responses_per_prompt
    with ExitStack() as stack:
        workers = run.reward_workers, run.reward_memory_gb
        reward_model = stack.enter_context(RewardModel(run.reward_model, *workers, run.combination))
        reward_model.to(str(device))
        against = None
        if run.against:
            scorers = load_scorers(run.against, "against")
            against = stack.enter_context(RewardModel(run.against, *workers, scorers=scorers))
        stack.enter_context(engine)
        stack.enter_context(trainer.precision_plugin.forward_context())
        stack.enter_context(console.status(f"{len(held_out.token_ids)} prompts x {count} responses"))
        result = Evaluator(run.options, engine, PromptStream(held_out, run.seed), reward_model).evaluate()
        _refuse_unscored("reward_model", result.rewards, result.first_failure)
        truths = [math.nan] * len(result.samples)
        if against is not None:
            against.to(str(device))
            judged = against.score(result.samples)
            truths = judged.total
            result.estimates.update({f"against/rewards/{name}": value for name, value in judged.metrics.items()})
            _refuse_unscored("against", truths, judged.first_failure)
    judgement = _judged(run, result, truths)
    print_judgement(judgement, run.samples, console)
    if run.report is not None:
        files = write_report(Path(run.report), judgement)
        console.print(f"written: {', '.join(map(str, files))}", highlight=False, soft_wrap=True)
    if judgement.curve:
        best = judgement.curve[-1]
        return best.truth if run.against else best.reward
    return judgement.estimates["against/reward" if run.against else "reward"]


def _refuse_unscored(key: str, rewards: Sequence[float], first_failure: dict[str, str]) -> None:
    if all(map(math.isnan, rewards)):
        causes = "; ".join(f"{term}: {cause}" for term, cause in first_failure.items())
        raise UserError(f"{key}: none of {len(rewards)} responses was scored: {causes}")


def _judged(run: EvaluationRun, result: EvaluationResult, truths: Sequence[float]) -> Judgement:
    """Put together what is known of the responses."""
    count = run.options.responses_per_prompt
    answered = [Answered(*pair) for pair in zip(result.rewards, truths, strict=True)]
    prompts = [answered[start : start + count] for start in range(0, len(answered), count)]
    estimates = dict(result.estimates)
    judgement = Judgement(
        task=type(run.task).__name__,
        seed=run.seed,
        responses_per_prompt=count,
        reward_model=tuple(run.reward_model),
        against=tuple(run.against or ()),
        success=run.against_success_reward,
        estimates=estimates,
        samples=result.samples,
        rewards=result.rewards,
        truths=truths,
    )
    if run.against:
        known = [truth for truth in truths if not math.isnan(truth)]
        estimates["against/reward"] = sum(known) / len(known)
        estimates["against/unscored"] = float(len(truths) - len(known))
        if not any(not math.isnan(each.reward + each.truth) for each in answered):
            raise UserError("against: no response was scored by it and by reward_model both")
        judgement = replace(judgement, agreement=agreement(prompts, run.against_success_reward))
    if run.best_of_n is not None:
        usable = complete(prompts, run.best_of_n, bool(run.against))
        if not usable:
            raise UserError(
                f"best_of_n={run.best_of_n}: no prompt has so many scored responses; generate more with"
                f" evaluation.responses_per_prompt={2 * run.best_of_n}"
            )
        points = curve(usable, run.best_of_n)
        chosen = _chosen(prompts, run.best_of_n)
        judgement = replace(judgement, curve=points, left_out=len(prompts) - len(usable), chosen=chosen)
    return judgement


def _chosen(prompts: Sequence[Sequence[Answered]], n: int) -> list[int]:
    """The place of the best of each prompt's first n responses; the first of equals, none where none is scored."""
    places, start = [], 0
    for responses in prompts:
        scored = [place for place, each in enumerate(responses[:n]) if not math.isnan(each.reward)]
        if scored:
            places.append(start + max(scored, key=lambda place: responses[place].reward))
        start += len(responses)
    return places
