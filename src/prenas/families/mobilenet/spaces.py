"""The named convolutional spaces.

`mobilenet` is the space of AttentiveNAS (arXiv 2011.09011) and AlphaNet (arXiv 2102.07954), for
which subnets were published; `ofa-mobilenetv3` is that of Once-for-All (arXiv 1908.09791); the
others are our own, for small images.
"""

from __future__ import annotations

from typing import Any

from prenas.families.mobilenet.arch import MobileNetSettings
from prenas.families.mobilenet.space import MobileNetSpace, StageOptions


def _stage(width: tuple[int, ...], depth: tuple[int, ...], **options: Any) -> StageOptions:
    return StageOptions(width=width, depth=depth, **{"kernel": (3, 5), **options})


_MOBILENET = MobileNetSpace(
    name="mobilenet",
    resolution=(192, 224, 256, 288),
    schedule=((210_000_000, 192), (430_000_000, 224), (560_000_000, 256)),
    stem=(16, 24),
    stages=(
        _stage((16, 24), (1, 2), expand=(1,)),
        _stage((24, 32), (3, 4, 5), expand=(4, 5, 6), stride=2),
        _stage((32, 40), (3, 4, 5, 6), expand=(4, 5, 6), stride=2, se=True),
        _stage((64, 72), (3, 4, 5, 6), expand=(4, 5, 6), stride=2),
        _stage((112, 120, 128), (3, 4, 5, 6, 7, 8), expand=(4, 5, 6), se=True),
        _stage((192, 200, 208, 216), (3, 4, 5, 6, 7, 8), expand=(6,), stride=2, se=True),
        _stage((216, 224), (1, 2), expand=(6,), se=True),
    ),
    head=(1792, 1984),
)

_OFA_STAGE: dict[str, Any] = {"kernel": (3, 5, 7), "expand": (3, 4, 6)}

_OFA = MobileNetSpace(
    name="ofa-mobilenetv3",
    resolution=tuple(range(128, 225, 4)),
    stem=(16,),
    stages=(
        _stage((16,), (1,), kernel=(3,), expand=(1,), act="relu"),
        _stage((24,), (2, 3, 4), stride=2, act="relu", **_OFA_STAGE),
        _stage((40,), (2, 3, 4), stride=2, act="relu", se=True, **_OFA_STAGE),
        _stage((80,), (2, 3, 4), stride=2, act="hard_swish", **_OFA_STAGE),
        _stage((112,), (2, 3, 4), act="hard_swish", se=True, **_OFA_STAGE),
        _stage((160,), (2, 3, 4), stride=2, act="hard_swish", se=True, **_OFA_STAGE),
    ),
    head=(1280,),
    tied=False,
    settings=MobileNetSettings(stem_act="hard_swish", head_act="hard_swish", shortcut="identity"),
)

_MICRO = MobileNetSpace(
    name="mobilenet-micro",
    stem=(8,),
    stages=(
        _stage((8,), (1,), kernel=(3,), expand=(1,)),
        _stage((16, 24), (1, 2, 3), expand=(2, 3, 4), stride=2),
        _stage((24, 32, 40), (1, 2, 3, 4), expand=(2, 3, 4), stride=2, se=True),
    ),
    head=(64, 96),
    settings=MobileNetSettings(image_size=(28, 28), num_classes=10, head_expand=4),
)

_SMALL = MobileNetSpace(
    name="mobilenet-small",
    stem=(16,),
    stages=(
        _stage((16,), (1,), kernel=(3,), expand=(1,), stride=2),
        _stage((16, 24), (1, 2, 3), expand=(2, 3, 4), stride=2),
        _stage((32, 40), (2, 3, 4), expand=(2, 3, 4), se=True),
        _stage((48, 56, 64), (1, 2, 3, 4), expand=(2, 3, 4), stride=2),
        _stage((80, 96), (1, 2), expand=(3, 4), se=True),
    ),
    head=(192, 256),
    settings=MobileNetSettings(image_size=(28, 28), num_classes=10, stem_stride=1, head_expand=4),
)

SPACES = {space.name: space for space in (_MOBILENET, _OFA, _MICRO, _SMALL)}
