"""Batches of pictures: a sample follows from (seed, epoch, image, copy), however it is made."""

import errno
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from data.making import GREY_BYTES, SETTINGS, loaded, recipe, write
from prenas.data import (
    Batch,
    ImageData,
    batches,
    bytes_ahead,
    check_splits,
    evaluation_batches,
    label_counts,
    labelled_sample,
    load_data,
    num_batches,
    num_samples,
    training_batches,
    training_epochs,
)
from prenas.data.augmentation import BatchAugmentation
from prenas.data.pictures import Pictures, Pixels
from prenas.data.reading import _outlive_requests, isolated, readers_watched
from prenas.families.vit.space import VitSettings
from prenas.processes import Processes
from prenas.randomness import isolated_global_state, numpy_generator, torch_generator
from prenas.recipe.data import Augmentation
from training.runs import global_state_untouched, own_data, value_error_of

EVERYTHING = Augmentation(
    crop_scale=(0.3, 1.0),
    auto_augment="rand-m9-mstd0.5-inc1",
    flip=0.5,
    crop_padding=1,
    shift_pixels=0.5,
    rotation_degrees=5.0,
    scale=0.1,
    erasing=0.5,
)
FLIPPED = Augmentation(
    crop_scale=(0.3, 1.0), auto_augment="rand-m9-mstd0.5-inc1", flip=0.5, erasing=0.5, mixup=0.8
)
MIXED = EVERYTHING.model_copy(update={"mixup": 0.8, "cutmix": 1.0, "mixing_mode": "elem"})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"train/{kind}/{n}.png" for kind in ("cat", "dog") for n in range(9)]
    return write(tmp_path_factory.mktemp("batches"), [*names, "val/cat/1.png", "val/dog/1.png"])


def epoch_of(data: ImageData, batch_size: int, seed: int = 3, epoch: int = 2) -> tuple[Any, Any]:
    """Images and labels of an epoch, in their order."""
    with global_state_untouched():
        batches = list(training_batches(data, SETTINGS, batch_size, seed, epoch))
    assert [len(b.labels) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert len(batches) == num_batches(data.train, batch_size)
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])


