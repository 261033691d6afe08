"""The largest sizes that spaces, descriptions and settings may state: one table for all families.

They are far beyond any network that is trained, and small enough that a mistyped number or a
damaged file is refused at once instead of filling the memory.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MOST_UNITS = 65_536
"""Channels, features, heads or images' channels."""
MOST_RATIO = 100
MOST_LAYERS = 1_000
"""In a whole network."""
MOST_STAGES = 64
"""In a description."""
MOST_LINKS = 256
"""Stages of a chain, which are the blocks of a model of timm."""
MOST_OPTIONS = 256
"""In the list of one axis."""
MOST_COMBINATIONS = 20_000
"""Of the widths at both ends of a stage and a layer's options: each is measured on a network."""
MOST_PIXELS = 4_096
"""Side of an image, a patch or a kernel."""
MOST_PATCHES = 65_536
"""In one image."""
MOST_CLASSES = 1_000_000

Units = Annotated[int, Field(ge=1, le=MOST_UNITS)]
Ratio = Annotated[float, Field(gt=0, le=MOST_RATIO)]
Depth = Annotated[int, Field(ge=1)]
"""`NOT_TOO_DEEP` limits lists of these."""
Pixels = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Classes = Annotated[int, Field(ge=1, le=MOST_CLASSES)]
PER_LAYER = Field(max_length=MOST_LAYERS)
"""For fields with one entry per layer."""
STAGES = Field(min_length=1, max_length=MOST_STAGES)
"""For fields with one entry per stage."""
