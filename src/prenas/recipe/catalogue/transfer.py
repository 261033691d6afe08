"""Recipes for fine-tuning: on your own pictures, and on the data sets that the paper transfers to.

The paper's own values (ICML 2023) are not available. DeiT's authors (arXiv 2012.12877) state theirs
for ViT-B: for iNaturalist (github.com/facebookresearch/deit, issue 105), and for CIFAR-10 and Cars
(issue 45; with SGD). So the values for iNaturalist are DeiT's. For the other data sets,
augmentation, batch size and number of epochs are DeiT's for CIFAR-10 and Cars, while the optimiser
and the learning rate (AdamW, as for iNaturalist) are **ours**. `transfer` and `transfer-photos` are
ours throughout. Nothing here was measured on the paper's data sets.

Every recipe trains all subnets of the source together, one per step, at the source's image size
unless `--image-size` says otherwise.
"""

from __future__ import annotations

from prenas.recipe import TrainingRecipe, TransferRecipe
from prenas.recipe.data import Augmentation


def transfer() -> TransferRecipe:
    """30 epochs on other images, augmented as for the source: a starting point for small data sets.

    Source: the values are ours. The learning rate is that of this package's small recipes, the same
    for all layers.
    Cost: that of 30 epochs of the source's own training on the same number of images.
    Command: `prenas finetune RUN --data FOLDER --out runs/mine`.
    """
    return TransferRecipe(name="transfer", training=_short(4e-3))


def photos() -> TransferRecipe:
    """30 epochs on your own pictures, with random crops and RandAugment (at 64 pixels or more).

    Source: the values are ours, for sources that were trained for long on many images: a lower
    learning rate, which falls by a quarter from layer to layer below the classifier.
    Cost: that of 30 epochs of training at the source's image size; `--dry-run` measures it.
    Command: `prenas finetune RUN --recipe transfer-photos --data FOLDER --out runs/mine`.
    """
    augmentation = Augmentation(
        crop_scale=(0.35, 1.0), auto_augment="rand-m6-mstd0.5-inc1", flip=0.5, erasing=0.1
    )
    training = _short(2e-3, layer_decay=0.75)
    return TransferRecipe(name="transfer-photos", augmentation=augmentation, training=training)


def cifar10() -> TransferRecipe:
    """1,000 epochs on CIFAR-10, enlarged to the source's image size.

    Data: 50,000 training and 10,000 test pictures in 10 classes (Krizhevsky 2009), which
    torchvision downloads.
    Source: DeiT's values; optimiser and learning rate are ours.
    Cost: 5e7 images (`--dry-run` measures the time); `--set training.epochs=100` costs a tenth.
    Command: `prenas finetune SOURCE --recipe transfer-cifar10 --out runs/cifar10`.
    """
    return _deit("transfer-cifar10", "cifar10")


def cifar100() -> TransferRecipe:
    """1,000 epochs on CIFAR-100, enlarged to the source's image size.

    Data: 50,000 training and 10,000 test pictures in 100 classes (Krizhevsky 2009), which
    torchvision downloads.
    Source: DeiT's values for CIFAR-10; optimiser and learning rate are ours.
    Cost: 5e7 images (`--dry-run` measures the time); `--set training.epochs=100` costs a tenth.
    Command: `prenas finetune SOURCE --recipe transfer-cifar100 --out runs/cifar100`.
    """
    return _deit("transfer-cifar100", "cifar100")


def flowers() -> TransferRecipe:
    """1,000 epochs on Flowers-102, read from image folders.

    Data: 2,040 pictures for training and validation, 6,149 for test, in 102 classes (Nilsback and
    Zisserman 2008). The folder contains `train/`, `val/` and `test/`.
    Source: DeiT's values for CIFAR-10 and Cars; optimiser and learning rate are ours.
    Cost: 2e6 images; `--dry-run` measures the time.
    Command: `prenas finetune SOURCE --recipe transfer-flowers --data FLOWERS --out runs/flowers`.
    """
    return _deit("transfer-flowers")


