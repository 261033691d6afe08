"""The paper's recipes for Vision Transformers (ICML 2023; the authors' released settings).

The budgets are the parameter ranges of the released search: tiny 5 to 12 M in steps of 1 M, small
13 to 33 M in steps of 5 M, base 30 to 70 M in steps of 12 M (66 to 70 M is not a whole step and was
never searched). `tiny`, `small` and `base` only search. `imagenet-...` train with the published
values, field by field. Published trainings used 8 processes and fp16; here precision is bf16, and
`torchrun --nproc_per_node=8 -m prenas run ...` starts 8 processes. Both affect only speed and
rounding.
"""

from __future__ import annotations

from prenas.families import get_space
from prenas.proxy.scores import PUBLISHED_SCORE
from prenas.recipe import Recipe, SearchRecipe, TrainingRecipe
from prenas.recipe.data import FOLDER, Augmentation, DataRecipe, Preprocessing

_BUDGETS = {"tiny": "params=5M:12M:1M", "small": "params=13M:33M:5M", "base": "params=30M:70M:12M"}


def tiny() -> Recipe:
    """Searches only: seven budgets of 5 to 12 M parameters.

    Cost: one backward pass over 64 generated images, about 10 s on two CPU cores.
    Command: `prenas search tiny --out runs/tiny`.
    """
    return _search_only("tiny")


def small() -> Recipe:
    """Searches only: four budgets of 13 to 33 M parameters.

    Cost: one backward pass over 64 generated images, under a minute on two CPU cores.
    Command: `prenas search small --out runs/small`.
    """
    return _search_only("small")


def base() -> Recipe:
    """Searches only: three budgets of 30 to 66 M parameters.

    Cost: one backward pass over 64 generated images, a few minutes on two CPU cores.
    Command: `prenas search base --out runs/base`.
    """
    return _search_only("base")


def imagenet_tiny() -> Recipe:
    """PreNAS-Ti: seven budgets of 5 to 12 M parameters, 500 epochs on ImageNet-1k.

    Source: the authors' released script. Published accuracy: 77.1 % top-1 at 5.9 M parameters.
    Cost: 6.4e8 images, trained on 8 GPUs in mixed precision by the authors. Estimate the time
    with `--dry-run` first.
    Command: `prenas run imagenet-tiny --data IMAGENET --out runs/imagenet-tiny`, where the folder
    IMAGENET contains `train/` and `val/`.
    """
    return _imagenet("tiny", auto_augment="rand-n3-m10-mstd0.5-inc1", erasing_count=2, min_lr=1e-7)


def imagenet_small() -> Recipe:
    """PreNAS-S: four budgets of 13 to 33 M parameters, 500 epochs on ImageNet-1k.

    Source: the authors' released script. Published accuracy: 81.8 % top-1 at 22.9 M parameters.
    Cost: 6.4e8 images, trained on 8 GPUs in mixed precision by the authors. Estimate the time
    with `--dry-run` first.
    Command: `prenas run imagenet-small --data IMAGENET --out runs/imagenet-small`.
    """
    return _imagenet("small", auto_augment="v0r-mstd0.5", erasing_count=1, min_lr=1e-5)


def imagenet_base() -> Recipe:
    """PreNAS-B: three budgets of 30 to 66 M parameters, 500 epochs on ImageNet-1k.

    Source: the authors' released script. Published accuracy: 82.6 % top-1 at 54 M parameters.
    Cost: 6.4e8 images, trained on 8 GPUs in mixed precision by the authors. Estimate the time
    with `--dry-run` first.
    Command: `prenas run imagenet-base --data IMAGENET --out runs/imagenet-base`.
    """
    return _imagenet("base", auto_augment="rand-n3-m10-mstd0.5-inc1", erasing_count=2, min_lr=1e-7)


def _search_only(space: str) -> Recipe:
    return Recipe(name=space, space=get_space(space), search=_published_search(space))


def _published_search(space: str) -> SearchRecipe:
    return SearchRecipe(budgets=(_BUDGETS[space],), score=PUBLISHED_SCORE, isomers="published")


def _imagenet(space: str, *, auto_augment: str, erasing_count: int, min_lr: float) -> Recipe:
    """The published values for 8 processes of 128 images; the arguments are where the three differ.

    As in the paper, ImageNet's validation images, the only labelled ones besides those for
    training, are used both to choose subnets and to report accuracy.
    """
    return Recipe(
        name=f"imagenet-{space}",
        space=get_space(space),
        search=_published_search(space),
        data=DataRecipe(
            name=FOLDER,
            root="imagenet",
            validation="val",
            test="none",
            preprocessing=Preprocessing(crop_pct=0.875, interpolation="bicubic"),  # 256, then 224
            augmentation=Augmentation(
                crop_scale=(0.08, 1.0),
                auto_augment=auto_augment,
                color_jitter=0.4,
                flip=0.5,
                erasing=0.25,
                erasing_count=erasing_count,
                erasing_mode="pixel",
                mixup=0.8,
                cutmix=1.0,
                mixing_prob=1.0,
                mixing_switch=0.5,
                mixing_mode="elem",
                repeats=3,
            ),
        ),
        training=TrainingRecipe(
            epochs=500,
            batch_size=1024,
            lr_per_512_images=5e-4,
            min_lr=min_lr,
            warmup_epochs=20,
            warmup_share=0.2,
            warmup_lr=1e-6,
            weight_decay=0.05,
            label_smoothing=0.1,
            drop_path=0.1,
            precision="bf16",
            checkpoint_steps=250,
            validate_epochs=5,
            validate_all_epochs=25,
        ),
    )
