"""Values that hypothesis can draw and shrink, and plain dice can draw fast: one description for both.

Named as hypothesis names them, so that what is drawn reads the same as elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st


@dataclass(frozen=True)
class Draw:
    """A value to draw: ``by_hypothesis`` is its strategy, ``by_dice`` gives one for a random generator."""

    by_hypothesis: st.SearchStrategy[Any]
    by_dice: Callable[[random.Random], Any]

    def __or__(self, other: Draw) -> Draw:
        return one_of(self, other)

    def map(self, change: Callable[[Any], Any]) -> Draw:
        return Draw(self.by_hypothesis.map(change), lambda dice: change(self.by_dice(dice)))


def sampled_from(values: Sequence[Any]) -> Draw:
    return Draw(st.sampled_from(values), lambda dice: dice.choice(values))


def just(value: Any) -> Draw:
    return Draw(st.just(value), lambda _: value)


def none() -> Draw:
    return just(None)


def booleans() -> Draw:
    return sampled_from([False, True])


def integers(first: int, last: int) -> Draw:
    return Draw(st.integers(first, last), lambda dice: dice.randint(first, last))


def one_of(*draws: Draw) -> Draw:
    return Draw(st.one_of(*(draw.by_hypothesis for draw in draws)), lambda dice: dice.choice(draws).by_dice(dice))


def tuples(*draws: Draw) -> Draw:
    return Draw(
        st.tuples(*(draw.by_hypothesis for draw in draws)),
        lambda dice: tuple(draw.by_dice(dice) for draw in draws),
    )


def fixed_dictionaries(draws: Mapping[str, Draw]) -> Draw:
    return Draw(
        st.fixed_dictionaries({name: draw.by_hypothesis for name, draw in draws.items()}),
        lambda dice: {name: draw.by_dice(dice) for name, draw in draws.items()},
    )
