"""Evaluation: accuracy and loss of subnets, each as the plain network that is handed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Self

import torch
from pydantic import (
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset

from prenas.cost import BYTES_PER_PARAMETER, Costs, count, size_axis
from prenas.data import ImageSource, evaluation_batches, num_samples, readers_watched
from prenas.families.base import Arch, Settings, check_contains
from prenas.precision import Precision, computing
from prenas.processes import ALONE, Processes
from prenas.supernet import Statistics, Supernet
from prenas.values import Amount, Value

_IN_DETAIL = ("confusion", "class_hits", "mistakes")
_MATRIX_UP_TO_CLASSES = 100
_NUM_MISTAKES = 12
_TOP5_FROM_CLASSES = 20  # with fewer classes, top-5 says little
_MOST_CROPS = 256  # at once
_MOST_PIXELS = 2**19  # of all crops at once on a processor: see `images_at_once`
_MOST_PIXELS_ELSEWHERE = 2**24  # 256 crops of 256 pixels: larger ones may not fit
_MOST_HELD = 2 * 2**30  # bytes of weights: enough to make reading the images again cheap


class Mistake(Value):
    """An image that a network takes for another class."""

    image: Amount
    """Its number in the split, from 0."""
    label: Amount
    predicted: Amount
    probability: float = Field(ge=0, le=1)
    """What the network gives the predicted class, to four decimals."""


class Metrics(Value):
    """Results on one split."""

    top1: float = Field(ge=0, le=1)
    """Fraction of the images (0 to 1) whose highest logit is that of the label."""
    top5: float | None = Field(ge=0, le=1)
    """The same for the five highest logits; None if there are fewer than 20 classes."""
    loss: float
    """Mean cross-entropy, without label smoothing."""
    num_images: Amount
    confusion: tuple[tuple[Amount, ...], ...] | None = None
    """Number of images by label (row) and by predicted class (column). None for more than 100
    classes, and in files of earlier versions."""
    class_hits: tuple[tuple[Amount, Amount], ...] | None = None
    """(images classified correctly, images) of every class, for more than 100 classes."""
    mistakes: tuple[Mistake, ...] | None = None
    """The 12 mistakes that the network is surest of, the surest first. None if images have no
    numbers, because a loader yields them, and in files of earlier versions."""

    @model_validator(mode="after")
    def _classes_agree(self) -> Self:
        """The matrix is square, and no class is right more often than it occurs."""
        rows = self.confusion or ()
        if any(len(row) != len(rows) for row in rows):
            raise ValueError(f"confusion has {len(rows)} rows, but not as many columns in each")
        if any(right > number for right, number in self.per_class or ()):
            raise ValueError("class_hits has more images classified correctly than images")
        if self.per_class is not None and not any(number for _, number in self.per_class):
            raise ValueError("the classes have no images")
        return self

    @model_serializer(mode="wrap")
    def _without_unknown(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        unknown = {name for name in _IN_DETAIL if getattr(self, name) is None}
        return {name: value for name, value in fields.items() if name not in unknown}

    @property
    def summary(self) -> dict[str, float | int | None]:
        """The numbers about all classes together, by name."""
        return self.model_dump(exclude=set(_IN_DETAIL))

    @property
    def per_class(self) -> tuple[tuple[int, int], ...] | None:
        """(images classified correctly, images) of every class; None if that is not known."""
        if self.confusion is None:
            return self.class_hits
        return tuple((row[label], sum(row)) for label, row in enumerate(self.confusion))

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the classes' accuracies, each counting the same; None if they are not known.

        Classes without images are left out.
        """
        if self.per_class is None:
            return None
        return fmean(right / number for right, number in self.per_class if number)


class Evaluation(Value):
    """One subnet with its costs and results. Choose by `validation`; use `test` only to report."""

    arch: SerializeAsAny[Arch]
    costs: Costs
    """Name of a cost axis (`prenas.cost`) -> cost."""
    splits: dict[str, Metrics]


