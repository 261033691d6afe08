"""Recipes: everything that determines a run, as one frozen and validated value.

Functions in `prenas.recipe.catalogue` make recipes, and `with_overrides` changes them. A run saves
its recipe as `recipe.json` and compares it field by field when it is continued.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializeAsAny,
    field_serializer,
    field_validator,
    model_validator,
)

from prenas.families import get_family, get_space
from prenas.families.base import SearchSpace
from prenas.precision import Precision
from prenas.proxy.scores import (
    COUNT_SCORE,
    PUBLISHED_SCORE,
    UNIT_SCORES,
    Scope,
    check_score_name,
    is_sum_over_layers,
)
from prenas.recipe.budgets import check_resolutions, parse_budgets
from prenas.recipe.data import (
    Augmentation,
    DataRecipe,
    Preprocessing,
)
from prenas.values import LONGEST_NAME, MOST_AMOUNT, Value

LARGEST_NUMBER = 100_000_000  # of images, steps, epochs and the like

IsomerRule = Literal["published", "raw", "even", "nested", "front", "random", "worst"]
"""Which of a stage's interchangeable layers get the larger options: those of the highest block
scores, as the method is `published`, or of the highest `raw` ones; layers spread `even` over the
stage, or spread in one order for all subnets, so that these are `nested`; the `front`. Controls:
`random` layers, and those of the `worst` block scores."""

Strategy = Literal["best", "skeletons", "random"]
"""Which subnets of a budget are chosen: the `best` by score; the best of each of k different shapes
(`skeletons`, a width and a depth per stage); or `random` ones, all equally likely (a control: any
claimed gain must exceed it)."""

Enumeration = Literal["all", "published"]
"""`all` allocations, or only those that the original code enumerates. It skips allocations that
use a middle option for no layer (and so keeps 105 of 120 for 14 layers and 3 options)."""


class SearchRecipe(Value):
    """Zero-cost search: how subnets are scored, and the budgets for which the best are chosen."""

    budgets: tuple[str, ...]
    """For example `params=5M:12M:1M`; see `prenas.recipe.budgets.parse_budgets`."""
    strategy: Strategy = "best"
    k: int = Field(1, ge=1, le=1_000)
    """Subnets kept per budget."""
    shape_distance: int = Field(1, ge=1, le=1_000)
    """How far apart the shapes of `skeletons` are at least: the steps between their widths and
    depths in the lists of options, summed over stages."""
    keep_partial: bool = False
    """Keep a grid's last interval when the step does not divide the range."""
    score: str = PUBLISHED_SCORE
    """`params` only counts parameters."""
    power: float = Field(1.0, gt=0, le=16, allow_inf_nan=False)
    """Sum what each layer scores, to this power. Below 1, depth counts for more, above 1 for less;
    1 is the published score."""
    allocation: Literal["best", "equal", "uniform"] = "best"
    """How the units of a trained network are shared among its layers: `best` for the sum of their
    scores; `uniform`, the best of those with equally many in every layer, which timm builds by
    arguments if it is a plain ViT; or `equal`, the same share of every layer, for comparison."""
    scope: Scope = "all"
    """`blocks`: the score sums only over tensors that belong to a layer, without stem and head."""
    isomers: IsomerRule = "published"
    enumeration: Enumeration = "all"
    images: Literal["noise", "data"] = "noise"
    """`noise`: normal random numbers with the data's mean and deviation; `data`: training images
    and their labels."""
    num_images: int = Field(64, ge=1, le=1_000_000)
    batch_size: int = Field(4, ge=1, le=LARGEST_NUMBER)
    further_seeds: int = Field(0, ge=0, le=1_000)
    """Number of extra seeds that are scored, only to report how well they agree."""
    exact_optimum: bool = False
    """Also compute the highest score within each budget over the whole space, only to report it."""

    @field_validator("isomers", mode="before")
    @classmethod
    def _named_as_now(cls, rule: object) -> object:
        # Recipes saved before the rule was named after where it comes from.
        return "published" if rule == "normalised" else rule

    @model_validator(mode="after")
    def _powers_are_of_layers(self) -> Self:
        if self.power != 1 and not is_sum_over_layers(self.score):
            raise ValueError(
                f"search.power {self.power:g} applies to what each layer scores, but search.score "
                f"{self.score!r} is no sum over layers that are never negative: set search.power=1,"
                f" or search.score to {COUNT_SCORE!r} or {PUBLISHED_SCORE!r}"
            )
        return self

    @model_validator(mode="after")
    def _strategy_suits_the_rest(self) -> Self:
        if self.shape_distance != 1 and self.strategy != "skeletons":
            raise ValueError(
                f"search.shape_distance {self.shape_distance} is how far skeletons are apart, but "
                f"search.strategy is {self.strategy!r}: set search.strategy=skeletons, or leave "
                "out shape_distance"
            )
        if self.strategy != "best" and self.score in UNIT_SCORES:
            raise ValueError(
                f"search.strategy {self.strategy!r} chooses among untrained networks, but "
                f"search.score {self.score!r} scores the units of a trained one: set "
                "search.strategy=best (search.score=random is a control for cuts)"
            )
        if self.strategy == "random":
            for name, value in (
                ("enumeration", self.enumeration != "all"),
                ("further_seeds", self.further_seeds),
                ("exact_optimum", self.exact_optimum),
            ):
                if value:
                    raise ValueError(
                        f"search.{name} {getattr(self, name)} is about what scores choose, but "
                        "search.strategy=random draws from all architectures without scores: leave "
                        f"out {name}, or choose another strategy"
                    )
        return self

    @field_validator("budgets")
    @classmethod
    def _readable(cls, budgets: tuple[str, ...]) -> tuple[str, ...]:
        parse_budgets(budgets, keep_partial=True)
        return budgets

    def limits(self, axis: str) -> bool:
        """Whether a budget limits this cost."""
        parsed = parse_budgets(self.budgets, keep_partial=True).kept
        return any(axis in budget.intervals for budget in parsed)


