"""The preferred architectures that the authors published, one per interval of parameters.

Source: the files of chosen subnets in the authors' release (ICML 2023): 5 to 11 M parameters by 1 M
in `tiny`, 13 to 33 M by 5 M in `small`, 30 to 66 M by 12 M in `base`.
"""

from __future__ import annotations

from prenas.families.vit.space import SPACES, VitArch, VitSettings


def _arch(embed_dim: int, num_heads: str, mlp_ratio: str) -> VitArch:
    """One entry of the table; heads and ratios are given layer by layer, separated by spaces."""
    return VitArch(
        embed_dim=embed_dim,
        num_heads=tuple(map(int, num_heads.split())),
        mlp_ratio=tuple(map(float, mlp_ratio.split())),
    )


PUBLISHED: dict[str, tuple[VitArch, ...]] = {
    "tiny": (
        _arch(192, "4 4 4 4 3 3 3 3 3 4 3 4", "4 4 4 4 4 3.5 3.5 4 4 3.5 4 4"),
        _arch(216, "4 4 4 4 4 3 3 3 4 4 3 4", "4 3.5 4 3.5 3.5 3.5 3.5 3.5 3.5 3.5 3.5 3.5"),
        _arch(240, "3 3 3 3 3 3 3 3 3 3 3 3", "4 3.5 4 4 3.5 3.5 3.5 4 4 3.5 4 3.5"),
        _arch(240, "4 4 4 4 4 4 4 4 4 4 4 4", "4 4 4 4 4 3.5 4 4 4 3.5 4 4"),
        _arch(240, "4 4 4 4 4 3 3 3 4 4 3 4 3 4", "4 4 4 4 4 3.5 3.5 4 4 3.5 4 3.5 4 4"),
        _arch(240, "4 4 4 4 4 4 4 4 4 4 4 4 4 4", "4 4 4 4 4 4 4 4 4 4 4 4 4 4"),
    ),
    "small": (
        _arch(320, "7 7 7 7 7 7 7 7 6 7 5 6 5", "4 4 3.5 4 3.5 4 4 3.5 4 4 3.5 4 4"),
        _arch(384, "7 7 7 7 5 7 7 5 6 5 5 6 5", "4 4 3.5 4 3.5 4 3.5 3.5 4 4 3 4 3.5"),
        _arch(448, "7 7 7 7 5 7 7 5 6 5 5 6 5", "4 4 3 4 3 3.5 3 3 4 3 3 4 3"),
        _arch(448, "7 7 7 7 7 7 7 7 5 7 5 6 5 7", "4 4 3.5 4 3.5 4 4 3.5 4 4 3.5 4 4 3.5"),
    ),
    "base": (
        _arch(528, "9 9 9 9 9 9 9 9 9 9 9 9 9 9", "3 3 3 3 3 3 3 3 3 3 3 3 3.5 3"),
        _arch(
            576, "9 9 10 9 9 10 9 9 9 9 9 9 10 9", "3.5 4 3.5 3.5 3.5 4 3.5 3.5 3.5 3.5 4 3 3.5 4"
        ),
        _arch(624, "9 10 10 9 9 10 10 9 10 9 9 9 10 10", "4 4 3.5 4 4 4 4 4 4 4 4 4 4 4"),
    ),
}
"""Name of the space -> its published subnets, cheapest first."""

_MILLIONS = {"tiny": range(6, 12), "small": range(18, 34, 5), "base": range(42, 67, 12)}
"""Name of the space -> the upper limits of its intervals, in millions of parameters."""

TIMM_NAMES: dict[str, tuple[VitArch, VitSettings]] = {
    f"prenas_{space}_{millions}m": (arch, SPACES[space].settings)
    for space, archs in PUBLISHED.items()
    for arch, millions in zip(archs, _MILLIONS[space], strict=True)
}
"""Name in timm's registry, which states the limit -> the subnet, and the settings of its space."""