WAYS: dict[str, dict[str, Any]] = {
    "decoded in memory": {},
    "on disk": {"memory_gib": 0.0},
    "two workers": {"memory_gib": 0.0, "num_workers": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch_size", [1, 5, 18, 64])
@pytest.mark.parametrize("repeats", [1, 3])
def test_a_sample_does_not_depend_on_how_it_is_made(
    way: str, batch_size: int, repeats: int, photos: Path
) -> None:
    """With every change of single images switched on; to rounding, as sums over batches differ."""
    changes = EVERYTHING.model_copy(update={"repeats": repeats})
    images, labels = epoch_of(loaded(photos, augmentation=changes), 7)
    found, found_labels = epoch_of(loaded(photos, augmentation=changes, **WAYS[way]), batch_size)
    assert torch.equal(found_labels, labels)
    assert torch.allclose(found, images, atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_mixed_batches_do_not_depend_on_how_they_are_made(way: str, photos: Path) -> None:
    images, shares = epoch_of(loaded(photos, augmentation=MIXED), 5)
    found, found_shares = epoch_of(loaded(photos, augmentation=MIXED, **WAYS[way]), 5)
    assert torch.equal(found, images)
    assert torch.equal(found_shares, shares)
    assert shares.shape == (18, 4)
    assert torch.allclose(shares.sum(1), torch.ones(18), atol=1e-6)


def literal_batches(data: ImageData, batch_size: int, seed: int, epoch: int) -> list[Any]:
    """(images, labels, what the generators give next), image by image, without any short cut."""
    source = data.train
    assert isinstance(source, Pictures)
    assert data.augmentation is not None
    order = torch.randperm(len(source), generator=torch_generator(seed, "shuffle", epoch)).tolist()
    samples = [(image, copy) for image in order for copy in range(data.repeats)][: len(order)]
    batches = []
    for number, start in enumerate(range(0, len(samples), batch_size)):
        rows, generators = [], []
        for image, copy in samples[start : start + batch_size]:
            position = (epoch, image, copy) if copy else (epoch, image)
            with isolated_global_state(seed, "transforms", *position):
                pixels, label = source[image]
            generator = numpy_generator(seed, "sample", *position)
            rows.append((data.augmentation(pixels[None], [generator])[0], label))
            generators.append(generator)
        images, labels = torch.stack([row for row, _ in rows]), torch.tensor([n for _, n in rows])
        if data.mixing is not None:
            with isolated_global_state(seed, "mixing", epoch, number):
                images, labels = data.mixing(images, labels)
        batches.append((images, labels, [generator.random() for generator in generators]))
    return batches


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("changes", [FLIPPED, MIXED])
@pytest.mark.parametrize("repeats", [1, 3])
def test_batches_are_those_of_the_literal_form(
    num_workers: int, changes: Augmentation, repeats: int, photos: Path
) -> None:
    """Every image alone, all global generators kept and restored around it; to the bit."""
    changes = changes.model_copy(update={"repeats": repeats})
    data = loaded(photos, augmentation=changes, memory_gib=0.0, num_workers=num_workers)
    found = list(training_batches(data, SETTINGS, 5, 3, 2))
    expected = literal_batches(data, 5, 3, 2)
    assert len(found) == len(expected) == 4
    for batch, (images, labels, numbers) in zip(found, expected, strict=True):
        assert torch.equal(batch.labels, labels)
        assert [generator.random() for generator in batch.generators] == numbers
        if changes.rotation_degrees:  # interpolated, whose sums depend on the batch
            assert torch.allclose(batch.images, images, atol=1e-4)
        else:
            assert torch.equal(batch.images, images)


@pytest.mark.parametrize("changes", [EVERYTHING, MIXED])
def test_seeds_and_epochs_change_every_sample(changes: Augmentation, photos: Path) -> None:
    data = loaded(photos, augmentation=changes)
    seen = [epoch_of(data, 6, seed, epoch)[0] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    rows = [tuple(image.flatten().tolist()) for images in seen for image in images]
    assert len(set(rows)) == len(rows)
    assert torch.equal(epoch_of(data, 6, 0, 0)[0], seen[0])


# --- repeated augmentation -----------------------------------------------------------------------


class Numbered(Dataset[Any]):
    """The label is the index; the image is drawn by a transform that knows global numbers only."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(3, 8, 8), index


NUMBERED = VitSettings(image_size=(8, 8), num_classes=100, patch_size=4)


def numbered(source: Dataset[Any], **fields: Any) -> ImageData:
    return ImageData(source, source, None, tuple(map(str, range(100))), **fields)


@pytest.mark.parametrize("repeats", [1, 2, 3, 4, 30])
def test_copies_follow_each_other_and_epochs_keep_their_length(repeats: int) -> None:
    data = numbered(Numbered(23), repeats=repeats)
    orders = []
    for batch_size in (1, 4, 6, 23):
        batches = list(training_batches(data, NUMBERED, batch_size, 0, 0))
        orders.append(torch.cat([batch.labels for batch in batches]).tolist())
        assert len(batches) == num_batches(data.train, batch_size)
    labels = orders[0]
    assert orders == [labels] * 4
    assert len(labels) == 23
    groups = [labels[start : start + repeats] for start in range(0, 23, repeats)]
    assert all(len(set(group)) == 1 for group in groups)
    firsts = [group[0] for group in groups]
    assert len(set(firsts)) == len(firsts)
    plain = numbered(Numbered(23))
    order = torch.cat([b.labels for b in training_batches(plain, NUMBERED, 5, 0, 0)]).tolist()
    assert firsts == order[: len(firsts)]


def test_copies_differ_and_the_first_is_what_it_would_be_alone() -> None:
    """In what data sets draw, and in what each sample's generator gives."""

    def drawn(repeats: int) -> list[tuple[int, float, float]]:
        data = numbered(Numbered(12), repeats=repeats)
        return [
            (int(label), float(image.sum()), generator.random())
            for batch in training_batches(data, NUMBERED, 5, 0, 0)
            for image, label, generator in zip(*batch[:3], strict=True)
        ]

    once, thrice = drawn(1), drawn(3)
    assert len({image for _, image, _ in thrice}) == 12
    assert len({number for _, _, number in thrice}) == 12
    assert thrice[::3] == once[:4]


@pytest.mark.parametrize(("batch_size", "num_decoded"), [(6, 6), (18, 6), (4, 9), (1, 18)])
def test_a_picture_is_decoded_once_for_its_copies_in_a_batch(
    batch_size: int, num_decoded: int, photos: Path
) -> None:
    data = loaded(photos, memory_gib=0.0, augmentation=FLIPPED.model_copy(update={"repeats": 3}))
    assert isinstance(data.train, Pictures)
    opened: list[str] = []
    pictures = data.train.pictures

    def open_(name: str) -> Any:
        opened.append(name)
        return pictures.open(name)

    data.train.pictures = replace(pictures, open=open_)
    batches = list(training_batches(data, SETTINGS, batch_size, 0, 0))
    assert len(torch.cat([batch.labels for batch in batches])) == 18
    assert len(opened) == num_decoded


def test_copies_of_pictures_held_resized_are_augmented_anew(photos: Path) -> None:
    data = loaded(photos, augmentation=Augmentation(crop_padding=3, flip=0.5, repeats=3))
    assert isinstance(data.train, Pixels)
    images, _ = epoch_of(data, 9)
    assert len({tuple(image.flatten().tolist()) for image in images}) > 15


# --- epoch after epoch --------------------------------------------------------------------------


def parts_of(batch: Batch) -> tuple[Any, ...]:
    """All of a batch, for comparison: its generators by what they give next."""
    numbers = [generator.random() for generator in batch.generators]
    return batch.images.tolist(), batch.labels.tolist(), numbers, batch.total


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("start", "most", "processes"),
    [(0, None, Processes()), (2, 7, Processes()), (3, 6, Processes(2, 3)), (0, 3, Processes(0, 2))],
)
def test_epochs_in_a_row_are_the_single_epochs(
    num_workers: int, start: int, most: int | None, processes: Processes, photos: Path
) -> None:
    """Of 18 images in batches of 4, the last has 2: a third process has none of it."""
    changes = MIXED.model_copy(update={"repeats": 2})
    data = loaded(photos, augmentation=changes, memory_gib=0.0, num_workers=num_workers)
    alone = replace(data, num_workers=0)
    expected = [
        parts_of(batch)
        for epoch in (4, 5, 6)
        for batch in training_batches(
            alone, SETTINGS, 4, 3, epoch, start=start if epoch == 4 else 0, processes=processes
        )
    ][:most]
    with global_state_untouched():
        epochs = training_epochs(
            data, SETTINGS, 4, 3, range(4, 7), start=start, most=most, processes=processes
        )
        found = [[parts_of(batch) for batch in epoch] for epoch in epochs]
    assert [part for epoch in found for part in epoch] == expected
    assert len(found) == 3
    assert len(found[0]) == min(5 - start, most or 5)


class Signed(Dataset[Any]):
    """An image says which process has read it."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 8, 8), float(os.getpid())), 0


def test_readers_go_on_from_epoch_to_epoch_and_end_with_the_last() -> None:
    data = numbered(Signed(), num_workers=2)
    before = {*multiprocessing.active_children()}
    by_epoch = [
        {int(image[0, 0, 0]) for batch in epoch for image in batch.images}
        for epoch in training_epochs(data, NUMBERED, 3, 0, range(3))
    ]
    assert by_epoch[0] == by_epoch[1] == by_epoch[2]
    assert len(by_epoch[0]) == 2
    assert os.getpid() not in by_epoch[0]
    assert {*multiprocessing.active_children()} <= before


# --- what is sent and what is listed -------------------------------------------------------------

MIRRORED = Augmentation(crop_scale=(0.3, 1.0), color_jitter=0.2, flip=0.5)


@pytest.mark.parametrize(
    ("changes", "are_bytes"),
    [
        (MIRRORED, True),
        (MIRRORED.model_copy(update={"erasing": 0.1}), False),
        (MIRRORED.model_copy(update={"mixup": 0.1}), False),
        (MIRRORED.model_copy(update={"crop_padding": 1}), False),
        (MIRRORED.model_copy(update={"rotation_degrees": 1.0}), False),
    ],
)
def test_pictures_are_sent_as_bytes_if_the_result_is_the_same(
    changes: Augmentation, are_bytes: bool, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = loaded(photos, augmentation=changes, memory_gib=0.0, num_workers=1)
    expected = list(training_batches(replace(data, num_workers=0), SETTINGS, 5, 3, 2))
    received = []

    def noted(tensor: Tensor, device: torch.device) -> Tensor:
        received.append(tensor.dtype)
        return tensor.to(device)

    monkeypatch.setattr(batches, "sent", noted)
    found = list(training_batches(data, SETTINGS, 5, 3, 2))
    assert received[::2] == [torch.uint8 if are_bytes else torch.float32] * 4  # labels between
    assert [parts_of(batch) for batch in found] == [parts_of(batch) for batch in expected]
    bytes_per_image = 3 * 8 * 8 * (1 if are_bytes else 4)
    assert bytes_ahead(data, SETTINGS, 5) == 2 * 5 * bytes_per_image  # two batches of a reader
    assert bytes_ahead(data, SETTINGS, 1000) == 2 * 18 * bytes_per_image
    assert bytes_ahead(replace(data, num_workers=0), SETTINGS, 5) == 0


def test_evaluated_crops_are_sent_as_bytes(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = loaded(photos, crops=5, memory_gib=0.0)
    expected = list(evaluation_batches(data.validation, SETTINGS, 2))
    monkeypatch.setattr(Pictures, "normalized", lambda *_, out: out.fill_(7.0))  # in this process
    ((images, labels),) = evaluation_batches(data.validation, SETTINGS, 2, num_workers=1)
    assert torch.equal(labels, expected[0][1])
    assert images.shape == expected[0][0].shape
    assert (images == 7).all()


def test_augmented_pixels_in_memory_may_be_prepared_by_readers(photos: Path) -> None:
    changes = Augmentation(crop_padding=3, flip=0.5, erasing=0.5)
    alone, read = (loaded(photos, augmentation=changes, num_workers=n) for n in (0, 2))
    assert isinstance(read.train, Pixels)
    expected, found = (
        [parts_of(batch) for batch in training_batches(data, SETTINGS, 5, 3, 2)]
        for data in (alone, read)
    )
    assert found == expected
    assert bytes_ahead(read, SETTINGS, 5) == 2 * 2 * 5 * 3 * 8 * 8 * 4


def test_an_evaluation_of_endless_images_starts_at_once() -> None:
    """Nothing is listed before it is needed."""

    class Endless(Numbered):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.zeros(3, 8, 8), index % 7

    batches = evaluation_batches(Endless(10**15), NUMBERED, 4, processes=Processes(1, 3))
    found = [next(batches)[1].tolist() for _ in range(2)]
    assert found == [[1, 4, 0, 3], [6, 2, 5, 1]]


# --- evaluation ----------------------------------------------------------------------------------


def test_evaluation_sees_no_augmentation(photos: Path) -> None:
    changed, plain = loaded(photos, augmentation=MIXED), loaded(photos)
    for name, split in plain.splits.items():
        (images, labels), (others, other_labels) = (
            next(iter(evaluation_batches(one, SETTINGS, 9)))
            for one in (split, changed.splits[name])
        )
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 5, 50])
def test_evaluation_is_in_order_whoever_reads(
    num_workers: int, batch_size: int, photos: Path
) -> None:
    held, on_disk = loaded(photos), loaded(photos, memory_gib=0)
    assert isinstance(on_disk.train, Pictures)
    with global_state_untouched():
        batches = list(evaluation_batches(on_disk.train, SETTINGS, batch_size, num_workers))
    assert isinstance(held.train, Pixels)
    images, labels = held.train[list(range(18))]
    assert torch.equal(torch.cat([batch for batch, _ in batches]), images)
    assert torch.equal(torch.cat([batch for _, batch in batches]), labels)


@pytest.mark.parametrize("fields", [{}, {"memory_gib": 0.0}, {"augmentation": EVERYTHING}])
def test_a_sample_for_the_search_is_of_training_pictures(
    fields: dict[str, Any], photos: Path
) -> None:
    data = loaded(photos, **fields)
    with global_state_untouched():
        images, labels = labelled_sample(data.train, SETTINGS, 10, seed=1)
    assert images.shape == (10, 3, 8, 8)
    again, _ = labelled_sample(data.train, SETTINGS, 10, seed=1)
    assert torch.equal(images, again)
    assert set(labels.tolist()) == {0, 1}


# --- checked before anything is spent ------------------------------------------------------------


def test_splits_of_pictures_that_suit_pass(photos: Path) -> None:
    check_splits(loaded(photos), SETTINGS)
    check_splits(loaded(photos, crops=10), SETTINGS)
    assert num_samples(loaded(photos).train) == 18


def test_unsuitable_splits_are_refused(photos: Path) -> None:
    other = VitSettings(image_size=(16, 8), num_classes=4, patch_size=4)
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\)"):
        check_splits(loaded(photos), other)
    empty = TensorDataset(torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.long))
    data = own_data()
    grey = VitSettings(image_size=(8, 8), in_chans=1, num_classes=10, patch_size=4)
    split = ImageData(data.train, empty, None, data.class_names)
    with pytest.raises(ValueError, match="the validation split is empty"):
        check_splits(split, grey)


def test_a_failing_picture_on_a_worker_is_named(photos: Path, tmp_path: Path) -> None:
    names = [f"{split}/{kind}/{n}.png" for split in ("train", "val") for kind in "ab" for n in "12"]
    root = write(tmp_path / "set", names)
    (root / "train/a/1.png").write_text("broken")
    data = loaded(root, memory_gib=0, num_workers=1)
    message = value_error_of(lambda: list(training_batches(data, SETTINGS, 4, 0, 0)))
    assert message is not None
    assert "a/1.png" in message
    assert "data.unreadable=skip" in message


class Refused(Dataset[Any]):
    """Its images cannot be read, or do not suit the network."""

    def __init__(self, image: Tensor | None) -> None:
        self._image = image

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self._image is None:
            raise ValueError("upside down")
        return self._image, 0


@pytest.mark.parametrize(
    ("image", "words"), [(None, "upside down"), (torch.zeros(3, 9, 9), "shape")]
)
@pytest.mark.parametrize("use", ["training", "evaluation"])
def test_readers_end_with_an_error(image: Tensor | None, words: str, use: str) -> None:
    """Not with the garbage collection, which may come late, and would wait for them."""
    before = {*multiprocessing.active_children()}
    data = numbered(Refused(image), num_workers=2)
    batches = {
        "training": lambda: training_batches(data, NUMBERED, 3, 0, 0),
        "evaluation": lambda: evaluation_batches(data.train, NUMBERED, 3, num_workers=2),
    }[use]()
    with pytest.raises(ValueError, match=words) as caught:
        list(batches)
    assert caught.value.__traceback__ is not None  # which refers to what reads
    assert {*multiprocessing.active_children()} <= before


def test_lasting_readers_of_a_loader_outlive_what_is_given_up() -> None:
    """Their owner may go on with them."""
    loader = DataLoader(Signed(), num_workers=2, persistent_workers=True)
    first = next(isolated(loader, seed=0, epoch=0))[0]
    pids = {int(images[0, 0, 0, 0]) for images, _ in isolated(loader, seed=0, epoch=1)}
    assert len(pids) == 2
    assert int(first[0, 0, 0, 0]) in pids


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unsuitable_images_are_refused_in_words_wherever_they_are_read(num_workers: int) -> None:
    """Without the traceback of a process before them."""
    other = VitSettings(image_size=(16, 8), num_classes=100, patch_size=4)
    data = numbered(Numbered(10), num_workers=num_workers)
    message = value_error_of(lambda: list(training_batches(data, other, 4, 0, 0)))
    assert message is not None
    assert message.startswith("the data set yields images of shape (4, 3, 8, 8)")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_augmentation_that_refuses_is_heard_wherever_it_runs(num_workers: int) -> None:
    def refuse(images: Tensor, generators: object) -> Tensor:
        raise ValueError("these images are upside down")

    data = numbered(Numbered(10), num_workers=num_workers, augmentation=refuse)
    message = value_error_of(lambda: list(training_batches(data, NUMBERED, 4, 0, 0)))
    assert message == "these images are upside down"


class _Broken:
    """A loader whose next batch lies in the memory of a process that may have died."""

    dataset = sampler = None
    num_workers, persistent_workers = 0, False

    def __init__(self, *readers: multiprocessing.Process) -> None:
        self._workers = readers

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        raise ConnectionResetError("reset by peer")


def test_a_batch_that_died_with_its_reader_is_told_from_a_broken_connection() -> None:
    reader = multiprocessing.get_context("fork").Process(target=lambda: os._exit(1))
    reader.start()
    with pytest.raises(ChildProcessError, match=r"reads images crashed \(reset by peer\)"):
        next(isolated(_Broken(reader), 0, 0))  # type: ignore[arg-type]
    assert reader.pid is not None
    with pytest.raises(ChildProcessError):  # no longer there for PyTorch, which waits for it, too
        os.waitid(os.P_PID, reader.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    with pytest.raises(ConnectionResetError):
        next(isolated(_Broken(), 0, 0))  # type: ignore[arg-type]


_IN_A_READER = """Caught RuntimeError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "reading.py", line 1, in somewhere
RuntimeError: """


@pytest.mark.parametrize(
    "problem",
    [
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
        "unable to write to file </torch_1_2_0>: No space left on device (28)",
    ],
)
def test_a_small_dev_shm_is_one_sentence(problem: str) -> None:
    """PyTorch puts the traceback of the reader into its message."""
    with pytest.raises(ChildProcessError) as caught, readers_watched():
        raise RuntimeError(f"{_IN_A_READER}{problem}\n")
    message = str(caught.value)
    assert "cannot share memory (No space left on device (28)): /dev/shm is too small" in message
    assert "data.num_workers=0" in message
    assert "\n" not in message


def test_an_error_of_a_users_own_images_is_not_a_crash() -> None:
    with pytest.raises(RuntimeError, match="upside down"), readers_watched():
        raise RuntimeError(f"{_IN_A_READER}upside down\n")


def test_readers_that_run_out_of_shared_memory(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through real processes, which inherit the patch."""

    def full(tensor: Tensor) -> None:
        raise RuntimeError("unable to write to file </torch_1_2_0>: No space left on device (28)")

    data = loaded(photos, num_workers=2, memory_gib=0)
    monkeypatch.setattr(Tensor, "share_memory_", full)
    with pytest.raises(ChildProcessError, match=r"cannot share memory \(No space left"):
        list(training_batches(data, SETTINGS, 4, 0, 0))


def test_a_read_only_dev_shm_starts_no_readers(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(context: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(multiprocessing.context.BaseContext, "Lock", refuse)
    before = {*multiprocessing.active_children()}
    data = loaded(photos, num_workers=2, memory_gib=0)
    with pytest.raises(ChildProcessError, match=r"cannot share memory \(Read-only file system\)"):
        list(training_batches(data, SETTINGS, 4, 0, 0))
    assert {*multiprocessing.active_children()} <= before
    alone = loaded(photos, num_workers=0, memory_gib=0)
    assert len(list(training_batches(alone, SETTINGS, 4, 0, 0))) == 5


def test_images_of_a_loader_stay_what_they_are() -> None:
    """It may give the same tensors again; the changes of a batch work in place."""
    plain = own_data(num_images=8)
    images, labels = torch.full((8, 1, 8, 8), 5.0), torch.arange(8)

    class Given(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            return images[index], labels[index]

    loader = DataLoader(Given(), batch_size=8, collate_fn=lambda _: (images, labels))
    own_changes = BatchAugmentation(Augmentation(erasing=1.0), GREY_BYTES)
    data = ImageData(loader, plain.validation, None, plain.class_names, augmentation=own_changes)
    settings = VitSettings(image_size=(8, 8), in_chans=1, num_classes=10, patch_size=4, head_dim=4)
    (batch,) = training_batches(data, settings, 8, 0, 0)
    assert (batch.images != 5).any()
    assert (images == 5).all()


def test_own_augmentation_gets_a_generator_per_copy() -> None:
    def give(images: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
        return torch.tensor([g.random() for g in generators])[:, None, None, None].expand_as(images)

    data = numbered(Numbered(10), repeats=2, augmentation=give)
    numbers = [
        float(image[0, 0, 0])
        for batch in training_batches(data, NUMBERED, 4, 0, 0)
        for image in batch.images
    ]
    assert len(set(numbers)) == 10


# --- loaders from Python -------------------------------------------------------------------------


class Rotating:
    """A sampler that wants to be told the epoch, like those of several processes."""

    def __init__(self, length: int) -> None:
        self.length, self.epoch = length, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Any:
        return iter([(place + self.epoch) % self.length for place in range(self.length)])


@pytest.mark.parametrize("kind", ["shuffling", "its generator", "sampler's generator", "set_epoch"])
def test_an_epoch_of_a_loader_does_not_depend_on_the_epochs_before(kind: str) -> None:
    """As a training meets it that is continued in another process."""

    def labels(epochs: Sequence[int]) -> list[int]:
        plain = own_data(num_images=40)
        source = plain.train
        assert isinstance(source, Dataset)
        own = torch.Generator().manual_seed(5)
        options: dict[str, dict[str, Any]] = {
            "shuffling": {"shuffle": True},
            "its generator": {"shuffle": True, "generator": own},
            "sampler's generator": {"sampler": RandomSampler(range(40), generator=own)},
            "set_epoch": {"sampler": Rotating(40)},
        }
        loader = DataLoader(source, batch_size=8, **options[kind])
        data = ImageData(loader, plain.validation, None, plain.class_names)
        settings = VitSettings(
            image_size=(8, 8), in_chans=1, num_classes=10, patch_size=4, head_dim=4
        )
        found = [list(training_batches(data, settings, 8, 3, epoch)) for epoch in epochs]
        return [int(label) for batch in found[-1] for label in batch.labels]

    assert labels([2]) == labels([0, 1, 2])
    assert labels([1]) != labels([2])


# --- labels without reading ----------------------------------------------------------------------


class Targets(Dataset[Any]):
    """As torchvision's data sets: labels in `targets`, images only when they are asked for."""

    def __init__(self, targets: Any, length: int = 4) -> None:
        self.targets, self._length = targets, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("counting reads no image")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (TensorDataset(torch.zeros(4, 1), torch.tensor([2, 0, 2, 2])), (1, 0, 3)),
        (DataLoader(TensorDataset(torch.zeros(4, 1), torch.tensor([1, 0, 1, 1]))), (1, 3)),
        (Targets([0, 0, 1, 2]), (2, 1, 1)),
        (Targets(torch.tensor([1, 1, 1, 1])), (0, 4)),
        (Targets([0, 1]), None),  # of other images, perhaps
        (Targets(torch.zeros(4, 3)), None),
        (Targets(torch.zeros(4)), None),
        (Targets([0, 1, -1, 0]), None),
        (Targets(None), None),
    ],
)
def test_labels_are_counted_without_reading(source: Any, expected: Any) -> None:
    assert label_counts(source) == expected


@pytest.mark.parametrize("memory_gib", [0, 4])
def test_labels_of_pictures_are_counted(memory_gib: float, tmp_path: Path) -> None:
    names = [f"a/{n}.png" for n in range(20)] + [f"b/{n}.png" for n in range(10)]
    photos = write(tmp_path / "photos", names)
    for augmentation in (Augmentation(), Augmentation(crop_scale=(0.5, 1.0))):
        fields = recipe(photos, memory_gib=memory_gib, augmentation=augmentation)
        assert label_counts(load_data(fields, SETTINGS).train) == (16, 8)


class StoppedAtOnce(DataLoader[Any]):
    """All of its readers are asked to stop as soon as they exist, as by a job scheduler."""

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        pids = [str(worker.pid) for worker in iterator._workers]  # type: ignore[attr-defined]
        subprocess.run(["kill", "-TERM", *pids], check=True)  # not from their own parent
        return iterator


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="readers cannot tell who asks")
def test_readers_outlive_a_request_from_their_first_moment() -> None:
    data = TensorDataset(torch.arange(8.0))
    for _ in range(5):
        loader = StoppedAtOnce(
            data,
            num_workers=2,
            multiprocessing_context="fork",
            worker_init_fn=_outlive_requests,
        )
        found = [float(batch[0]) for batch in isolated(loader, seed=0, epoch=0)]
        assert found == list(range(8))
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
