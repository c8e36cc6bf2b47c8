"""Which groups are kept, how hard prompts are taken to be, and which are drawn: by hand."""

import itertools
import math

import pytest
import torch
from builders import scored

from tpg.errors import UserError
from tpg.estimators.base import Answers
from tpg.estimators.boundaries import EveryTokens
from tpg.estimators.gae import GAE
from tpg.estimators.group import GRPO, GroupMean
from tpg.estimators.obl import OBL
from tpg.estimators.opo import OPO
from tpg.estimators.otb import OTB
from tpg.estimators.reinforce import Reinforce, ReinforceEMA
from tpg.estimators.reinforce_pp import ReinforcePP, ReinforcePPBaseline
from tpg.estimators.remax import ReMax
from tpg.estimators.rl_zvp import RLZVP
from tpg.estimators.rloo import RLOO
from tpg.estimators.segment import Segment
from tpg.rollouts.engine import Prefix
from tpg.rollouts.transformers import Transformers
from tpg.tasks.base import Example
from tpg.tasks.rendering import Rendered
from tpg.training.curriculum.base import Draws
from tpg.training.curriculum.difficulty import DifficultyBalanced, DifficultyOrdered, by_hardness, drawn_by_chance
from tpg.training.curriculum.dynamic_sampling import chosen, silent_where_equal
from tpg.training.curriculum.estimates import Estimates
from tpg.training.curriculum.ghpo import GHPO
from tpg.training.curriculum.groups import Groups, difficulty
from tpg.training.prompts import PromptStream
from tpg.training.scoring import Scored

NAN = math.nan


def groups(rewards_NG, rows=None):
    """Groups of these rewards; NaN is unscored."""
    rows = rows or range(len(rewards_NG))
    size = len(rewards_NG[0])
    flat = [reward for rewards in rewards_NG for reward in rewards]
    trajectories = scored(
        [0.0 if math.isnan(reward) else reward for reward in flat],
        rows=[row for row in rows for _ in range(size)],
        unscored=tuple(i for i, reward in enumerate(flat) if math.isnan(reward)),
    )
    prefixes = tuple(Prefix((2,), 4, tuple(range(size)), row) for row in rows)
    return Groups(prefixes, Scored(trajectories, tuple(str(i) for i in range(len(flat))), {}, {}))


def test_a_group_is_mixed_where_two_scored_rewards_differ():
    given = groups([[1, 1, 1], [0, 1, 0], [NAN, 0, 1], [NAN, 1, 1], [NAN, NAN, 0], [NAN, NAN, NAN], [-2, -1, -2]])
    assert given.mixed_N.tolist() == [False, True, True, False, False, False, True]


def test_groups_are_taken_with_their_responses_texts_and_prompts():
    taken = groups([[1, 2], [3, 4], [5, 6]]).take([2, 0])
    assert taken.rewards_NG.tolist() == [[5, 6], [1, 2]]
    assert taken.scored.samples == ("4", "5", "0", "1")
    assert [prefix.row for prefix in taken.prefixes] == [2, 0]
    assert taken.scored.trajectories.row_B.tolist() == [2, 2, 0, 0]
    assert taken.plus(groups([[7, 8]])).rewards_NG.tolist() == [[5, 6], [1, 2], [7, 8]]


@pytest.mark.parametrize(
    ("mixed", "wanted", "expected"),
    [
        ([0, 1, 0, 1, 1], 2, [1, 3]),  # the first two; the last is one too many
        ([0, 1, 0, 0, 1], 3, [0, 1, 4]),  # one is missing: the first of equal rewards fills its place
        ([0, 0, 0], 2, [0, 1]),
        ([1, 1], 2, [0, 1]),
    ],
)
def test_the_first_mixed_groups_are_chosen_in_the_order_of_drawing(mixed, wanted, expected):
    assert chosen([bool(each) for each in mixed], wanted) == expected


def test_shares_of_groups_all_none_and_some_of_which_are_solved():
    shares = difficulty(groups([[1, 2], [0, 0.9], [0, 1], [NAN, 1], [NAN, 0], [NAN, NAN]]), success_reward=1.0)
    assert shares == {
        "curriculum/all_solved": pytest.approx(2 / 5),
        "curriculum/none_solved": pytest.approx(2 / 5),
        "curriculum/mixed": pytest.approx(1 / 5),
    }
    assert all(math.isnan(share) for share in difficulty(groups([[NAN, NAN]]), 1.0).values())


