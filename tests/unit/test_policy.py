"""Which run goes to which worker."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greengrader.policy import Choice, Place, Policy, choose

A, B, C = Place("a", 2, 2), Place("b", 4, 4), Place("c", 1, 1)


def workers(choices: list[Choice]) -> str:
    return "".join(choice.worker for choice in choices)


def place(policy: Policy, count: int, *places: Place, after: str = "", seed: int = 1) -> list[Choice]:
    return choose(policy, range(1, count + 1), places, chance=random.Random(seed), after=after)


PLACES = st.lists(
    st.builds(lambda name, slots, held: Place(name, slots, max(slots - held, 0)),
              st.text("abcxyz", min_size=1, max_size=4), st.integers(0, 5), st.integers(0, 6)),
    max_size=6, unique_by=lambda place: place.worker,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(Policy), PLACES, st.integers(0, 12), st.text("abcxyz", max_size=4), st.integers())
def test_every_policy_fills_free_slots_in_the_order_of_the_queue(
    policy: Policy, places: list[Place], count: int, after: str, seed: int
) -> None:
    choices = place(policy, count, *places, after=after, seed=seed)
    free = {place.worker: place.free for place in places}
    assert [choice.run_id for choice in choices] == list(range(1, min(count, sum(free.values())) + 1))
    given_out = Counter(choice.worker for choice in choices)
    assert all(given_out[worker] <= free[worker] for worker in given_out)
    for choice in choices:
        assert choice.reason.startswith(f"{choice.worker}: ") and "\n" not in choice.reason


@pytest.mark.parametrize("policy", Policy)
def test_without_a_free_slot_everything_waits(policy: Policy) -> None:
    assert place(policy, 3) == []
    assert place(policy, 3, Place("a", 2, 0)) == []
    assert place(policy, 0, A) == []


# ------------------------------------------------------------------------------------------------------ round-robin
def test_round_robin_goes_round_by_name() -> None:
    assert workers(place(Policy.ROUND_ROBIN, 7, C, A, B)) == "abcabbb"


def test_round_robin_goes_on_after_the_last_one() -> None:
    assert workers(place(Policy.ROUND_ROBIN, 3, A, B, C, after="a")) == "bca"
    assert workers(place(Policy.ROUND_ROBIN, 3, A, B, C, after="c")) == "abc"
    assert workers(place(Policy.ROUND_ROBIN, 3, A, B, C, after="a worker that is gone")) == "bca"


def test_round_robin_over_several_passes_is_fair() -> None:
    after, given_out = "", Counter[str]()
    for _ in range(30):
        (choice,) = place(Policy.ROUND_ROBIN, 1, A, B, C, after=after)
        after = choice.worker
        given_out[choice.worker] += 1
    assert given_out == {"a": 10, "b": 10, "c": 10}


# ----------------------------------------------------------------------------------------------------- least-loaded
def test_least_loaded_counts_shares_not_slots() -> None:
    """One of four busy is less than one of two."""
    assert workers(place(Policy.LEAST_LOADED, 1, Place("a", 2, 1), Place("b", 4, 3))) == "b"


def test_least_loaded_prefers_more_free_slots_then_the_name() -> None:
    assert workers(place(Policy.LEAST_LOADED, 1, A, B, C)) == "b"
    assert workers(place(Policy.LEAST_LOADED, 1, Place("y", 2, 2), Place("x", 2, 2))) == "x"


def test_least_loaded_sees_what_it_has_just_given_out() -> None:
    # busy shares before each choice: a 0 0 0 1/2 1/2 1, b 0 1/4 1/4 1/4 1/2 1/2, c 0 0 1 …
    assert workers(place(Policy.LEAST_LOADED, 7, A, B, C)) == "bacbbab"


def test_least_loaded_tells_how_busy_the_worker_was() -> None:
    (first, second) = place(Policy.LEAST_LOADED, 2, Place("a", 4, 2))
    assert first.reason == "a: least loaded, 2 of 4 slots busy"
    assert second.reason == "a: least loaded, 3 of 4 slots busy"


def test_carbon_is_least_loaded_as_long_as_there_is_no_source() -> None:
    assert place(Policy.CARBON, 7, A, B, C) == place(Policy.LEAST_LOADED, 7, A, B, C)


# ------------------------------------------------------------------------------------------------------------ random
def test_random_is_decided_by_the_chance_it_is_given() -> None:
    assert place(Policy.RANDOM, 7, A, B, C, seed=5) == place(Policy.RANDOM, 7, A, B, C, seed=5)
    assert len({workers(place(Policy.RANDOM, 7, A, B, C, seed=seed)) for seed in range(20)}) > 5


def test_random_draws_slots_not_workers() -> None:
    drawn = Counter(workers(place(Policy.RANDOM, 1, A, B, C, seed=seed)) for seed in range(700))
    assert 150 < drawn["a"] < 250 and 350 < drawn["b"] < 450 and 60 < drawn["c"] < 140


def test_a_policy_is_called_as_on_the_command_line() -> None:
    assert [str(policy) for policy in Policy] == ["random", "round-robin", "least-loaded", "carbon"]


def test_a_thousand_workers_are_no_burden() -> None:
    """Work per run must not grow with the number of workers."""
    places = [Place(f"worker-{number}", 8, 8) for number in range(1000)]
    for policy in Policy:
        assert len(place(policy, 8000, *places)) == 8000
