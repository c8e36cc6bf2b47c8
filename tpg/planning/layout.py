"""How a training is laid out over devices, in plain numbers."""

from dataclasses import dataclass

from tpg.training.trainer import TrainerOptions


@dataclass(frozen=True)
class Layout:
    """How many devices share the data and how many the layers."""

    data_parallel: int = 1
    """Groups of devices, each with responses of its own."""
    tensor_parallel: int = 1
    """Devices that share each layer's matrices."""
    sharded: bool = False
    """Whether weights, gradients and moments are divided over the data-parallel groups, or held by each."""

    # Every device generates a share of the responses, with whole weights, however the update is laid out.

    @property
    def devices(self) -> int:
        """All of them."""
        return self.data_parallel * self.tensor_parallel

    @property
    def shards(self) -> int:
        """Parts that weights, gradients and moments are cut into."""
        return self.tensor_parallel * (self.data_parallel if self.sharded else 1)

    def __str__(self) -> str:
        if self.devices == 1:
            return "1 device"
        parts = []
        if self.data_parallel > 1:
            parts.append(f"{self.data_parallel} data-parallel, {'sharded' if self.sharded else 'replicated'}")
        if self.tensor_parallel > 1:
            parts.append(f"{self.tensor_parallel} tensor-parallel")
        return f"{self.devices} devices: {', '.join(parts)}"


def layout_of(trainer: TrainerOptions) -> Layout:
    """That of a trainer's options."""
    size = trainer.tensor_parallel_size
    return Layout(trainer.processes // size, size, trainer.strategy in ("fsdp", "fsdp_tp"))
