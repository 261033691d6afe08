"""Runs of the convolutional family: the published space, and small ones for small pictures.

The paper (ICML 2023) claims convolutional results, but no code, space or subnets of it were
released: applying the method to this family is our generalisation (docs/decisions.md).
"""

from __future__ import annotations

from prenas.families import get_space
from prenas.recipe import Recipe, SearchRecipe, TrainingRecipe
from prenas.recipe.data import FOLDER, Augmentation, DataRecipe, Preprocessing

_PUBLISHED_BUDGETS = ("macs=200M:700M:25M",)


def mobilenet() -> Recipe:
    """Search only, twenty budgets of 200 to 700 M multiply-accumulates at 192 to 288 pixels.

    Source: the space of AttentiveNAS (arXiv 2011.09011) and AlphaNet (arXiv 2102.07954), each
    budget at the resolution that their published subnets of that size have.
    Cost: one backward pass over 64 generated images, about 15 seconds on two CPU cores.
    Command: `prenas search mobilenet --out runs/mobilenet`.
    """
    return Recipe(
        name="mobilenet",
        space=get_space("mobilenet"),
        # Statistics of a batch want eight images or more; more of them would only take memory.
        search=SearchRecipe(budgets=_PUBLISHED_BUDGETS, batch_size=8),
    )


def imagenet_mobilenet() -> Recipe:
    """Twenty budgets of 200 to 700 M multiply-accumulates, 360 epochs of ImageNet-1k.

    Per step the largest preferred subnet learns the labels, two drawn ones and the smallest learn
    from it by the adaptive alpha-divergence.
    Source: the values of AttentiveNAS and AlphaNet, but for what the method changes: the subnets.
    Not tried here: ImageNet was not at hand.
    Cost: 4.6e8 images, each through four subnets; look at `--dry-run` first.
    Command: `prenas run imagenet-mobilenet --data IMAGENET --out runs/imagenet-mobilenet`.
    """
    return mobilenet().model_copy(
        update={
            "name": "imagenet-mobilenet",
            "data": DataRecipe(
                name=FOLDER,
                root="imagenet",
                validation="val",
                test="none",
                preprocessing=Preprocessing(crop_pct=0.875, interpolation="bicubic"),
                augmentation=Augmentation(crop_scale=(0.08, 1.0), auto_augment="v0", flip=0.5),
            ),
            "training": _sandwich(
                epochs=360,
                batch_size=2048,
                lr_per_512_images=0.2,
                warmup_epochs=5,
                dropout=0.2,
                drop_path=0.2,
                checkpoint_steps=250,
                validate_epochs=5,
                validate_all_epochs=30,
            ),
        }
    )


def micro() -> Recipe:
    """Seven budgets of 0.25 to 2 M multiply-accumulates on pictures of clothes.

    Data: Fashion-MNIST, 60,000 and 10,000 grey pictures of 28 x 28 pixels (Xiao, Rasul and Vollgraf
    2017), downloaded by torchvision, or found where Debian's package dataset-fashion-mnist puts
    them.
    Cost: about half a minute per epoch on one CPU core.
    Command: `prenas run mobilenet-micro --out runs/micro --threads 1`.
    """
    return _small_pictures("mobilenet-micro", ("macs=250k:2M:250k",), epochs=10)


def small() -> Recipe:
    """Eight budgets of 2 to 10 M multiply-accumulates on pictures of clothes.

    Data: those of `mobilenet-micro`; for CIFAR-10 add `--data cifar10` and
    `--set space.settings.image_size=32`.
    Cost: about two minutes per epoch on one CPU core.
    Command: `prenas run mobilenet-small --out runs/small --threads 1`.
    """
    return _small_pictures("mobilenet-small", ("macs=2M:10M:1M",), epochs=15)


def small_sandwich() -> Recipe:
    """The subnets of `mobilenet-small`, four a step: largest, two drawn, smallest.

    Source: AlphaNet's losses and optimiser, as in `imagenet-mobilenet`; length and rate are ours.
    Cost: about four times that of `mobilenet-small` per epoch.
    Command: `prenas run mobilenet-small-sandwich --out runs/sandwich --threads 1`.
    """
    recipe = small()
    training = _sandwich(
        epochs=8,
        batch_size=128,
        lr_per_512_images=0.2,
        warmup_epochs=1,
        validate_all_epochs=4,
    )
    return recipe.model_copy(update={"name": "mobilenet-small-sandwich", "training": training})


def _small_pictures(space: str, budgets: tuple[str, ...], *, epochs: int) -> Recipe:
    """One preferred subnet a step, cross-entropy: the recipe of the Vision Transformers."""
    return Recipe(
        name=space,
        space=get_space(space),
        search=SearchRecipe(budgets=budgets, batch_size=64),
        data=DataRecipe(
            name="fashion-mnist",
            preprocessing=Preprocessing(mean=(0.286,) * 3, std=(0.353,) * 3, crop_pct=1.0),
            augmentation=Augmentation(flip=0.5, crop_padding=2),
        ),
        training=TrainingRecipe(
            epochs=epochs,
            batch_size=128,
            optimizer="sgd",
            lr_per_512_images=1.6,
            min_lr=0.0,
            warmup_epochs=1,
            warmup_lr=1e-3,
            weight_decay=1e-4,
            validate_all_epochs=10,
        ),
    )


def _sandwich(
    *, epochs: int, batch_size: int, lr_per_512_images: float, **fields: object
) -> TrainingRecipe:
    """AlphaNet's step: gradients summed over four subnets, each element clipped, one SGD step."""
    peak = lr_per_512_images * batch_size / 512
    return TrainingRecipe.model_validate(
        {
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer": "sgd",
            "lr_per_512_images": lr_per_512_images,
            "min_lr": 0.0,
            "warmup_lr": 1e-3 * peak,
            "weight_decay": 1e-5,
            "label_smoothing": 0.1,
            "clip_grad_value": 1.0,
            "sandwich": 2,
            "sandwich_loss": "sum",
            "inplace_distillation": "alpha",
            "drops_in": "largest",
            **fields,
        }
    )
