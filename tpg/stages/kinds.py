"""The two stages before reinforcement learning: what each loads, saves and shows."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tpg.randomness import Purpose, torch_seed
from tpg.reporting.stage_pictures import draw_losses, draw_reliability
from tpg.rewards.learned.normalization import FILE
from tpg.stages import preference, supervised
from tpg.stages.calibration import reliability
from tpg.stages.classifier import RewardClassifier
from tpg.stages.options import PreferenceStage, SupervisedStage
from tpg.stages.preference import PreferenceModule
from tpg.stages.run import Kind, StageFolder, left_out
from tpg.stages.supervised import SupervisedModule
from tpg.training.run_folder import write_atomically


class Supervised(Kind[SupervisedStage, SupervisedModule]):
    """A policy that imitates."""

    entry = "tpg.sft"
    options = SupervisedStage
    data = "demonstrations"
    model = "policy"
    rows = "responses"
    objective = "eval/loss"

    def prepare(self, stage: SupervisedStage) -> tuple[SupervisedModule, tuple[str, ...]]:
        """Policy and demonstrations."""
        policy = stage.policy.load(torch_seed(stage.seed, Purpose.INITIALIZATION))
        parts = stage.demonstrations.load(stage.task, stage.seed)
        train, held_out = (supervised.tokens_of(part, policy, stage) for part in (parts.train, parts.held_out))
        notes = left_out(parts, train.overlong + held_out.overlong, self.rows)
        return SupervisedModule(policy, train, held_out, stage), notes

    def save(self, module: SupervisedModule, folder: Path) -> None:
        """The policy."""
        module.policy.save(folder)

    def finish(self, module: SupervisedModule, folder: StageFolder, rows: list[dict[str, str]]) -> dict[str, float]:
        """The curve; the last row's measures."""
        draw_losses(folder.learning_curve, f"Supervised training, seed {module.stage.seed}", rows, "nats a token")
        return {name: float(rows[-1][name]) for name in ("eval/loss", "eval/perplexity")}


class RewardModel(Kind[PreferenceStage, PreferenceModule]):
    """A classifier whose one logit is a reward."""

    entry = "tpg.reward"
    options = PreferenceStage
    data = "preferences"
    model = "reward_model"
    rows = "pairs"
    objective = "eval/accuracy"

    def prepare(self, stage: PreferenceStage) -> tuple[PreferenceModule, tuple[str, ...]]:
        """Policy, its head and preferences."""
        seed = torch_seed(stage.seed, Purpose.INITIALIZATION)
        policy = stage.policy.load(seed)
        parts = stage.preferences.load(stage.task, stage.seed)
        train, held_out = (
            preference.tokens_of(part, policy.tokenizer, policy.max_positions, stage)
            for part in (parts.train, parts.held_out)
        )
        notes = left_out(parts, train.overlong + held_out.overlong, self.rows)
        return PreferenceModule(RewardClassifier(policy, seed), train, held_out, stage), notes

    def save(self, module: PreferenceModule, folder: Path) -> None:
        """The classifier, with the scale of its rewards."""
        module.classifier.save(folder)
        statistics = preference.reward_statistics(*module.final_rewards)
        write_atomically(folder / FILE, json.dumps(statistics, indent=2) + "\n")

    def finish(self, module: PreferenceModule, folder: StageFolder, rows: list[dict[str, str]]) -> dict[str, float]:
        """Curve, reliability, and the held-out pairs with their rewards; measured in the precision of the weights."""
        chosen_B, rejected_B = module.final_rewards
        measured = module.measures_of(chosen_B, rejected_B)
        bins = reliability(chosen_B - rejected_B, module.options.bins)
        seed = f"seed {module.stage.seed}"
        draw_losses(folder.learning_curve, f"Reward model, {seed}", rows, "nats a pair")
        error = measured["eval/calibration_error"]
        draw_reliability(folder.path / "reliability.png", f"Reward model on held-out pairs, {seed}", bins, error)
        rewards = zip(module.held_out_data.pairs, chosen_B.tolist(), rejected_B.tolist(), strict=True)
        lines = [
            json.dumps({**asdict(pair), "chosen_reward": chosen, "rejected_reward": rejected}, ensure_ascii=False)
            for pair, chosen, rejected in rewards
        ]
        write_atomically(folder.path / "held_out.jsonl", "".join(line + "\n" for line in lines))
        write_atomically(folder.path / "reliability.json", json.dumps([asdict(each) for each in bins], indent=2) + "\n")
        return measured


KINDS: dict[str, Kind[Any, Any]] = {kind.entry: kind for kind in (Supervised(), RewardModel())}
"""By the module that is typed."""