Distillation = Literal["cross_entropy", "kl", "alpha"]
"""The loss of in-place distillation; see `prenas.training.distillation`."""


class TeacherRecipe(Value):
    """A trained network that teaches the subnets in addition to labels (DeiT, arXiv 2012.12877)."""

    name: str = Field(min_length=1)
    """Name of a timm model, or the folder of a handed-over model."""
    weights: str | None = Field(None, min_length=1)
    """File with its weights. None: download timm's, or use those in the folder."""
    mean: tuple[float, ...] | None = None
    """Mean per channel of its training images. None: as timm, or the folder, states it."""
    std: tuple[float, ...] | None = None
    """Standard deviation per channel of its training images. None: as for `mean`."""
    loss: Literal["hard", "soft"] = "hard"
    """Learn the teacher's most likely class (`hard`), or its probabilities (`soft`)."""
    share: float = Field(0.5, gt=0, le=1)
    """The teacher's share of the loss; the rest is the labels'."""
    temperature: float = Field(3.0, gt=0)
    """Temperature of the softmax for the `soft` loss."""
    feature_weight: float = Field(0.0, ge=0, le=100)
    """Weight of the distance between the features of student and teacher, which is added to the
    loss. Features are what the classifier gets; both must have equally many."""


class TrainingRecipe(Value):
    """Preferred one-shot training: one preferred subnet per step, unless `sandwich` is set."""

    epochs: int | None = Field(None, ge=1, le=LARGEST_NUMBER)
    """Passes over the training images. Give this or `steps`."""
    steps: int | None = Field(None, ge=1, le=LARGEST_NUMBER)
    """Number of training steps, whatever the size of the set. Give this or `epochs`."""
    min_steps: int = Field(0, ge=0, le=LARGEST_NUMBER)
    """Repeat the epochs until at least this many steps are done: for small sets."""
    batch_size: int = Field(64, ge=1, le=LARGEST_NUMBER)
    """Images per step, over all processes together."""
    grad_accum_steps: int = Field(1, ge=1, le=LARGEST_NUMBER)
    """Number of parts into which a process splits its share of a batch, to save memory."""
    precision: Precision = "fp32"
    """Precision of forward and backward passes; weights, gradients and moments are always
    float32. `tf32` rounds the factors of products to 10 bits on NVIDIA GPUs, and is `fp32`
    elsewhere."""
    compile: bool = False
    """Compile every subnet with torch.compile: takes minutes at the start, then small networks run
    faster."""
    cuda_graphs: bool = False
    """On an NVIDIA GPU, launch the kernels of a step at once, as a CUDA graph for every subnet:
    small networks train several times faster. On other devices it changes nothing. New: its parts
    ran on a GPU, the whole has not yet."""
    lr_per_512_images: float = Field(5e-4, gt=0)
    """Peak learning rate for 512 images per step; it is scaled by batch_size / 512."""
    min_lr: float = Field(1e-5, ge=0)
    warmup_epochs: float = Field(0, ge=0)
    """Epochs in which the learning rate rises linearly from `warmup_lr`, as far as `warmup_share`
    allows."""
    warmup_share: float = Field(1.0, ge=0, le=1)
    """Largest share of all steps that the warm-up may take. At 1, a training that is shorter than
    its warm-up ends before the peak."""
    warmup_lr: float = Field(1e-6, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: weight the loss of an image with the inverse of how many training images its
    class has, so that every class counts the same; the mean weight is 1."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the features before the classifier."""
    drops_in: Literal["all", "largest"] = "all"
    """Which subnets of a step use drop_path and dropout. `largest`: only the largest subnet of a
    sandwich, as in AttentiveNAS."""
    clip_grad_norm: float | None = Field(None, gt=0)
    """Largest L2 norm of a step's gradient; None (`--set ...=none`) means no limit."""
    clip_grad_value: float | None = Field(None, gt=0)
    """Largest magnitude of each element of a step's gradient; cannot be combined with
    `clip_grad_norm`."""
    optimizer: Literal["adamw", "masked_adamw", "sgd"] = "adamw"
    """`masked_adamw`: moments, decay and step counts change only where a step's subnets have
    weights. `sgd` has Nesterov momentum 0.9; learning rates and decays for AdamW do not suit it."""
    sandwich: int | None = Field(None, ge=0, le=1_000)
    """Train the largest subnet, this many random ones and the smallest in each step; None: one
    subnet per step."""
    sandwich_loss: Literal["mean", "sum"] = "mean"
    """Take the mean of the losses of a step's subnets, as PreNAS' released code does, or their sum,
    as US-Nets and BigNAS do."""
    inplace_distillation: Distillation | None = None
    """In a sandwich, let the other subnets learn the largest one's probabilities instead of the
    labels: by cross-entropy (also `true`), Kullback-Leibler divergence or adaptive alpha-divergence
    (AlphaNet)."""
    teacher: TeacherRecipe | None = None
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Keep an exponential moving average of all weights, with this decay per step."""
    final_weights: Literal["last", "ema", "best"] | None = None
    """Which weights are handed over. None: the moving average if there is one, else the last
    weights. With `best`, every validation covers all subnets."""
    skipped_steps_limit: int = Field(16, ge=1, le=LARGEST_NUMBER)
    """Stop after this many steps in a row with a non-finite loss or gradient."""
    checkpoint_steps: int | None = Field(None, ge=1, le=LARGEST_NUMBER)
    """Steps between checkpoints within an epoch; None: only at the end of each epoch."""
    keep_checkpoints: int = Field(2, ge=1, le=LARGEST_NUMBER)
    """Number of newest checkpoints to keep, in addition to the best on validation."""
    log_steps: int = Field(50, ge=1, le=LARGEST_NUMBER)
    """Steps between log records of the running loss."""
    validate_epochs: int = Field(1, ge=0, le=LARGEST_NUMBER)
    """Epochs between evaluations of the smallest, middle and largest subnet; 0: never."""
    validate_all_epochs: int = Field(10, ge=0, le=LARGEST_NUMBER)
    """Epochs between evaluations of all subnets, after which the best weights so far are kept; 0:
    never."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Learning rate of a layer divided by that of the layer above it; the head gets the full rate.
    For fine-tuning. None: the same rate for all layers."""
    freeze: Literal["none", "backbone"] = "none"
    """`backbone`: train only the head and keep all other weights."""

    @field_validator("inplace_distillation", mode="before")
    @classmethod
    def _cross_entropy_from_true(cls, value: object) -> object:
        if isinstance(value, bool):  # recipes saved before there was a choice of divergence
            return "cross_entropy" if value else None
        return value

    @model_validator(mode="after")
    def _has_one_length(self) -> TrainingRecipe:
        if self.epochs is None and self.steps is None:
            raise ValueError(
                "training.epochs and training.steps are both None: give one of them, e.g. "
                "steps=2000"
            )
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs is {self.epochs} and steps is {self.steps}, but only one of them can "
                "decide the length: leave out the other"
            )
        if self.steps is not None and self.min_steps:
            raise ValueError(
                f"min_steps {self.min_steps} only extends epochs, but steps is {self.steps}: leave "
                "out min_steps"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingRecipe:
        if self.inplace_distillation and self.sandwich is None:
            raise ValueError(
                "inplace_distillation needs the largest subnet in every step: also set sandwich, "
                "e.g. sandwich=2"
            )
        if self.final_weights == "ema" and self.ema_decay is None:
            raise ValueError(
                "final_weights is 'ema', but there is no moving average: set ema_decay, e.g. 0.999"
            )
        if self.final_weights == "best" and not (self.validate_epochs or self.validate_all_epochs):
            raise ValueError(
                "final_weights is 'best', but nothing is validated during training: set "
                "validate_epochs"
            )
        if self.sandwich_loss == "sum" and self.sandwich is None:
            raise ValueError(
                "sandwich_loss is 'sum', but there is no sandwich: also set sandwich, e.g. "
                "sandwich=2"
            )
        if self.drops_in == "largest" and self.sandwich is None:
            raise ValueError(
                "drops_in is 'largest', but without a sandwich no subnet of a step is the largest: "
                "set sandwich, e.g. sandwich=2, or drops_in=all"
            )
        if self.clip_grad_norm is not None and self.clip_grad_value is not None:
            raise ValueError(
                f"clip_grad_norm {self.clip_grad_norm} and clip_grad_value "
                f"{self.clip_grad_value} cannot be combined: set one of them to none"
            )
        if self.cuda_graphs and (unsuited := self._unsuited_to_graphs):
            raise ValueError(
                f"cuda_graphs records a whole step on the device, which {unsuited} does not allow: "
                "change it, or set cuda_graphs=false"
            )
        if self.freeze == "backbone" and self.layer_decay is not None:
            raise ValueError(
                "layer_decay has no effect on layers that freeze='backbone' does not train: set "
                "only one of them"
            )
        if self.freeze == "backbone" and self.teacher and self.teacher.feature_weight:
            raise ValueError(
                f"training.teacher.feature_weight is {self.teacher.feature_weight:g}, but "
                "freeze='backbone' trains the classifier alone, which changes no features: set one "
                "of them to 0 or 'none'"
            )
        return self

    @property
    def _unsuited_to_graphs(self) -> str | None:
        """The first setting with which Python has to look at a step before it ends."""
        if self.optimizer != "adamw":
            return f"optimizer={self.optimizer}"
        if self.precision == "fp16":
            return "precision=fp16"
        return None if self.ema_decay is None else f"ema_decay={self.ema_decay:g}"

    @property
    def length_in_words(self) -> str:
        """For example "60 epochs, at least 1,500 steps", or "2,000 steps"."""
        if self.steps is not None:
            return f"{self.steps:,} {'step' if self.steps == 1 else 'steps'}"
        text = f"{self.epochs:,} {'epoch' if self.epochs == 1 else 'epochs'}"
        return f"{text}, at least {self.min_steps:,} steps" if self.min_steps else text

    @property
    def handed_over_weights(self) -> Literal["last", "ema", "best"]:
        """Name of the weights that are handed over."""
        return self.final_weights or ("last" if self.ema_decay is None else "ema")

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up."""
        return self.lr_per_512_images * self.batch_size / 512


class CalibrationRecipe(Value):
    """How many training images BatchNorm statistics are recomputed from before an evaluation.

    The defaults are AttentiveNAS's. Of a small set, at most `max_passes` times its images are read.
    Numbers are rounded down to full batches. Families without BatchNorm are not calibrated.
    """

    num_images: int = Field(16_384, ge=2, le=LARGEST_NUMBER)
    """Images for the final results and the models that are handed over."""
    batch_size: int = Field(256, ge=2, le=LARGEST_NUMBER)
    """Images per batch; the statistics are averages over batches. If fewer images are asked for
    than this, they are one batch."""
    while_training: int = Field(2_048, ge=2, le=LARGEST_NUMBER)
    """Images before each validation during training."""
    while_evolving: int = Field(8_192, ge=2, le=LARGEST_NUMBER)
    """Images before the candidates of one-shot NAS are compared."""
    max_passes: int = Field(4, ge=1, le=LARGEST_NUMBER)
    """Passes over the training images at most, whatever the numbers above say: further passes take
    time and hardly change the averages."""


class EvolutionRecipe(Value):
    """Evolutionary search in a trained supernet, with AutoFormer's values (ICCV 2021)."""

    population: int = Field(50, ge=1, le=1_000_000)
    """Candidates of the first generation; later generations are filled up to this number with
    random candidates."""
    generations: int = Field(20, ge=1, le=1_000_000)
    """Number of generations, including the random first one."""
    num_parents: int = Field(10, ge=1, le=LARGEST_NUMBER)
    """Number of best candidates so far from which the next generation is made."""
    num_mutations: int = Field(25, ge=0, le=1_000_000)
    num_crossovers: int = Field(25, ge=0, le=1_000_000)
    mutation_prob: float = Field(0.2, ge=0, le=1)
    """Probability that a mutant redraws a per-layer choice."""
    depth_mutation_prob: float = Field(0.4, ge=0, le=1)
    """Probability that a mutant redraws a choice made once per network: the depth and, as in
    AutoFormer, the width."""
    num_images: int | None = Field(None, ge=1, le=LARGEST_NUMBER)
    """Number of validation images on which candidates are compared; None: all."""

    @model_validator(mode="after")
    def _parents_are_of_the_population(self) -> EvolutionRecipe:
        if self.num_parents > self.population:
            raise ValueError(
                f"num_parents {self.num_parents} is greater than population "
                f"{self.population}: lower it, or raise population"
            )
        return self


class TransferRecipe(Value):
    """Fine-tuning: what a run needs in addition to its source's search space and subnets.

    The preprocessing also comes from the source, because its weights depend on it.
    """

    name: str
    images: tuple[str, ...] | None = None
    """Images, written as for `--data`, which overrides them. Empty: `--data` is required. None: the
    source's images, if it has any."""
    augmentation: Augmentation | None = None
    """None: the source's augmentation, if it has any."""
    training: TrainingRecipe


class OriginRecipe(Value):
    """A trained network from elsewhere."""

    name: str
    """As it was given, such as `timm/resnet50`."""
    sha256: str
    """Digest of its weights."""
    licence: str | None = None
    """The licence of the weights, if known."""
    origin: str | None = None
    """Where the weights were published, if known."""


def names_a_file(source: str) -> bool:
    """Whether a source is `timm/NAME=FILE`, whose licence and origin are those that timm states for
    the model, and not for the file."""
    return source.startswith("timm/") and "=" in source


class SourceRecipe(OriginRecipe):
    """The trained network that a run starts from."""

    rivals: tuple[OriginRecipe, ...] = ()
    """Stock models that are fine-tuned on the same images, to be compared with cuts of this one."""


class CutRecipe(Value):
    """Cutting a family of models out of a trained network: everything but the network and images.

    The preprocessing comes from the network, because its weights depend on it.
    """

    name: str
    budgets: tuple[str, ...]
    """Also shares of the network, such as `macs=50%`."""
    augmentation: Augmentation
    adaptation: TrainingRecipe
    """How the whole network is fine-tuned on the images."""
    search: SearchRecipe
    """How units are scored; its budgets are replaced."""
    training: TrainingRecipe
    """How the chosen subnets are trained together."""
    teacher: TeacherRecipe
    """How the adapted network teaches them; its name is replaced."""
    calibration: CalibrationRecipe


class Recipe(Value):
    """One run: its search space, budgets and data, and how the supernet is trained."""

    name: str = Field(max_length=LONGEST_NAME)
    seed: int = Field(0, ge=0, le=MOST_AMOUNT)
    space: SerializeAsAny[SearchSpace]
    search: SearchRecipe
    data: DataRecipe | None = None
    training: TrainingRecipe | None = None
    calibration: CalibrationRecipe = CalibrationRecipe()
    source: SourceRecipe | None = None
    """The pretrained network, if the run cuts one (`prenas run --from`)."""
    evolution: EvolutionRecipe | None = None
    """One-shot NAS, for comparison: train on the whole space, then search the trained supernet by
    evolution. None: PreNAS."""

    @property
    def training_field(self) -> str:
        """What `--set` calls its training: `adaptation` for that of a network that is cut then."""
        is_whole = self.source is not None and self.space.num_archs == 1
        return "adaptation" if is_whole else "training"

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
        if (allocation := self.search.allocation) != "best":
            if self.search.score not in UNIT_SCORES:
                raise ValueError(
                    f"search.allocation={allocation} shares the units of a trained network, but "
                    f"search.score is {self.search.score!r}: choose one of {', '.join(UNIT_SCORES)}"
                )
            if self.search.k > 1:
                raise ValueError(
                    f"search.allocation={allocation} has one subnet per budget, but search.k is "
                    f"{self.search.k}: set it to 1"
                )
            if allocation == "uniform":
                _ = self.space.uniform_options  # raises if layers differ
        if self.search.strategy == "skeletons" and self.search.k > 1:
            most = sum(len(one.widths) + len(one.depths) - 2 for one in self.space.chain)
            if self.search.shape_distance > most:
                raise ValueError(
                    f"search.strategy=skeletons wants shapes that are {self.search.shape_distance} "
                    f"steps apart, but the widths and depths of space {self.space.name!r} are at "
                    f"most {most} steps apart: "
                    + (f"set search.shape_distance to at most {most}" if most else "set search.k=1")
                )
        budgets = parse_budgets(self.search.budgets, keep_partial=True)
        check_resolutions(budgets.kept, self.space)
        self.preprocessing.check_channels(self.space.settings.in_chans)
        if self.search.images == "data" and self.data is None:
            raise ValueError(
                "search.images is 'data', but the recipe has no data: choose 'noise' or add data"
            )
        if self.evolution is not None and self.training is None:
            raise ValueError(
                "evolution searches a trained supernet, but the recipe has no training: set "
                "evolution to none, or choose a recipe that trains"
            )
        if self.evolution is not None and self.training is not None:
            for name, does in (("compile", "compiles"), ("cuda_graphs", "records")):
                if getattr(self.training, name):
                    raise ValueError(
                        f"training.{name} {does} each subnet separately, but evolution trains on "
                        "the whole space, where almost every step has a new subnet: set "
                        f"training.{name}=false"
                    )
        return self

    @property
    def preprocessing(self) -> Preprocessing:
        """The data's preprocessing, or ImageNet's if the recipe has no data."""
        return self.data.preprocessing if self.data else Preprocessing()
