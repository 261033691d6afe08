"""The questions: which arms each compares, and with what."""

from __future__ import annotations

from typing import Literal, NamedTuple

from prenas.proxy.scores import COUNT_SCORE, PUBLISHED_SCORE

Trainings = Literal["together", "shares", "whole"]
"""The subnets of all budgets in one training; or each budget's alone, for the steps that it got in
the training together, or for all of its steps."""

Measure = Literal["best", "first"]
"""What answers a budget: the best of its subnets by validation, or the first that was chosen."""


class Arm(NamedTuple):
    """One way to choose or to train."""

    name: str
    changes: tuple[str, ...] = ()
    """Fields of the recipe, as for `prenas run --set`."""
    trainings: Trainings = "together"
    only_middle: bool = False
    """Only the budget in the middle of the recipe's."""
    passes: int = 1
    """How many subnets every image of a step goes through: the epochs are divided by it."""


class Question(NamedTuple):
    """Arms, and the pairs (arm, control) that are compared."""

    title: str
    arms: tuple[Arm, ...]
    pairs: tuple[tuple[str, str], ...]
    measure: Measure = "best"
    has_fronts: bool = False
    """Whether whole fronts are compared too, and what choosing took."""


_RANDOM = "search.strategy=random"
_FULLEST = ("search.strategy=skeletons", f"search.score={COUNT_SCORE}")
_S = f"search.score={PUBLISHED_SCORE}"
_COUNTS, _HALF = f"search.score={COUNT_SCORE}", "search.power=0.5"

_CHOICE = (
    Arm("S", (_S,)),
    Arm("S, p = 1/2", (_S, _HALF)),
    Arm("counts", (_COUNTS,)),
    Arm("counts, p = 1/2", (_COUNTS, _HALF)),
    Arm("random", (_RANDOM,)),
    Arm("skeletons, k = 2", (*_FULLEST, "search.k=2")),
    Arm("skeletons, k = 3", (*_FULLEST, "search.k=3")),
    Arm("random, k = 3", (_RANDOM, "search.k=3")),
    Arm("S, k = 3", (_S, "search.k=3")),
)

_RULES = ("published", "even", "nested", "front", "random", "worst")
_RULES_ALONE = ("published", "even", "random", "worst")

_SANDWICH = ("training.sandwich=1", "training.inplace_distillation=true")
_EVOLUTION = "evolution={}"

_RIVALS = (
    Arm("preferred"),
    Arm("preferred, sandwich", _SANDWICH, passes=3),
    Arm("whole space, evolution", (_EVOLUTION,)),
    Arm("whole space, sandwich, evolution", (*_SANDWICH, _EVOLUTION), passes=3),
)

_NUMBERS = tuple(
    Arm(f"{name}, {what}", (*changes, f"search.k={k}"), only_middle=is_alone)
    for name, changes in (("S", (_S,)), ("random", (_RANDOM,)))
    for what, k, is_alone in (
        ("one subnet", 1, True),
        ("k = 1", 1, False),
        ("k = 2", 2, False),
        ("k = 4", 4, False),
        ("k = 8", 8, False),
    )
)
_FULLEST_ALONE = Arm("counts, one subnet", (_COUNTS,), only_middle=True)

QUESTIONS: dict[str, Question] = {
    "choice": Question(
        "Does the choice help at equal steps?",
        _CHOICE,
        (
            *((name, "random") for name in ("S", "S, p = 1/2", "counts", "counts, p = 1/2")),
            ("S", "counts"),
            ("counts", "S"),
            *((f"{name}, k = 3", "random, k = 3") for name in ("skeletons", "S")),
            ("skeletons, k = 2", "random, k = 3"),
            ("skeletons, k = 3", "S"),
        ),
    ),
    "isomers": Question(
        "Which layers should get the larger options?",
        (
            *(Arm(rule, (f"search.isomers={rule}",)) for rule in _RULES),
            *(
                Arm(f"{rule}, one subnet", (f"search.isomers={rule}",), only_middle=True)
                for rule in _RULES_ALONE
            ),
        ),
        (
            *((rule, "random") for rule in _RULES if rule != "random"),
            ("published", "even"),
            ("published", "nested"),
            *(
                ("published, one subnet", f"{rule}, one subnet")
                for rule in _RULES_ALONE
                if rule != "published"
            ),
        ),
    ),
    "number": Question(
        "What does it cost to train more subnets together?",
        (*_NUMBERS, _FULLEST_ALONE),
        (
            ("S, one subnet", "random, one subnet"),
            ("S, one subnet", "counts, one subnet"),
            *(
                (f"{name}, {what}", f"{name}, {control}")
                for name in ("S", "random")
                for what, control in (
                    ("k = 1", "one subnet"),
                    ("k = 2", "k = 1"),
                    ("k = 4", "k = 1"),
                    ("k = 8", "k = 1"),
                )
            ),
        ),
        measure="first",
    ),
    "alone": Question(
        "Is a family as good as its members alone?",
        (
            Arm("together"),
            Arm("alone, its share of the steps", trainings="shares"),
            Arm("alone, all steps", trainings="whole"),
        ),
        (
            ("together", "alone, its share of the steps"),
            ("together", "alone, all steps"),
        ),
    ),
    "rivals": Question(
        "Is preferred training ahead of training the whole space?",
        _RIVALS,
        tuple((_RIVALS[0].name, arm.name) for arm in _RIVALS[1:]),
        has_fronts=True,
    ),
}
