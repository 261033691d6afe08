"""Fine-tuning: on your own pictures, and on the sets that the paper transfers to.

The paper's own values (ICML 2023) could not be had. DeiT's authors (arXiv 2012.12877) state theirs
for ViT-B: for iNaturalist (github.com/facebookresearch/deit, issue 105), and for CIFAR-10 and Cars
(issue 45; with SGD). So: the values for iNaturalist are DeiT's; for the other sets augmentation,
batch and length are DeiT's for CIFAR-10 and Cars, while optimiser and rate (AdamW, as for
iNaturalist) are **ours**; `transfer` and `transfer-photos` are ours throughout. Nothing here was
measured on the paper's sets.

Every recipe trains all subnets of the source together, one per step, at the source's image size
unless `--image-size` says otherwise.
"""

from __future__ import annotations

from prenas.recipe import TrainingRecipe, TransferRecipe
from prenas.recipe.data import Augmentation


def transfer() -> TransferRecipe:
    """30 epochs on other images, augmented as those of the source were: a start for small sets.

    Source: values are ours: the rate of this package's small recipes, for all layers alike.
    Cost: that of 30 epochs of the source's own training on as many images.
    Command: `prenas finetune RUN --data FOLDER --out runs/mine`.
    """
    return TransferRecipe(name="transfer", training=_short(4e-3))


def photos() -> TransferRecipe:
    """30 epochs on your own pictures, with random crops and RandAugment (at 64 pixels or more).

    Source: values are ours, for sources trained long on many images: a lower rate, which falls by a
    quarter from layer to layer below the head.
    Cost: that of 30 epochs of training at the source's image size; `--dry-run` measures it.
    Command: `prenas finetune RUN --recipe transfer-photos --data FOLDER --out runs/mine`.
    """
    augmentation = Augmentation(
        crop_scale=(0.35, 1.0), auto_augment="rand-m6-mstd0.5-inc1", flip=0.5, erasing=0.1
    )
    training = _short(2e-3, layer_decay=0.75)
    return TransferRecipe(name="transfer-photos", augmentation=augmentation, training=training)


def cifar10() -> TransferRecipe:
    """1,000 epochs of CIFAR-10, enlarged to the source's image size.

    Data: 50,000 and 10,000 pictures in 10 classes (Krizhevsky 2009), downloaded by torchvision.
    Source: DeiT's values; optimiser and rate are ours.
    Cost: 5e7 images (`--dry-run` measures the time); `--set training.epochs=100` is a tenth.
    Command: `prenas finetune SOURCE --recipe transfer-cifar10 --out runs/cifar10`.
    """
    return _deit("transfer-cifar10", "cifar10")


def cifar100() -> TransferRecipe:
    """1,000 epochs of CIFAR-100, enlarged to the source's image size.

    Data: 50,000 and 10,000 pictures in 100 classes (Krizhevsky 2009), downloaded by torchvision.
    Source: DeiT's values for CIFAR-10; optimiser and rate are ours.
    Cost: 5e7 images (`--dry-run` measures the time); `--set training.epochs=100` is a tenth.
    Command: `prenas finetune SOURCE --recipe transfer-cifar100 --out runs/cifar100`.
    """
    return _deit("transfer-cifar100", "cifar100")


def flowers() -> TransferRecipe:
    """1,000 epochs of Flowers-102, in image folders.

    Data: 2,040 pictures to train and validate, 6,149 to test, 102 classes (Nilsback and Zisserman
    2008); the folder holds `train/`, `val/` and `test/`.
    Source: DeiT's values for CIFAR-10 and Cars; optimiser and rate are ours.
    Cost: 2e6 images; `--dry-run` measures the time.
    Command: `prenas finetune SOURCE --recipe transfer-flowers --data FLOWERS --out runs/flowers`.
    """
    return _deit("transfer-flowers")


def cars() -> TransferRecipe:
    """1,000 epochs of Stanford Cars, in image folders.

    Data: 8,144 and 8,041 pictures in 196 classes (Krause et al. 2013); the folder holds `train/`
    and `test/`, a tenth of the training pictures validates.
    Source: DeiT's values; optimiser and rate are ours.
    Cost: 8e6 images; `--dry-run` measures the time.
    Command: `prenas finetune SOURCE --recipe transfer-cars --data CARS --out runs/cars`.
    """
    return _deit("transfer-cars")


def pets() -> TransferRecipe:
    """1,000 epochs of the Oxford-IIIT Pets, in image folders.

    Data: 3,680 and 3,669 pictures in 37 classes (Parkhi et al. 2012); the folder holds `train/`
    and `test/`, a tenth of the training pictures validates.
    Source: DeiT's values for CIFAR-10 and Cars; optimiser and rate are ours.
    Cost: 4e6 images; `--dry-run` measures the time.
    Command: `prenas finetune SOURCE --recipe transfer-pets --data PETS --out runs/pets`.
    """
    return _deit("transfer-pets")


def inat2018() -> TransferRecipe:
    """360 epochs of iNaturalist 2018, in image folders.

    Data: 437,513 and 24,426 pictures in 8,142 classes; the folder holds `train/` and `val/`.
    Source: DeiT's values, for ViT-B.
    Cost: 1.6e8 images; `--dry-run` measures the time.
    Command: `prenas finetune SOURCE --recipe transfer-inat2018 --data INAT --out runs/inat2018`.
    """
    return _inaturalist("transfer-inat2018")


def inat2019() -> TransferRecipe:
    """360 epochs of iNaturalist 2019, in image folders.

    Data: about 265,000 and 3,000 pictures in 1,010 classes; the folder holds `train/` and `val/`.
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
        clip_grad_norm=1.0,
        layer_decay=layer_decay,
    )


def _augmentation(erasing: float) -> Augmentation:
    """DeiT's, as for ImageNet but for the share of erased pictures."""
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
    """A peak rate of 7.5e-5 at batches of 768."""
    return TrainingRecipe(
        epochs=epochs,
        batch_size=768,
        lr_per_512_images=5e-5,
        min_lr=1e-6,
        warmup_epochs=5,
        warmup_lr=1e-6,
        weight_decay=0.05,
        label_smoothing=0.1,
        drop_path=drop_path,
    )
