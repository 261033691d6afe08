"""Recipes that cut a family of models out of a pretrained network."""

from __future__ import annotations

from prenas.recipe import CalibrationRecipe, CutRecipe, SearchRecipe, TeacherRecipe, TrainingRecipe
from prenas.recipe.data import Augmentation

_BATCH_SIZE = 32


def pretrained() -> CutRecipe:
    """Four models of 25 to 75 % of a pretrained network, for your own pictures.

    Source: the score and the joint training with a teacher were tried on TrashNet; see
    `results/log.md`. The values are ours.
    Cost: five epochs of the whole network, then twelve epochs of its parts with a teacher, more for
    sets of less than 1,900 images; `--dry-run` measures the time.
    Command: `prenas run --from timm/tf_efficientnet_lite0 --data PHOTOS --out runs/mine`.
    """
    return CutRecipe(
        name="pretrained",
        budgets=("macs=75%", "macs=50%", "macs=35%", "macs=25%"),
        augmentation=Augmentation(crop_scale=(0.5, 1.0), color_jitter=0.2, flip=0.5),
        adaptation=_training(epochs=5, min_steps=300),
        search=SearchRecipe(
            budgets=("macs=1",),
            score="gate_or_fisher",
            images="data",
            num_images=2048,
            batch_size=_BATCH_SIZE,
        ),
        training=_training(epochs=12, min_steps=600),
        teacher=TeacherRecipe(name="source", loss="soft", share=0.5, temperature=2.0),
        # Batches of 256 take twice as long at 224 pixels.
        calibration=CalibrationRecipe(num_images=2048, while_training=512, batch_size=_BATCH_SIZE),
    )


def _training(epochs: int, min_steps: int) -> TrainingRecipe:
    """A peak learning rate of 5e-4."""
    return TrainingRecipe(
        epochs=epochs,
        min_steps=min_steps,
        batch_size=_BATCH_SIZE,
        lr_per_512_images=8e-3,
        min_lr=1e-5,
        warmup_epochs=1,
        weight_decay=0.05,
        label_smoothing=0.1,
        clip_grad_norm=1.0,
        validate_all_epochs=0,
        validate_epochs=4,
    )