@pytest.mark.parametrize(
    ("estimator", "silent"),
    [
        *((kind(), True) for kind in (RLOO, GroupMean, GRPO, OPO, OBL, OTB, ReinforcePPBaseline)),
        *((kind(), False) for kind in (Reinforce, ReinforceEMA, ReinforcePP, RLZVP, ReMax, GAE)),
        (Reinforce(baseline=1.0), False),
        (Segment(boundaries=EveryTokens(tokens=1)), False),
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "baseline", "")),
)
def test_for_which_estimators_equal_rewards_carry_no_gradient(estimator, silent):
    assert silent_where_equal(estimator, 4) is silent


def test_estimates_count_what_is_solved_and_forget_by_rows_that_are_tried_again():
    first = Estimates.of({}, 4).after(groups([[1, 0], [1, 1], [NAN, 0], [NAN, NAN]]), 1.0, decay=0.5)
    assert first.solved_N.tolist() == [1, 2, 0, 0]
    assert first.tried_N.tolist() == [2, 2, 1, 0]
    assert first.rates(0.5).tolist() == pytest.approx([1.5 / 3, 2.5 / 3, 0.5 / 2, 0.5])
    second = Estimates.of(first.state, 4).after(groups([[0, 0], [1, 0], [NAN, NAN]], rows=[1, 1, 0]), 1.0, decay=0.5)
    assert second.solved_N.tolist() == [1, 2 * 0.5 + 1, 0, 0]  # row 0 has nothing new, row 1 came twice
    assert second.tried_N.tolist() == [2, 2 * 0.5 + 4, 1, 0]
    with pytest.raises(UserError, match="knows 4 prompts, the task has 5"):
        Estimates.of(second.state, 5)


def test_the_chance_of_a_prompt_is_that_of_a_mixed_group():
    rates_N = torch.tensor([0.0, 0.5, 0.25, 1.0], dtype=torch.float64)
    # G = 2: 2p(1-p) = 0, 1/2, 3/8, 0, of a sum of 7/8.
    assert DifficultyBalanced(explore=0.0).chances(rates_N, 2).tolist() == pytest.approx([0, 4 / 7, 3 / 7, 0])
    explored = DifficultyBalanced(explore=0.4).chances(rates_N, 2).tolist()
    assert explored == pytest.approx([0.1, 0.1 + 0.6 * 4 / 7, 0.1 + 0.6 * 3 / 7, 0.1])
    # G = 3: 1 - p^3 - (1-p)^3 = 3/4 and 9/16.
    assert DifficultyBalanced(explore=0.0).chances(rates_N, 3).tolist() == pytest.approx([0, 4 / 7, 3 / 7, 0])
    assert DifficultyBalanced(explore=0.0).chances(torch.zeros(4), 2).tolist() == [0.25] * 4


def test_drawing_without_replacement_follows_the_chances():
    chances = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    # -log(1 - u) / chance: 1.386, 0.744, 1.116
    assert drawn_by_chance(chances, torch.tensor([0.5, 0.2, 0.2], dtype=torch.float64)) == [1, 2, 0]
    lots = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    orders = [tuple(drawn_by_chance(chances, each)) for each in lots]
    for order in itertools.permutations(range(3)):
        expected = float(chances[order[0]] * chances[order[1]] / (1 - chances[order[0]]))
        assert orders.count(order) / len(orders) == pytest.approx(expected, abs=0.015)


def stream(difficulties):
    examples = tuple(Example(str(row), columns={"level": level}) for row, level in enumerate(difficulties))
    return PromptStream(Rendered(examples, tuple((5, row) for row in range(len(difficulties))), 0), seed=0)


def draws(source, iteration, state=(), prompts=4):
    rollout = Transformers(prompts=prompts, responses_per_prompt=2, max_response_tokens=7)
    return Draws(source, rollout, None, iteration, dict(state))


def test_equally_hard_rows_come_in_the_order_of_their_lots():
    assert by_hardness(torch.tensor([2.0, 1.0, 2.0, 1.0, 0.0]), [3, 2, 1, 0, 4]) == [4, 3, 1, 2, 0]


def test_the_easiest_prompts_come_first_and_all_in_the_end():
    ordered = DifficultyOrdered(column="level", start_share=0.5, iterations_to_all=4)
    assert [ordered.open_share(iteration) for iteration in (1, 2, 3, 4, 5, 99)] == [0.5, 0.625, 0.75, 0.875, 1, 1]
    source = stream([8, 7, 6, 5, 4, 3, 2, 1])
    rows = {k: [prefix.row for prefix in ordered.prompts(draws(source, k))] for k in range(1, 40)}
    assert sorted(rows[1]) == [4, 5, 6, 7]
    assert set(rows[2]) <= {3, 4, 5, 6, 7}
    assert set().union(*(rows[k] for k in range(5, 40))) == set(range(8))
    assert all(len(set(drawn)) == 4 for drawn in rows.values())
    again = ordered.prompts(draws(source, 1, prompts=6))
    assert sorted(prefix.row for prefix in again if prefix.draw == 0) == [4, 5, 6, 7]
    assert [prefix.draw for prefix in again] == [0, 0, 0, 0, 1, 1]
    assert len({key for prefix in again for key in prefix.keys}) == 12


