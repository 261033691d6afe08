"""Recipes of the convolutional family: the published space, and small spaces for small pictures.

The paper (ICML 2023) claims convolutional results, but its authors released no code, space or
subnets for them. Applying the method to this family is our generalisation (docs/decisions.md).
"""

from __future__ import annotations

from prenas.families import get_space
from prenas.proxy.scores import PUBLISHED_SCORE
from prenas.recipe import CalibrationRecipe, Recipe, SearchRecipe, TrainingRecipe
from prenas.recipe.data import FOLDER, Augmentation, DataRecipe, Preprocessing

_PUBLISHED_BUDGETS = ("macs=200M:700M:25M",)


def mobilenet() -> Recipe:
    """Searches only: twenty budgets of 200 to 700 M multiply-accumulates at 192 to 288 pixels.

    Source: the space of AttentiveNAS (arXiv 2011.09011) and AlphaNet (arXiv 2102.07954). Each
    budget uses the resolution of their published subnets of that size.
    Cost: one backward pass over 64 generated images, about 15 seconds on two CPU cores.
    Command: `prenas search mobilenet --out runs/mobilenet`.
    """
    return Recipe(
        name="mobilenet",
        space=get_space("mobilenet"),
        # Batch statistics need eight images or more; a larger batch would only take memory.
        search=SearchRecipe(
            budgets=_PUBLISHED_BUDGETS, score=PUBLISHED_SCORE, isomers="published", batch_size=8
        ),
    )


def imagenet_mobilenet() -> Recipe:
    """Twenty budgets of 200 to 700 M multiply-accumulates, trained on ImageNet-1k for 360 epochs.

    In each step the largest preferred subnet learns the labels; two random subnets and the smallest
    learn from the largest by the adaptive alpha-divergence.
    Source: the values of AttentiveNAS and AlphaNet; only the choice of subnets differs.
    Never run here, because ImageNet was not available.
    Cost: 4.6e8 images, each passed through four subnets. Estimate the time with `--dry-run` first.
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
                warmup_share=0.2,
                dropout=0.2,
                drop_path=0.2,
                checkpoint_steps=250,
                validate_epochs=5,
                validate_all_epochs=30,
            ),
        }
    )


def micro() -> Recipe:
    """Seven budgets of 0.25 to 2 M multiply-accumulates, trained on pictures of clothes.

    Data: Fashion-MNIST, 60,000 training and 10,000 test pictures, grey, of 28 x 28 pixels (Xiao,
    Rasul and Vollgraf 2017). torchvision downloads them, unless Debian's package
    dataset-fashion-mnist is installed.
    Cost: about half a minute per epoch on one CPU core.
    Command: `prenas run mobilenet-micro --out runs/micro --threads 1`.
    """
    return _small_pictures("mobilenet-micro", ("macs=250k:2M:250k",), epochs=10)


def small() -> Recipe:
    """Eight budgets of 2 to 10 M multiply-accumulates, trained on pictures of clothes.

    Data: Fashion-MNIST, as in `mobilenet-micro`. For CIFAR-10, add `--data cifar10` and
    `--set space.settings.image_size=32`.
    Cost: about two minutes per epoch on one CPU core.
    Command: `prenas run mobilenet-small --out runs/small --threads 1`.
    """
    return _small_pictures("mobilenet-small", ("macs=2M:10M:1M",), epochs=15)


def photos() -> Recipe:
    """Five budgets between 150 k and 650 k parameters, trained on your own pictures at 96 x 96.

    The convolutional counterpart of `photos`. The network gets one output per class. Augmentation
    is timm's usual: random crops and RandAugment.
    Data: a few hundred to a few thousand pictures, one folder per class.
    Cost: about 8 ms per picture and epoch on one CPU core (`--dry-run` measures it). A small set is
    repeated until 1,500 steps are done; `--time 20m` chooses the length for you.
    Command: `prenas run photos-mobilenet --data FOLDER --out runs/photos`.
    """
    return Recipe(
        name="photos-mobilenet",
        space=get_space("mobilenet-small").with_settings(image_size=(96, 96), stem_stride=2),
        search=SearchRecipe(budgets=("params=150k:650k:100k",), batch_size=64),
        data=DataRecipe(
            name=FOLDER,
            root="photos",
            preprocessing=Preprocessing(crop_pct=0.875),
            augmentation=Augmentation(
                crop_scale=(0.35, 1.0), auto_augment="rand-m6-mstd0.5-inc1", flip=0.5, erasing=0.1
            ),
        ),
        # Calibrating on more would make validation as expensive as the training of a small set.
        calibration=CalibrationRecipe(while_training=512),
        training=TrainingRecipe(
            epochs=60,
            min_steps=1500,
            batch_size=32,
            optimizer="sgd",
            lr_per_512_images=1.6,
            min_lr=0.0,
            warmup_epochs=3,
            warmup_share=0.2,
            warmup_lr=1e-3,
            weight_decay=1e-4,
            validate_epochs=5,
            validate_all_epochs=20,
        ),
    )


def small_sandwich() -> Recipe:
    """`mobilenet-small` with four subnets per step: the largest, two random ones and the smallest.

    Source: AlphaNet's losses and optimiser, as in `imagenet-mobilenet`. The number of epochs and
    the learning rate are ours.
    Cost: about four times that of `mobilenet-small` per epoch.
    Command: `prenas run mobilenet-small-sandwich --out runs/sandwich --threads 1`.
    """
    recipe = small()
    training = _sandwich(
        epochs=8,
        batch_size=128,
        lr_per_512_images=0.2,
        warmup_epochs=1,
        warmup_share=0.2,
        validate_all_epochs=4,
    )
    return recipe.model_copy(update={"name": "mobilenet-small-sandwich", "training": training})


def _small_pictures(space: str, budgets: tuple[str, ...], *, epochs: int) -> Recipe:
    """One preferred subnet per step and cross-entropy, as in the Vision Transformer recipes."""
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
            warmup_share=0.2,
            warmup_lr=1e-3,
            weight_decay=1e-4,
            validate_all_epochs=10,
        ),
    )


def _sandwich(
    *, epochs: int, batch_size: int, lr_per_512_images: float, **fields: object
) -> TrainingRecipe:
    """AlphaNet's step: sum the gradients of four subnets, clip each element, take one SGD step."""
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
