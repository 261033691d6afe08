"""Recipes for small pictures, which take minutes to an hour and a half on a CPU.

Each recipe states its data, its cost and its command.
"""

from __future__ import annotations

from prenas.families import get_space
from prenas.recipe import EvolutionRecipe, Recipe, SearchRecipe, TrainingRecipe
from prenas.recipe.data import FOLDER, Augmentation, DataRecipe, Preprocessing


def digits() -> Recipe:
    """Six budgets between 40 k and 250 k parameters, trained on handwritten digits.

    Data: 1,797 digits of 8 x 8 pixels, included in scikit-learn (UCI, Alpaydin and Kaynak 1998).
    Cost: about three minutes on one CPU core.
    Command: `prenas run digits --out runs/digits --threads 1`.
    """
    return Recipe(
        name="digits",
        space=get_space("digits"),
        search=SearchRecipe(budgets=("params=40k:250k:35k",)),
        data=DataRecipe(
            name="digits",
            # Mean and deviation of the pixels of the training split, scaled to [0, 1].
            preprocessing=Preprocessing(mean=(0.305,), std=(0.376,), crop_pct=1.0),
            augmentation=Augmentation(shift_pixels=1.0, rotation_degrees=10.0, scale=0.1),
        ),
        training=TrainingRecipe(
            epochs=240,
            batch_size=64,
            lr_per_512_images=1.6e-2,
            warmup_epochs=2,
            warmup_share=0.2,
            drop_path=0.05,
            clip_grad_norm=1.0,
            validate_epochs=10,
            validate_all_epochs=60,
        ),
    )


def digits_one_shot() -> Recipe:
    """One-shot NAS on digits: trains on the whole space, then searches each budget by evolution.

    For comparison with `digits`: budgets and number of training steps are the same. The evolution
    is AutoFormer's (ICCV 2021).
    Data: that of `digits`.
    Cost: that of `digits`, plus about seven minutes on one CPU core to compare 1,000 subnets for
    each of six budgets (scaled from a measurement on a busy core).
    Command: `prenas run digits-one-shot --out runs/digits-one-shot --threads 1`.
    """
    return digits().model_copy(update={"name": "digits-one-shot", "evolution": EvolutionRecipe()})


def fashion_mnist() -> Recipe:
    """Five budgets between 50 k and 300 k parameters, trained on pictures of clothes.

    Data: Fashion-MNIST, 60,000 training and 10,000 test pictures, grey, of 28 x 28 pixels (Xiao,
    Rasul and Vollgraf 2017). torchvision downloads them, unless Debian's package
    dataset-fashion-mnist is installed.
    Cost: about three quarters of an hour on one CPU core. Measured: 87.7 to 88.9 % on test.
    Command: `prenas run fashion-mnist --out runs/fashion-mnist`.
    """
    return Recipe(
        name="fashion-mnist",
        space=get_space("fashion-mnist"),
        search=SearchRecipe(budgets=("params=50k:300k:50k",)),
        data=DataRecipe(
            name="fashion-mnist",
            preprocessing=Preprocessing(mean=(0.286,), std=(0.353,), crop_pct=1.0),
            augmentation=Augmentation(flip=0.5, crop_padding=2),
        ),
        training=TrainingRecipe(
            epochs=20,
            batch_size=128,
            lr_per_512_images=4e-3,
            warmup_epochs=1,
            warmup_share=0.2,
            clip_grad_norm=1.0,
            validate_all_epochs=5,
        ),
    )


def cifar10() -> Recipe:
    """Five budgets between 150 k and 950 k parameters, trained on CIFAR-10.

    Data: 50,000 training and 10,000 test pictures of 32 x 32 pixels in 10 classes (Krizhevsky
    2009). torchvision downloads them; folders or tars work too:
    `--data train=cifar10-train.tar --data test=cifar10-test.tar`.
    Cost: about three quarters of an hour on two CPU cores. Measured: 72.2 to 73.7 % on test.
    Command: `prenas run cifar10 --out runs/cifar10`.
    """
    return Recipe(
        name="cifar10",
        space=get_space("cifar"),
        search=SearchRecipe(budgets=("params=150k:950k:160k",)),
        data=DataRecipe(
            name="cifar10",
            preprocessing=Preprocessing(
                mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262), crop_pct=1.0
            ),
            augmentation=Augmentation(flip=0.5, crop_padding=4),
        ),
        training=TrainingRecipe(
            epochs=20,
            batch_size=128,
            lr_per_512_images=4e-3,
            warmup_epochs=1,
            warmup_share=0.2,
            clip_grad_norm=1.0,
            validate_all_epochs=5,
        ),
    )


def photos() -> Recipe:
    """Five budgets between 150 k and 950 k parameters, trained on your own pictures at 96 x 96.

    A starting point for a few hundred to a few thousand pictures, one folder per class. The network
    gets one output per class. Augmentation is timm's usual: random crops and RandAugment.
    Cost: about 5 ms per picture and epoch on two CPU cores (`--dry-run` measures it). A small set
    is repeated until 1,500 steps are done; `--time 20m` chooses the length for you.
    Command: `prenas run photos --data FOLDER --out runs/photos`.
    """
    return Recipe(
        name="photos",
        space=get_space("photos"),
        search=SearchRecipe(budgets=("params=150k:950k:160k",)),
        data=DataRecipe(
            name=FOLDER,
            root="photos",
            preprocessing=Preprocessing(crop_pct=0.875),
            augmentation=Augmentation(
                crop_scale=(0.35, 1.0), auto_augment="rand-m6-mstd0.5-inc1", flip=0.5, erasing=0.1
            ),
        ),
        training=TrainingRecipe(
            epochs=60,
            min_steps=1500,
            batch_size=64,
            lr_per_512_images=4e-3,
            warmup_epochs=3,
            warmup_share=0.2,
            drop_path=0.05,
            clip_grad_norm=1.0,
            validate_epochs=5,
            validate_all_epochs=20,
        ),
    )