@torch.inference_mode()
@readers_watched()
def evaluate_networks(
    networks: Sequence[nn.Module],
    source: ImageSource,
    settings: Settings,
    *,
    batch_size: int | None = None,
    num_workers: int = 0,
    num_crops: int = 1,
    processes: Processes = ALONE,
    precision: Precision = "fp32",
) -> list[Metrics]:
    """Measures accuracy and loss of networks in evaluation mode on a split, which is read once.

    Logits are averaged over the crops of an image. With several processes, each evaluates a share
    of the images, and all of them get the results.

    Args:
        batch_size: images at once; None: `images_at_once`.
        num_crops: of every image in the split.

    Raises:
        ValueError: the split is empty, or the data do not fit the networks.
        ChildProcessError: a process that reads images has died.
    """
    device = next(networks[0].parameters()).device
    if batch_size is None:
        batch_size = images_at_once(settings, device, num_crops)
    totals = torch.zeros(len(networks), 4, dtype=torch.float64)
    tally = _Tally(len(networks), settings.num_classes)
    surest = None if _is_loaded(source) else _Surest(len(networks), num_samples(source), processes)
    with_top5 = settings.num_classes >= _TOP5_FROM_CLASSES
    batches = evaluation_batches(
        source, settings, batch_size, num_workers, processes=processes, device=device
    )
    for images, labels in batches:
        with computing(precision, device):
            logits = [_logits(network, images) for network in networks]
        totals[:, :3] += torch.stack([_sums(each, labels, with_top5) for each in logits]).cpu()
        totals[:, 3] += len(labels)
        tally.add(labels.cpu(), torch.stack([each.topk(1, dim=1).indices for each in logits]).cpu())
        if surest is not None:
            surest.add(labels, logits)
    processes.add_up(totals)
    processes.add_up(tally.counts)
    mistakes = [None] * len(networks) if surest is None else surest.of_all()
    num_images = int(totals[0, 3])
    if num_images == 0:
        raise ValueError("the split is empty: there are no images to evaluate on")
    if not torch.isfinite(totals).all():
        raise ValueError(
            "the loss is not finite, so the weights or the images contain non-finite values: train "
            "again with a lower training.lr_per_512_images, or fix the images"
        )
    return [
        Metrics(
            top1=top1,
            top5=top5 if with_top5 else None,
            loss=loss,
            num_images=num_images,
            mistakes=mistakes[number],
            **tally.fields(number),
        )
        for number, (top1, top5, loss) in enumerate((totals[:, :3] / num_images).tolist())
    ]


