"""Sums of a tensor over many boxes, from a single pass over the tensor."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

from prenas.families.base import Box


class BoxSums:
    """Cumulative sums of a tensor between the borders of the given boxes.

    The tensor is reduced once to one number per piece between neighbouring borders. Cumulative sums
    along every dimension then give the sum over any of the boxes in a few look-ups (inclusion and
    exclusion). Sums are in float64.
    """

    def __init__(self, values: Tensor, boxes: Iterable[Box]) -> None:
        borders = [{0, size} for size in values.shape]
        for box in boxes:
            for found, part in zip(borders, box, strict=True):
                found.update((part.start, part.stop))
        self._borders = [sorted(found) for found in borders]
        pieces = values.double()
        for dim in reversed(range(values.ndim)):
            edges = self._borders[dim]
            pieces = torch.stack(
                [
                    pieces.narrow(dim, start, stop - start).sum(dim)
                    for start, stop in pairwise(edges)
                ],
                dim=dim,
            )
        table = pieces.numpy()
        for dim in range(table.ndim):
            table = np.cumsum(table, axis=dim)
        self._table = np.pad(table, (1, 0)) if table.ndim else table
        self._position = [{edge: i for i, edge in enumerate(edges)} for edges in self._borders]

    def __call__(self, box: Box) -> float:
        """The sum over a box; its borders must be borders of the boxes given at construction."""
        total = 0.0
        # Nothing lies before the first border, so a box that starts there has fewer corners.
        ends = [
            ((position[part.stop], 1), (position[part.start], -1))
            if part.start
            else ((position[part.stop], 1),)
            for position, part in zip(self._position, box, strict=True)
        ]
        for corner in product(*ends):
            sign = 1
            for _, factor in corner:
                sign *= factor
            total += sign * float(self._table[tuple(index for index, _ in corner)])
        return total
