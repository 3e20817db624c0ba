"""Which run goes to which worker. Pure functions: no clock, no database, no network."""

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Policy(StrEnum):
    RANDOM = "random"
    ROUND_ROBIN = "round-robin"
    LEAST_LOADED = "least-loaded"
    CARBON = "carbon"  # as least-loaded, as long as no source of carbon intensity is configured


@dataclass(frozen=True)
class Place:
    """A worker that may take runs: `free` slots of `slots`."""

    worker: str
    slots: int
    free: int


@dataclass(frozen=True)
class Choice:
    run_id: int
    worker: str
    reason: str  # one sentence, stored with the run


def choose(
    policy: Policy, run_ids: Sequence[int], places: Sequence[Place], *, chance: random.Random, after: str = ""
) -> list[Choice]:
    """A worker for each run, in the order given, as long as slots are left.

    `after` is the worker that the last round of round-robin ended with; `chance` decides for `random`.
    """
    free = [place for place in places if place.free > 0]
    if policy is Policy.RANDOM:
        turns = _at_random(free, chance)
    elif policy is Policy.ROUND_ROBIN:
        turns = _in_turn(free, after)
    else:
        turns = _least_loaded(free)
    return [
        Choice(run_id, worker, f"{worker}: {why}") for run_id, (worker, why) in zip(run_ids, turns, strict=False)
    ]  # fmt: skip


def _at_random(places: list[Place], chance: random.Random) -> Iterator[tuple[str, str]]:
    slots = [place.worker for place in places for _ in range(place.free)]
    chance.shuffle(slots)
    for worker in slots:
        yield worker, f"drawn by chance from {len(slots)} free slots"


def _in_turn(places: list[Place], after: str) -> Iterator[tuple[str, str]]:
    ordered = sorted(places, key=lambda place: (place.worker <= after, place.worker))
    for turn in range(max((place.free for place in ordered), default=0)):
        for place in ordered:
            if turn < place.free:
                yield place.worker, f"next in turn of {len(ordered)} workers"


def _least_loaded(places: list[Place]) -> Iterator[tuple[str, str]]:
    """Always the worker with the smallest share of busy slots; ties go to more free slots, then to the name."""
    heap = [((place.slots - place.free) / place.slots, -place.free, place.worker, place.slots) for place in places]
    heapq.heapify(heap)
    while heap:
        _load, minus_free, worker, slots = heapq.heappop(heap)
        yield worker, f"least loaded, {slots + minus_free} of {slots} slots busy"
        if minus_free < -1:
            heapq.heappush(heap, ((slots + minus_free + 1) / slots, minus_free + 1, worker, slots))