def images_at_once(settings: Settings, device: torch.device, num_crops: int = 1) -> int:
    """How many images are evaluated at once: 256 crops, but fewer large ones on a processor.

    There, what the layers compute should stay in its caches: EfficientNet-Lite0 takes about
    three times as long for 256 images of 224 pixels at once as for 10 at a time, and gigabytes.
    """
    height, width = settings.image_size
    pixels = _MOST_PIXELS if device.type == "cpu" else _MOST_PIXELS_ELSEWHERE
    most = min(_MOST_CROPS, pixels // (height * width))
    return max(1, most // num_crops)


class _Tally:
    """Counts images by label and predicted class; for many classes, by label and correctness."""

    def __init__(self, num_networks: int, num_classes: int) -> None:
        self._is_matrix = num_classes <= _MATRIX_UP_TO_CLASSES
        columns = num_classes if self._is_matrix else 2
        self.counts = torch.zeros(num_networks, num_classes, columns, dtype=torch.float64)

    def add(self, labels: Tensor, predicted: Tensor) -> None:
        """Counts a batch: its labels [B], and the classes that each network predicts [N, B, 1]."""
        for counts, classes in zip(self.counts, predicted.squeeze(2), strict=True):
            columns = classes if self._is_matrix else (classes == labels).long()
            cells = labels * counts.shape[1] + columns
            counts += cells.bincount(minlength=counts.numel()).view_as(counts)

    def fields(self, number: int) -> dict[str, Any]:
        """The fields of the metrics of a network."""
        rows = self.counts[number].long()
        if self._is_matrix:
            return {"confusion": tuple(map(tuple, rows.tolist()))}
        hits = torch.stack([rows[:, 1], rows.sum(dim=1)], dim=1)
        return {"class_hits": tuple(map(tuple, hits.tolist()))}


def _is_loaded(source: ImageSource) -> bool:
    """Whether a loader yields the images, which then have no numbers."""
    return isinstance(source, (DataLoader, IterableDataset))


class _Surest:
    """Keeps, for every network, the mistakes that it is surest of."""

    def __init__(self, num_networks: int, num_images: int, processes: Processes) -> None:
        self._processes, self._num_seen = processes, 0
        self._numbers = processes.share(range(num_images))  # of the images that this process gets
        self._kept = [torch.zeros(0, 4, dtype=torch.float64) for _ in range(num_networks)]

    def add(self, labels: Tensor, logits: Sequence[Tensor]) -> None:
        """Looks at a batch: its labels [B], and the logits [B, classes] of each network."""
        seen = self._numbers[self._num_seen : self._num_seen + len(labels)]
        self._num_seen += len(labels)
        columns = torch.tensor(seen), labels.cpu()
        for network, each in enumerate(logits):
            predicted = each.topk(1, dim=1).indices
            sure = each.softmax(dim=1).gather(1, predicted)
            both = predicted.squeeze(1).cpu(), sure.squeeze(1).cpu()
            rows = torch.stack([column.double() for column in (*columns, *both)], dim=1)
            wrong = rows[both[0] != columns[1]]
            wrong[:, 3].round_(decimals=4)
            self._kept[network] = _surest_of(torch.cat([self._kept[network], wrong]))

    def of_all(self) -> list[tuple[Mistake, ...]]:
        """The mistakes of each network, the same in every process."""
        rank, world_size = self._processes
        found = torch.zeros(world_size, len(self._kept), _NUM_MISTAKES, 4, dtype=torch.float64)
        for network, kept in enumerate(self._kept):
            found[rank, network, : len(kept)] = kept
        self._processes.add_up(found)
        return [
            tuple(
                Mistake(
                    image=int(image),
                    label=int(label),
                    predicted=int(predicted),
                    probability=probability,
                )
                for image, label, predicted, probability in _surest_of(
                    rows[rows[:, 3] > 0]
                ).tolist()
            )
            for rows in found.transpose(0, 1).flatten(1, 2)
        ]


def _surest_of(rows: Tensor) -> Tensor:
    """The first rows (image, label, predicted class, probability) by probability, then image."""
    by_image = rows[rows[:, 0].argsort()]
    return by_image[by_image[:, 3].argsort(descending=True, stable=True)][:_NUM_MISTAKES]


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    """Logits [B, classes] of images [B, C, H, W], or their mean over [B, crops, C, H, W]."""
    if images.ndim == 4:
        return network(images).float()  # type: ignore[no-any-return]
    num_images, num_crops = images.shape[:2]
    logits = network(images.flatten(0, 1)).float()
    return logits.view(num_images, num_crops, -1).mean(dim=1)  # type: ignore[no-any-return]


def _sums(logits: Tensor, labels: Tensor, with_top5: bool) -> Tensor:
    """Sums over the images [3]: top-1 hits, top-5 hits, losses."""
    return torch.stack(
        [
            _hits(logits, labels, 1),
            _hits(logits, labels, 5) if with_top5 else logits.new_zeros(()),
            cross_entropy(logits, labels, reduction="sum"),
        ]
    )


def _hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Number of labels among the k highest logits."""
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1).sum().float()


class _Shared(nn.Module):
    """A subnet that uses the weights of the supernet instead of a copy."""

    def __init__(self, supernet: Supernet, arch: Arch, statistics: Statistics) -> None:
        super().__init__()
        self.supernet, self.arch, self.statistics = supernet, arch, statistics

    def forward(self, images: Tensor) -> Tensor:
        return self.supernet(images, self.arch, statistics=self.statistics)  # type: ignore[no-any-return]


def top1_of_archs(
    supernet: Supernet,
    archs: Sequence[Arch],
    source: ImageSource,
    statistics: Sequence[Statistics],
    *,
    batch_size: int | None = None,
    num_workers: int = 0,
    num_crops: int = 1,
) -> list[float]:
    """Measures the top-1 accuracy (0 to 1) of many architectures on one split, to compare them.

    The split is read once and no weights are copied, so memory does not grow with the number of
    architectures. The supernet must be in evaluation mode. Arguments are as in `evaluate_archs`.
    """
    metrics = evaluate_networks(
        [_Shared(supernet, *pair) for pair in zip(archs, statistics, strict=True)],
        source,
        supernet.settings,
        batch_size=batch_size,
        num_workers=num_workers,
        num_crops=num_crops,
    )
    return [each.top1 for each in metrics]


def evaluate_archs(
    supernet: Supernet,
    archs: Sequence[Arch],
    splits: Mapping[str, ImageSource],
    statistics: Sequence[Statistics] | None = None,
    *,
    batch_size: int | None = None,
    num_workers: int = 0,
    num_crops: int = 1,
    processes: Processes = ALONE,
    precision: Precision = "fp32",
) -> list[Evaluation]:
    """Evaluates architectures that fit into the supernet, each on every split.

    Networks are cut and evaluated together as long as their weights fit into 2 GiB. If they do not,
    the splits are read again for the next ones.

    Args:
        statistics: the results of `prenas.evaluation.calibration.calibrate`, in the order of
            the architectures; required if the supernet `has_statistics`.
        batch_size: images at once; None: `images_at_once`.
        num_crops: of every image in the splits.
        precision: of the networks; their logits are float32.

    Raises:
        ValueError: an architecture does not fit, statistics are missing, or the data do not fit.
    """
    for arch in archs:  # before anything is evaluated
        check_contains(supernet.arch, arch)
    unknown = [None] * len(archs)
    known = [
        supernet.required(arch, own) for arch, own in zip(archs, statistics or unknown, strict=True)
    ]
    costs = [count(arch, supernet.settings) for arch in archs]
    found: dict[str, list[Metrics]] = {name: [] for name in splits}
    sizes = [BYTES_PER_PARAMETER * each[size_axis().name] for each in costs]
    for group in _groups_in_memory(sizes):
        networks = [supernet.cut(archs[number], known[number]).eval() for number in group]
        for name, source in splits.items():
            found[name] += evaluate_networks(
                networks,
                source,
                supernet.settings,
                batch_size=batch_size,
                num_workers=num_workers,
                num_crops=num_crops,
                processes=processes,
                precision=precision,
            )
        del networks  # before the next ones are cut
    return [
        Evaluation(
            arch=arch,
            costs=costs[number],
            splits={name: metrics[number] for name, metrics in found.items()},
        )
        for number, arch in enumerate(archs)
    ]


def _groups_in_memory(sizes: Sequence[int]) -> list[range]:
    """Splits the numbers of networks of these sizes, in bytes, into groups that may be held."""
    groups, first, held = [], 0, 0
    for number, size in enumerate(sizes):
        if number > first and held + size > _MOST_HELD:
            groups.append(range(first, number))
            first, held = number, 0
        held += size
    return [*groups, range(first, len(sizes))]
