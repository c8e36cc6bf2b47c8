"""Which prompts an iteration trains on."""

from dataclasses import replace

from tpg.rollouts.transformers import Transformers
from tpg.tasks.base import Example
from tpg.tasks.rendering import Rendered
from tpg.training.prompts import PromptStream

SIZE = 10
ENGINE = Transformers(prompts=4, responses_per_prompt=3, max_response_tokens=7)


def stream(seed=0, size=SIZE):
    examples = tuple(Example([{"role": "user", "content": str(row)}]) for row in range(size))
    return PromptStream(Rendered(examples, tuple((5, row) for row in range(size)), 0), seed)


def drawn(source, iterations, engine=ENGINE):
    return [prefix for iteration in iterations for prefix in source.draw(iteration, engine)]


def test_every_prompt_comes_once_before_any_comes_again():
    prefixes = drawn(stream(), range(1, 11))
    assert [prefix.draw for prefix in prefixes] == [place // SIZE for place in range(40)]
    orders = [[prefix.row for prefix in prefixes if prefix.draw == draw] for draw in range(4)]
    assert all(sorted(order) == list(range(SIZE)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert all(prefix.prompt_ids == (5, prefix.row) and prefix.max_tokens == 7 for prefix in prefixes)


def test_more_prompts_an_iteration_than_the_task_has():
    prefixes = stream(size=3).draw(1, replace(ENGINE, prompts=8))
    assert [prefix.draw for prefix in prefixes] == [0, 0, 0, 1, 1, 1, 2, 2]
    keys = [key for prefix in prefixes for key in prefix.keys]
    assert len(set(keys)) == len(keys) == 24


def test_a_draw_is_a_function_of_seed_and_iteration_alone():
    warm = stream()
    drawn(warm, [5, 1, 9])
    assert warm.draw(3, ENGINE) == stream().draw(3, ENGINE)
    assert warm.draw(3, ENGINE) != stream(seed=1).draw(3, ENGINE)
    assert warm.draw(3, ENGINE) != warm.draw(4, ENGINE)


def test_the_keys_are_distinct_over_responses_prompts_iterations_and_evaluation():
    prefixes = [*drawn(stream(), range(1, 11)), *stream().held_out(3, ENGINE), *drawn(stream(seed=1), range(1, 11))]
    keys = [key for prefix in prefixes for key in prefix.keys]
    assert len(set(keys)) == len(keys) == 40 * 3 + SIZE * 3 + 40 * 3


def test_a_larger_group_begins_with_the_keys_of_a_smaller_one():
    few, many = stream().draw(2, ENGINE), stream().draw(2, replace(ENGINE, responses_per_prompt=5))
    assert [prefix.keys for prefix in few] == [prefix.keys[:3] for prefix in many]


def test_held_out_prompts_come_in_order_with_the_same_numbers_every_time():
    source = stream()
    first = source.held_out(2, ENGINE)
    assert [prefix.row for prefix in first] == list(range(SIZE))
    assert all(len(prefix.keys) == 2 for prefix in first)
    source.draw(4, ENGINE)
    assert source.held_out(2, ENGINE) == first
