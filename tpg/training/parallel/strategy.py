"""Lightning's strategy of divided models, with checkpoints that any number of processes goes on from."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from tpg.training.parallel.optimizer_state import take_state, whole_state


class ShardedStrategy(ModelParallelStrategy):
    """Writes and reads one file of whole tensors, as a single process does.

    Lightning names an optimizer's states by all of a model's parameters and wants one for each that is trained: it
    cannot read what a single process has written where some are frozen (adapters), nor what was written before each
    had a step (a critic that is trained alone first).
    """

    def __init__(self, data_parallel_size: int, tensor_parallel_size: int) -> None:
        super().__init__(data_parallel_size, tensor_parallel_size, save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """See Lightning's; whole on rank 0."""
        optimizer = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return whole_state(optimizer, keep=self.global_rank == 0)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """See Lightning's; every process reads the file and keeps its part."""
        path = Path(self.broadcast(checkpoint_path))
        checkpoint: dict[str, Any] = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        assert self.model is not None
        assert self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, strict=self.lightning_module.strict_loading)
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            take_state(optimizer, state)
        return checkpoint
