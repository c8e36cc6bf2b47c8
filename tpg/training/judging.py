"""One policy on one task's held-out prompts, and the table that `tpg.evaluate` prints."""

import math

from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tpg.component import component
from tpg.errors import UserError
from tpg.policies.base import Policy, PolicyOptions
from tpg.randomness import Purpose, torch_seed
from tpg.reporting.tokens.record import visible
from tpg.rewards.base import Term
from tpg.rewards.model import RewardModel, check_terms
from tpg.rollouts.engine import RolloutOptions
from tpg.tasks.base import Task
from tpg.tasks.rendering import render_prompts
from tpg.training.evaluation import EvaluationResult, Evaluator
from tpg.training.options import Evaluation
from tpg.training.preparation import quiet_libraries
from tpg.training.prompts import PromptStream
from tpg.training.trainer import TrainerOptions


@component
class EvaluationRun:
    """Everything that `tpg.evaluate` runs on."""

    policy: PolicyOptions
    task: Task
    reward_model: dict[str, Term]
    rollout: RolloutOptions
    evaluation: Evaluation
    trainer: TrainerOptions
    seed: int = Field(ge=0, lt=2**62)
    samples: int = Field(ge=0)
    """Answers to show."""
    reward_workers: int = Field(ge=1)
    reward_memory_gb: float | None = Field(default=None, gt=0)

    def check(self) -> list[str]:
        """Raise `UserError` for what is missing or cannot go together; there is nothing to warn of."""
        if not self.reward_model:
            raise UserError("reward_model is empty; name one or more terms, e.g. reward_model=[exact_answer]")
        check_terms(self.reward_model, self.task.columns())
        self.task.check()
        self.policy.check()
        self.rollout.check()
        self.trainer.check()
        return []


def judge(run: EvaluationRun) -> float:
    """Evaluate, print the estimates and some answers, return the mean reward."""
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
    policy.to(trainer.strategy.root_device)
    engine = run.rollout.build(policy)
    if engine.note:
        console.print(f"note: {engine.note}", highlight=False)
    with (
        RewardModel(run.reward_model, run.reward_workers, run.reward_memory_gb) as reward_model,
        engine,
        trainer.precision_plugin.forward_context(),
        console.status(f"{len(held_out.token_ids)} prompts x {run.evaluation.responses_per_prompt} responses"),
    ):
        result = Evaluator(run.evaluation, engine, PromptStream(held_out, run.seed), reward_model).evaluate()
    _print(result, run, policy, console)
    return result.estimates["reward"]


def _print(result: EvaluationResult, run: EvaluationRun, policy: Policy, console: Console) -> None:
    responses = run.evaluation.responses_per_prompt
    prompts = len(result.samples) // responses
    table = Table(title=f"{type(run.task).__name__}: {prompts} held-out prompts x {responses} responses")
    table.add_column("estimate")
    table.add_column("value", justify="right")
    for name, value in result.estimates.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    answers = Table(title="sample answers", show_lines=True)
    for column in ("prompt", "response", "answer", "reward"):
        answers.add_column(column, overflow="fold")
    for sample, reward in list(zip(result.samples, result.rewards, strict=True))[:: max(1, responses)][: run.samples]:
        shown = "unscored" if math.isnan(reward) else f"{reward:.3f}"
        answers.add_row(*(_plain(text) for text in (sample.prompt, sample.response, sample.answer or "", shown)))
    if run.samples:
        console.print(answers)


def _plain(text: str) -> str:
    """Text that the console takes as it is: neither markup nor control characters have an effect."""
    return escape(visible(text))
