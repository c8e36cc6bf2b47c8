"""OTB: a baseline for every token, in which responses count by the score function of their tokens so far."""

from torch import Tensor

from tpg.component import component
from tpg.estimators.base import Requests
from tpg.estimators.weighted import WeightedBaseline, cumulative_score_norms
from tpg.trajectories import Trajectories


@component
class OTB(WeightedBaseline):
    """`R_i - sum_j R_j W_jt / sum_j W_jt` on token t. (Optimal token baseline, arXiv 2602.07078.)

    `W_jt` is the squared norm of the score function of response j up to token t, in the logits; past the end of a
    response it is its last. Biased as published; unbiased with `leave_one_out`.
    """

    def requests(self, trajectories: Trajectories) -> Requests:
        """The sums of squared probabilities."""
        return Requests(distribution=True)

    def importance(self, trajectories: Trajectories) -> Tensor:
        """`W`, (B, T)."""
        return cumulative_score_norms(trajectories)