def cars() -> TransferRecipe:
    """1,000 epochs on Stanford Cars, read from image folders.

    Data: 8,144 training and 8,041 test pictures in 196 classes (Krause et al. 2013). The folder
    contains `train/` and `test/`; a tenth of the training pictures is used for validation.
    Source: DeiT's values; optimiser and learning rate are ours.
    Cost: 8e6 images; `--dry-run` measures the time.
    Command: `prenas finetune SOURCE --recipe transfer-cars --data CARS --out runs/cars`.
    """
    return _deit("transfer-cars")


def pets() -> TransferRecipe:
    """1,000 epochs on Oxford-IIIT Pets, read from image folders.

    Data: 3,680 training and 3,669 test pictures in 37 classes (Parkhi et al. 2012). The folder
    contains `train/` and `test/`; a tenth of the training pictures is used for validation.
    Source: DeiT's values for CIFAR-10 and Cars; optimiser and learning rate are ours.
    Cost: 4e6 images; `--dry-run` measures the time.
    Command: `prenas finetune SOURCE --recipe transfer-pets --data PETS --out runs/pets`.
    """
    return _deit("transfer-pets")


def inat2018() -> TransferRecipe:
    """360 epochs on iNaturalist 2018, read from image folders.

    Data: 437,513 training and 24,426 validation pictures in 8,142 classes. The folder contains
    `train/` and `val/`.
    Source: DeiT's values, for ViT-B.
    Cost: 1.6e8 images; `--dry-run` measures the time.
    Command: `prenas finetune SOURCE --recipe transfer-inat2018 --data INAT --out runs/inat2018`.
    """
    return _inaturalist("transfer-inat2018")


def inat2019() -> TransferRecipe:
    """360 epochs on iNaturalist 2019, read from image folders.

    Data: about 265,000 training and 3,000 validation pictures in 1,010 classes. The folder contains
    `train/` and `val/`.
    Source: DeiT's values, for ViT-B.
    Cost: 9.5e7 images; `--dry-run` measures the time.
    Command: `prenas finetune SOURCE --recipe transfer-inat2019 --data INAT --out runs/inat2019`.
    """
    return _inaturalist("transfer-inat2019")


def _short(lr_per_512_images: float, layer_decay: float | None = None) -> TrainingRecipe:
    return TrainingRecipe(
        epochs=30,
        batch_size=64,
        lr_per_512_images=lr_per_512_images,
        warmup_epochs=2,
        warmup_share=0.2,
        clip_grad_norm=1.0,
        layer_decay=layer_decay,
    )


def _augmentation(erasing: float) -> Augmentation:
    """DeiT's augmentation for ImageNet, with another share of erased pictures."""
    return Augmentation(
        crop_scale=(0.08, 1.0),
        auto_augment="rand-m9-mstd0.5-inc1",
        flip=0.5,
        erasing=erasing,
        mixup=0.8,
        cutmix=1.0,
        repeats=3,
    )


def _deit(name: str, *images: str) -> TransferRecipe:
    return TransferRecipe(
        name=name,
        images=images,
        augmentation=_augmentation(erasing=0.0),
        training=_training(epochs=1000, drop_path=0.0),
    )


def _inaturalist(name: str) -> TransferRecipe:
    return TransferRecipe(
        name=name,
        images=(),
        augmentation=_augmentation(erasing=0.1),
        training=_training(epochs=360, drop_path=0.1),
    )


def _training(epochs: int, drop_path: float) -> TrainingRecipe:
    """A peak learning rate of 7.5e-5 at a batch size of 768."""
    return TrainingRecipe(
        epochs=epochs,
        batch_size=768,
        lr_per_512_images=5e-5,
        min_lr=1e-6,
        warmup_epochs=5,
        warmup_share=0.2,
        warmup_lr=1e-6,
        weight_decay=0.05,
        label_smoothing=0.1,
        drop_path=drop_path,
    )
