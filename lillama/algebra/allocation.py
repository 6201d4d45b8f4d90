"""One budget shared out among many things, each of which can be had in several sizes (multiple-choice knapsack)."""

import heapq
from bisect import bisect_right
from collections.abc import Sequence


def allocate(*, costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> list[int]:
    """Choose the size of each thing so that the sum of the losses is small and the sum of the costs within the budget.

    Greedy by what a step saves in loss for what it adds in cost, along the convex hull of every thing's (cost, loss).
    Until the budget ends this is the optimum for what is spent (each prefix is that of one Lagrange multiplier); the
    step that no longer fits is made up for by smaller ones, so the loss is above the optimum by less than that step
    saves. In the end no thing's next size fits any more.

    :param costs: of each thing's sizes, strictly ascending. :param losses: of the same sizes, not ascending.
    :param budget: what all things may cost together.
    :return: the number of each thing's size.
    :raises ValueError: where the smallest sizes together cost more.
    Source: Sinha and Zoltners 1979; for ranks and bits also Shoham and Gersho 1988.

    >>> allocate(costs=[[1, 2, 3], [1, 2, 3]], losses=[[9.0, 1.0, 0.0], [2.0, 1.5, 1.0]], budget=4)
    [2, 0]
    """
    left = budget - sum(own[0] for own in costs)
    if left < 0:
        raise ValueError(f"the smallest sizes cost {-left} more than the budget of {budget}")
    taken = [0] * len(costs)
    hulls = [_hull(cost, loss) for cost, loss in zip(costs, losses, strict=True)]
    left = _climb(costs, losses, hulls, taken, left, to_the_first_refused=True)
    _climb(costs, losses, [range(len(own)) for own in costs], taken, left, to_the_first_refused=False)
    return taken


def _climb(
    costs: Sequence[Sequence[int]],
    losses: Sequence[Sequence[float]],
    ladders: Sequence[Sequence[int]],
    taken: list[int],
    left: int,
    *,
    to_the_first_refused: bool,
) -> int:
    """Take the best next step of any ladder (its sizes, ascending) while it fits; what is left of the budget."""
    heap: list[tuple[float, int, int]] = []

    def offer(thing: int) -> None:
        place = bisect_right(ladders[thing], taken[thing])
        if place < len(ladders[thing]):
            size, now = ladders[thing][place], taken[thing]
            saved = losses[thing][now] - losses[thing][size]
            # Of equally good steps the lowest: things that are alike rise together.
            heapq.heappush(heap, (-saved / (costs[thing][size] - costs[thing][now]), size, thing))

    for thing in range(len(costs)):
        offer(thing)
    while heap:
        _, size, thing = heapq.heappop(heap)
        price = costs[thing][size] - costs[thing][taken[thing]]
        if price <= left:
            taken[thing] = size
            left -= price
            offer(thing)
        elif to_the_first_refused:
            break
    return left


def _hull(cost: Sequence[int], loss: Sequence[float]) -> list[int]:
    """Return the sizes on the lower convex hull, first and last among them; those on a line between two others stay."""
    hull: list[int] = []
    for size in range(len(cost)):
        while len(hull) > 1 and _above(cost, loss, hull[-2], hull[-1], size):
            hull.pop()
        hull.append(size)
    return hull


def _above(cost: Sequence[int], loss: Sequence[float], low: int, middle: int, high: int) -> bool:
    """Tell whether the middle one of three sizes lies above the line between the other two."""
    drop, width = loss[low] - loss[high], cost[high] - cost[low]
    return (loss[low] - loss[middle]) * width < drop * (cost[middle] - cost[low])
