"""OBL: responses count in the baseline by the squared norm of their score function."""

from typing import ClassVar, Literal

from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Requests
from tpg.estimators.weighted import WeightedBaseline, cumulative_score_norms
from tpg.trajectories import Trajectories


@component
class OBL(WeightedBaseline):
    """`R_i - sum_j w_j R_j / sum_j w_j`, w the squared norm of the score function. (OBLR-PO, arXiv 2511.23310.)

    The response-level baseline of least variance. The norm is that of the gradient in the logits, which the forward
    pass gives, or in the policy's parameters, which takes a backward pass for each response. Biased as published;
    unbiased with `leave_one_out`, whichever the norm.
    """

    response_level: ClassVar[bool] = True

    norm: Literal["logits", "parameters"] = "logits"

    def requests(self, trajectories: Trajectories) -> Requests:
        """What the norm is computed from."""
        return Requests(distribution=True) if self.norm == "logits" else Requests(score_norms=True)

    def importance(self, trajectories: Trajectories) -> Tensor:
        """`w`, (B, 1)."""
        if self.norm == "logits":
            return cumulative_score_norms(trajectories)[:, -1:]
        assert trajectories.score_norms_B is not None, "ask for the score norms"
        return trajectories.score_norms_B[:, None]
