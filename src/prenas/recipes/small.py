"""Runs of minutes on a CPU, on real data that ships with a dependency.

digits: 1,797 handwritten digits of 8 x 8 pixels (scikit-learn; UCI, Alpaydin and Kaynak 1998).
Command: `prenas run digits --out runs/digits`.
"""

from __future__ import annotations

from prenas.families import get_space
from prenas.recipe import (
    AffineAugmentation,
    DataRecipe,
    Preprocessing,
    Recipe,
    SearchRecipe,
    TrainingRecipe,
)


def digits() -> Recipe:
    """Six budgets between 40 k and 250 k parameters; about three minutes on one CPU core."""
    return Recipe(
        name="digits",
        space=get_space("digits"),
        search=SearchRecipe(budgets=("params=40k:250k:35k",)),
        data=DataRecipe(
            name="digits",
            # Mean and deviation of the training split's pixels, scaled to [0, 1].
            preprocessing=Preprocessing(mean=(0.305,), std=(0.376,), crop_pct=1.0),
            augmentation=AffineAugmentation(shift_pixels=1.0, rotation_degrees=10.0, scale=0.1),
        ),
        training=TrainingRecipe(
            epochs=240,
            batch_size=64,
            lr_per_512_images=1.6e-2,
            warmup_epochs=2,
            drop_path=0.05,
            clip_grad_norm=1.0,
        ),
    )