def test_measured_success_orders_where_no_column_does():
    ordered = DifficultyOrdered(start_share=0.5, iterations_to_all=100)
    state = {
        "solved": torch.tensor([9.0, 0, 0, 9, 0, 0, 9, 0], dtype=torch.float64),
        "tried": torch.tensor([9.0, 9, 9, 9, 9, 9, 9, 0], dtype=torch.float64),
    }
    rows = [prefix.row for prefix in ordered.prompts(draws(stream([0] * 8), 1, state))]
    assert sorted(rows) == [0, 3, 6, 7]  # three that are solved, and the one that is not known yet


def test_a_hard_prompt_is_drawn_less_but_not_forgotten():
    solved = torch.zeros(50, dtype=torch.float64)
    tried = torch.full((50,), 100.0, dtype=torch.float64)
    solved[:5] = 50.0  # five prompts are solved half the time, the others never
    state = {"solved": solved, "tried": tried}
    balanced, source = DifficultyBalanced(explore=0.2), stream([0] * 50)
    rows = [prefix.row for k in range(1, 101) for prefix in balanced.prompts(draws(source, k, state))]
    assert sum(row < 5 for row in rows) / len(rows) > 0.6
    assert len(set(rows)) > 30
    assert balanced.prompts(draws(source, 3, state)) == balanced.prompts(draws(source, 3, state))


def test_a_difficulty_that_is_no_number_and_a_solution_that_is_no_text_are_refused():
    with pytest.raises(UserError, match="column=level: the prompt '1' has no finite number"):
        DifficultyOrdered(column="level").check_prompts("curriculum", stream([1, "hard"]).prompts)
    DifficultyOrdered(column="level").check_prompts("curriculum", stream([1, "2.5"]).prompts)
    with pytest.raises(UserError, match="solution_column=level: the prompt '0' has no text"):
        GHPO(solution_column="level").check_prompts("curriculum", stream([1]).prompts)


def direction(policies, same):
    """The expected gradient of the first mixed group of three rounds, in a logit of success a prompt, exactly.

    Two prompts, solved with these probabilities, are drawn evenly; two responses each, rloo. With `same` the prompt is
    kept until its group is mixed.
    """
    expected = torch.zeros(len(policies), dtype=torch.float64)
    outcomes = list(itertools.product([0.0, 1.0], repeat=2))
    for prompts in itertools.product(range(len(policies)), repeat=3):
        if same and len(set(prompts)) > 1:
            continue
        for drawn in itertools.product(outcomes, repeat=3):
            chance = (1 if same else 0.5**2) * 0.5
            for prompt, rewards in zip(prompts, drawn, strict=True):
                for reward in rewards:
                    chance *= policies[prompt] if reward else 1 - policies[prompt]
            given = groups([list(rewards) for rewards in drawn], rows=prompts)
            learned = given.take(chosen(given.mixed_N.tolist(), 1)).scored.trajectories
            weights = RLOO().weights(learned, Answers())[:, 0]
            for row, reward, weight in zip(learned.row_B, learned.rewards_B, weights, strict=True):
                expected[row] += chance * weight * (reward - policies[row]) / len(learned)
    return expected


def test_other_prompts_keep_the_direction_and_the_same_prompt_again_does_not():
    policies = [0.5, 0.02]
    true = torch.tensor([0.5 * p * (1 - p) for p in policies], dtype=torch.float64)
    others, again = direction(policies, same=False), direction(policies, same=True)
    cosine = torch.nn.functional.cosine_similarity
    assert float(cosine(others, true, dim=0)) == pytest.approx(1.0, abs=1e-12)
    # Three rounds of which one is mixed with chance m: (1 - (1 - m)^3) / m times the gradient of one round.
    mixed = sum(2 * p * (1 - p) for p in policies) / 2
    torch.testing.assert_close(others, true * (1 - (1 - mixed) ** 3) / mixed, rtol=1e-12, atol=0)
    assert float(cosine(again, true, dim=0)) < 0.999
    assert float(again[1] / again[0]) > 1.5 * float(true[1] / true[0])
