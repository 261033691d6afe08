"""Recipes: everything that decides a run, as one frozen, checked value.

A recipe is made by a function in `prenas.recipe.catalogue`, changed by `with_overrides`, saved as
`recipe.json` in the run folder and compared field by field when a run is continued.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    Field,
    SerializeAsAny,
    field_serializer,
    field_validator,
    model_validator,
)

from prenas.families import get_family, get_space
from prenas.families.base import SearchSpace
from prenas.proxy.scores import DEFAULT_SCORE, Scope, check_score_name
from prenas.recipe.budgets import check_resolutions, parse_budgets
from prenas.recipe.data import (
    Augmentation,
    DataRecipe,
    Preprocessing,
)
from prenas.values import Value

IsomerRule = Literal["normalised", "raw", "front", "random"]
"""How layers are ranked for the larger options: `normalised` (the method) and `raw` block scores,
`front` (the first layers), `random` (the control that any claim must beat)."""

Enumeration = Literal["all", "published"]
"""`all` allocations, or the original code's, which skips those that give a middle option no
layer (it keeps 105 of 120 for 14 layers and 3 options)."""


class SearchRecipe(Value):
    """Zero-cost search: how subnets are scored and which budgets each get the best ones."""

    budgets: tuple[str, ...]
    """For example `params=5M:12M:1M`; see `prenas.recipe.budgets.parse_budgets`."""
    k: int = Field(1, ge=1)
    """Subnets kept per budget."""
    keep_partial: bool = False
    """Keep a grid's last interval when the step does not divide the range."""
    score: str = DEFAULT_SCORE
    scope: Scope = "all"
    """`blocks`: S sums only over tensors that belong to a layer, without stem and head."""
    isomers: IsomerRule = "normalised"
    enumeration: Enumeration = "all"
    images: Literal["noise", "data"] = "noise"
    """`noise`: normals with the data's mean and deviation; `data`: training images and labels."""
    num_images: int = Field(64, ge=1)
    batch_size: int = Field(4, ge=1)
    further_seeds: int = Field(0, ge=0)
    """Initialisations beyond the recipe's seed, scored only to report how far they agree."""
    exact_optimum: bool = False
    """Also find, and only report, the highest score within each budget over the whole space."""

    @field_validator("budgets")
    @classmethod
    def _readable(cls, budgets: tuple[str, ...]) -> tuple[str, ...]:
        parse_budgets(budgets, keep_partial=True)
        return budgets


Distillation = Literal["cross_entropy", "kl", "alpha"]
"""What is compared in in-place distillation, see `prenas.training.distillation`."""


class TeacherRecipe(Value):
    """A trained network that subnets learn from beside the labels (DeiT, arXiv 2012.12877)."""

    name: str
    """A model of timm, or the folder of a handed-over model."""
    weights: str | None = None
    """File of its weights; None downloads timm's, or takes the folder's."""
    mean: tuple[float, ...] | None = None
    """Per channel, of the images it was trained on; None: as timm, or the folder, says."""
    std: tuple[float, ...] | None = None
    """Their deviation."""
    loss: Literal["hard", "soft"] = "hard"
    """Learn its decision, or its probabilities."""
    share: float = Field(0.5, gt=0, le=1)
    """Its share of the loss; labels have the rest."""
    temperature: float = Field(3.0, gt=0)
    """Of soft probabilities."""


