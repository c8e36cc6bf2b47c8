"""What a run needs before its folder is made: the policy, the task and reward models, loaded."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

from tpg.policies.base import Policy
from tpg.randomness import Purpose, torch_seed
from tpg.rewards.base import Scorer
from tpg.rewards.model import RewardModel, load_scorers
from tpg.tasks.rendering import check_context, render_prompts
from tpg.training.experiment import Experiment
from tpg.training.prompts import PromptStream


@dataclass(frozen=True)
class Prepared:
    """What is loaded before a folder is made: a mistake up to here leaves nothing behind."""

    policy: Policy
    critic_source: Policy
    """The model that a critic starts from."""
    training: PromptStream
    held_out: PromptStream
    notes: tuple[str, ...]
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    """The reward's terms that the process that trains holds."""

    def reward_model(self, experiment: Experiment, processes: int = 1) -> RewardModel:
        """The experiment's rewards, for one of so many processes that share the machine."""
        return RewardModel(
            experiment.reward_model,
            -(-experiment.reward_workers // processes),
            experiment.reward_memory_gb,
            experiment.combination,
            self.scorers,
        )


def prepare(experiment: Experiment) -> Prepared:
    """Load policy, task and reward models. Raises `UserError` when one is not to be had."""
    quiet_libraries()
    seed = torch_seed(experiment.seed, Purpose.INITIALIZATION)
    policy = experiment.policy.load(seed)
    critic_source = experiment.critic.source(policy, experiment.policy, seed)
    task = experiment.task
    examples = task.load(experiment.seed)
    limit = experiment.rollout.max_prompt_tokens
    training, held_out = (
        render_prompts(task, part, policy.tokenizer, limit, task.overlong_prompts)
        for part in (examples.train, examples.evaluation)
    )
    for rendered in (training, held_out):
        check_context(rendered, experiment.rollout.max_response_tokens, policy.max_positions)
    experiment.curriculum.check_prompts("curriculum", training)
    notes = list(examples.notes)
    filtered = training.filtered + held_out.filtered
    if filtered:
        notes.append(f"{filtered} prompts longer than {limit} tokens are left out")
    warmup = getattr(experiment.critic, "warmup_iterations", 0) if experiment.estimator.needs_critic else 0
    if warmup:
        notes.append(f"the critic alone is trained in the first {warmup} iterations; the policy stays as it is")
    streams = PromptStream(training, experiment.seed), PromptStream(held_out, experiment.seed)
    return Prepared(policy, critic_source, *streams, tuple(notes), load_scorers(experiment.reward_model))


def quiet_libraries() -> None:
    """Leave the screen to what the user asked for."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Weights are gathered along two dimensions one after the other, which it calls suboptimal.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
