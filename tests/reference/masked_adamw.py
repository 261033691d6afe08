"""AdamW per element: each has moments, decay and a count of its own steps (arXiv 1711.05101)."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class ReferenceMaskedAdamW:
    """Dense arrays by name; a step moves the elements that its masks mark, and nothing else."""

    weights: dict[str, NDArray]
    weight_decay: dict[str, float]
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    mean: dict[str, NDArray] = field(default_factory=dict)
    square: dict[str, NDArray] = field(default_factory=dict)
    num_steps: dict[str, NDArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            self.mean[name], self.square[name] = np.zeros_like(weight), np.zeros_like(weight)
            self.num_steps[name] = np.zeros(weight.shape, dtype=int)

    def step(self, gradients: dict[str, NDArray], masks: dict[str, NDArray], lr: float) -> None:
        for name, own in masks.items():
            mean, square, weight = self.mean[name], self.square[name], self.weights[name]
            gradient, decay = gradients[name][own], self.weight_decay[name]
            self.num_steps[name][own] += 1
            t = self.num_steps[name][own]
            mean[own] = self.beta1 * mean[own] + (1 - self.beta1) * gradient
            square[own] = self.beta2 * square[own] + (1 - self.beta2) * gradient**2
            unbiased_mean = mean[own] / (1 - self.beta1**t)
            unbiased_square = square[own] / (1 - self.beta2**t)
            decayed = weight[own] - lr * decay * weight[own]
            weight[own] = decayed - lr * unbiased_mean / (np.sqrt(unbiased_square) + self.eps)