class TrainingRecipe(Value):
    """Preferred one-shot training: one preferred subnet per step, unless a field says more."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(64, ge=1)
    """Images per step, in all processes together."""
    grad_accum_steps: int = Field(1, ge=1)
    """Parts in which a process works through its share of a batch, to save memory."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of forward and backward passes; weights, gradients and moments are float32 always."""
    compile: bool = False
    """Runs every subnet in a form made by torch.compile: minutes at the beginning, then faster
    where networks are small."""
    lr_per_512_images: float = Field(5e-4, gt=0)
    """Peak learning rate is this times batch_size / 512."""
    min_lr: float = Field(1e-5, ge=0)
    warmup_epochs: float = Field(0, ge=0)
    """Linear rise from `warmup_lr`; a training shorter than this ends on the way up."""
    warmup_lr: float = Field(1e-6, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the features before the classifier."""
    drops_in: Literal["all", "largest"] = "all"
    """Which subnets of a step have drop_path and dropout; `largest` of a sandwich alone as
    AttentiveNAS."""
    clip_grad_norm: float | None = Field(None, gt=0)
    """Largest L2 norm of a step's gradient; None (`--set ...=none`) is no limit."""
    clip_grad_value: float | None = Field(None, gt=0)
    """Largest magnitude of each element of a step's gradient, in place of the norm."""
    optimizer: Literal["adamw", "masked_adamw", "sgd"] = "adamw"
    """Masked: moments, decay and step counts act only on what a step's subnets own. `sgd` has
    Nesterov momentum 0.9; rates and decays of AdamW do not suit it."""
    sandwich: int | None = Field(None, ge=0)
    """Per step the largest subnet, so many random ones, the smallest; None: one subnet per step."""
    sandwich_loss: Literal["mean", "sum"] = "mean"
    """Over the subnets of a step: mean as PreNAS' released code, sum as US-Nets and BigNAS."""
    inplace_distillation: Distillation | None = None
    """Sandwich: the others learn the probabilities of the largest instead of the labels, by
    cross-entropy (also `true`), Kullback-Leibler or adaptive alpha-divergence (AlphaNet)."""
    teacher: TeacherRecipe | None = None
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Keeps an exponential moving average of all weights with this decay per step."""
    final_weights: Literal["last", "ema", "best"] | None = None
    """What is handed over; None: the moving average if there is one, else the last weights. For
    `best` every evaluation is of all subnets."""
    skipped_steps_limit: int = Field(16, ge=1)
    """So many steps in a row without a finite loss or gradient end the training."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints within an epoch; None: at the end of epochs only."""
    keep_checkpoints: int = Field(2, ge=1)
    """The newest so many are kept, and the best on validation."""
    log_steps: int = Field(50, ge=1)
    """Steps between records of the running loss."""
    validate_epochs: int = Field(1, ge=0)
    """Epochs between evaluations of the smallest, middle and largest subnet; 0: never."""
    validate_all_epochs: int = Field(10, ge=0)
    """Epochs between evaluations of all subnets, of which the best weights are kept; 0: never."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Learning rate of a layer, relative to that of the layer above it; the head has the whole
    rate. For fine-tuning; None is one rate for all."""
    freeze: Literal["none", "backbone"] = "none"
    """`backbone`: only the head trains, everything else keeps its weights."""

    @field_validator("inplace_distillation", mode="before")
    @classmethod
    def _cross_entropy_from_true(cls, value: object) -> object:
        if isinstance(value, bool):  # as recipes saved it before there was a choice
            return "cross_entropy" if value else None
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingRecipe:
        if self.inplace_distillation and self.sandwich is None:
            raise ValueError(
                "inplace_distillation needs the largest subnet in every step: set sandwich too, "
                "e.g. sandwich=2"
            )
        if self.final_weights == "ema" and self.ema_decay is None:
            raise ValueError(
                "final_weights is 'ema' but there is no moving average: set ema_decay, e.g. 0.999"
            )
        if self.final_weights == "best" and not (self.validate_epochs or self.validate_all_epochs):
            raise ValueError(
                "final_weights is 'best' but nothing is evaluated: set validate_epochs"
            )
        if self.sandwich_loss == "sum" and self.sandwich is None:
            raise ValueError("sandwich_loss is 'sum' but there is no sandwich: set sandwich too")
        if self.drops_in == "largest" and self.sandwich is None:
            raise ValueError(
                "drops_in is 'largest' but a step without a sandwich has no largest subnet: set "
                "sandwich too, e.g. sandwich=2, or drops_in=all"
            )
        if self.clip_grad_norm is not None and self.clip_grad_value is not None:
            raise ValueError(
                f"clip_grad_norm {self.clip_grad_norm} and clip_grad_value "
                f"{self.clip_grad_value} are two ways to clip: set one of them to none"
            )
        if self.freeze == "backbone" and self.layer_decay is not None:
            raise ValueError(
                "layer_decay lowers the rates of layers that freeze='backbone' does not train: "
                "drop one of them"
            )
        return self

    @property
    def handed_over_weights(self) -> Literal["last", "ema", "best"]:
        """What is handed over, by name."""
        return self.final_weights or ("last" if self.ema_decay is None else "ema")

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up."""
        return self.lr_per_512_images * self.batch_size / 512


class CalibrationRecipe(Value):
    """What subnets with BatchNorm see of the training images before they are evaluated.

    Numbers of images as AttentiveNAS has them, rounded down to whole batches; families without
    BatchNorm see none.
    """

    num_images: int = Field(16_384, ge=2)
    """For the results and the models that are handed over."""
    batch_size: int = Field(256, ge=2)
    """Statistics are averages over batches of so many, or of fewer where fewer are asked for."""
    while_training: int = Field(2_048, ge=2)
    """Before each validation as the training goes on."""
    while_evolving: int = Field(8_192, ge=2)
    """Before the candidates of one-shot NAS are compared."""


class EvolutionRecipe(Value):
    """Evolutionary search in a trained supernet, AutoFormer's values (ICCV 2021)."""

    population: int = Field(50, ge=1)
    """Candidates of the first generation; later ones are filled up to it by random ones."""
    generations: int = Field(20, ge=1)
    """The random first one included."""
    num_parents: int = Field(10, ge=1)
    """The best so far, from which the next generation comes."""
    num_mutations: int = Field(25, ge=0)
    num_crossovers: int = Field(25, ge=0)
    mutation_prob: float = Field(0.2, ge=0, le=1)
    """Of every per-layer choice of a mutant: to be drawn anew."""
    depth_mutation_prob: float = Field(0.4, ge=0, le=1)
    """The same of every choice made once per network: the depth, and (as there) the width."""
    num_images: int | None = Field(None, ge=1)
    """Validation images that candidates are compared on; None means all."""

    @model_validator(mode="after")
    def _parents_are_of_the_population(self) -> EvolutionRecipe:
        if self.num_parents > self.population:
            raise ValueError(
                f"num_parents {self.num_parents} is more than the population of "
                f"{self.population}: lower it, or raise population"
            )
        return self


class TransferRecipe(Value):
    """Fine-tuning: what a run needs beside the space and the subnets, which its source gives.

    Preprocessing is the source's too, since its weights are made for it.
    """

    name: str
    images: tuple[str, ...] | None = None
    """As `--data` takes them, which replaces them; empty: `--data` must name them; None: those of
    the source, where it has any."""
    augmentation: Augmentation | None = None
    """None: that of the source, where it has any."""
    training: TrainingRecipe


class Recipe(Value):
    """One run: a space, budgets, data, and how the supernet is trained."""

    name: str
    seed: int = Field(0, ge=0)
    space: SerializeAsAny[SearchSpace]
    search: SearchRecipe
    data: DataRecipe | None = None
    training: TrainingRecipe | None = None
    calibration: CalibrationRecipe = CalibrationRecipe()
    evolution: EvolutionRecipe | None = None
    """One-shot NAS, the rival: train on the whole space, search the trained supernet by evolution
    afterwards; None for PreNAS."""

    @field_validator("space", mode="before")
    @classmethod
    def _space_of_its_family(cls, space: object) -> object:
        if isinstance(space, str):
            return get_space(space)
        if isinstance(space, Mapping):
            return get_family(str(space.get("family"))).space_type.model_validate(space)
        return space

    @field_serializer("space")
    def _whole_space(self, space: SearchSpace) -> dict[str, Any]:
        return space.model_dump(mode="json")

    @model_validator(mode="after")
    def _parts_agree(self) -> Recipe:
        check_score_name(self.search.score, self.space.family)
        budgets = parse_budgets(self.search.budgets, keep_partial=True)
        check_resolutions(budgets.kept, self.space)
        self.preprocessing.check_channels(self.space.settings.in_chans)
        if self.search.images == "data" and self.data is None:
            raise ValueError(
                "search.images is 'data' but the recipe has no data: choose 'noise' or add data"
            )
        if self.evolution is not None and self.training is None:
            raise ValueError(
                "evolution searches a trained supernet but the recipe has no training: set "
                "evolution to none, or choose a recipe that trains"
            )
        if self.evolution is not None and self.training is not None and self.training.compile:
            raise ValueError(
                "training.compile makes a graph per subnet, but evolution trains on the whole "
                "space, where nearly every step meets a new one: set training.compile=false"
            )
        return self

    @property
    def preprocessing(self) -> Preprocessing:
        """The data's preprocessing; ImageNet's where the recipe has no data."""
        return self.data.preprocessing if self.data else Preprocessing()
