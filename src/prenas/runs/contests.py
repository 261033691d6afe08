"""Which subnet of each budget is the best by validation; reads results as plain numbers.

A search may keep several subnets of a budget. After the training, their validation accuracies
decide. As the highest of several, the accuracy of the winner is then slightly optimistic; the test
images decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from prenas.cost import shown_axes
from prenas.values import Amount, Value

OPTIMISTIC = (
    "Validation decided among the subnets of a budget, so the accuracy of the best one on "
    "validation is slightly optimistic: the highest of several is in part luck. Test images "
    "decided nothing."
)
"""What a reader of contests must know."""


class Result(NamedTuple):
    """What is known of a subnet after the training."""

    costs: Mapping[str, int]
    """Name of the cost axis (`prenas.cost`) -> amount."""
    top1: Mapping[str, float]
    """Split -> accuracy (0 to 1); empty if it is not evaluated."""


class Contest(Value):
    """The subnets of one budget, compared on validation."""

    budget: Amount
    """Number of the budget."""
    named: str
    """The budget for people."""
    subnets: tuple[Amount, ...]
    """Numbers of its subnets, the best first."""
    top1: tuple[float, ...]
    """Their validation accuracies (0 to 1)."""
    test_top1: float | None
    """The best one's accuracy on the test split; None if there is none."""

    @property
    def winner(self) -> int:
        """Number of the best subnet."""
        return self.subnets[0]

    @property
    def spread(self) -> float:
        """How far the last is behind the best on validation (0 to 1)."""
        return self.top1[0] - min(self.top1)


def best_first(results: Sequence[Result]) -> list[int]:
    """Numbers of the subnets, the best first; among equals, the first of them.

    The best has the highest validation top-1, then the smallest size; the test split is not used.
    Without an evaluation only the costs are known: the best then has the largest size, then the
    lowest other costs.
    """
    size, *others = (axis.name for axis in shown_axes(one.costs for one in results))

    def merit(number: int) -> tuple[float, ...]:
        costs, top1 = results[number]
        if "validation" in top1:
            return top1["validation"], -costs[size]
        return costs[size], *(-costs[name] for name in others)

    return sorted(range(len(results)), key=merit, reverse=True)  # keeps the order of equals


def contests(
    budgets: Sequence[str], choices: Iterable[tuple[int, int]], results: Sequence[Result]
) -> tuple[Contest, ...]:
    """One contest for each budget that has a subnet; none if nothing is validated.

    Args:
        budgets: for people, in the order of their numbers.
        choices: (number of a budget, number of a subnet that was chosen for it).
        results: of all subnets.
    """
    if not results or not all("validation" in one.top1 for one in results):
        return ()
    chosen = set(choices)
    found = []
    for budget, named in enumerate(budgets):
        subnets = [number for number in best_first(results) if (budget, number) in chosen]
        if subnets:
            found.append(
                Contest(
                    budget=budget,
                    named=named,
                    subnets=tuple(subnets),
                    top1=tuple(results[number].top1["validation"] for number in subnets),
                    test_top1=results[subnets[0]].top1.get("test"),
                )
            )
    return tuple(found)


def were_decided(found: Iterable[Contest]) -> bool:
    """Whether validation had anything to decide: some budget has several subnets."""
    return any(len(one.subnets) > 1 for one in found)
