"""Data: named data sets, folders and tars, and reproducible batches of them."""

from __future__ import annotations

from prenas.data.ahead import sent
from prenas.data.batches import (
    bytes_ahead,
    check_splits,
    drawn_subset,
    evaluation_batches,
    labelled_sample,
    training_batches,
    training_epochs,
)
from prenas.data.images import (
    CENTRE_CROP,
    UNDIVIDED,
    Batch,
    ImageData,
    ImageSource,
    as_batch,
    label_counts,
    num_batches,
    num_samples,
    part_slices,
)
from prenas.data.naming import with_data
from prenas.data.reading import readers_watched
from prenas.data.sources import check_data_name, load_data, open_data, undivided

__all__ = [
    "CENTRE_CROP",
    "UNDIVIDED",
    "Batch",
    "ImageData",
    "ImageSource",
    "as_batch",
    "bytes_ahead",
    "check_data_name",
    "check_splits",
    "drawn_subset",
    "evaluation_batches",
    "label_counts",
    "labelled_sample",
    "load_data",
    "num_batches",
    "num_samples",
    "open_data",
    "part_slices",
    "readers_watched",
    "sent",
    "training_batches",
    "training_epochs",
    "undivided",
    "with_data",
]
