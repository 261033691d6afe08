"""Puts known faults into the code, one at a time, and checks that tests fail.

    python -m benchmarks.mutations                     # all faults: half an hour on one core
    python -m benchmarks.mutations clip-norm-never ... # some faults, by name
    python -m benchmarks.mutations --list

Each fault replaces one text, which must occur exactly once in its file. This is done in a copy of
the tree; the working tree is never touched. A fault is killed if one of its tests, which pass
without it, fails; the first one that fails is printed. The exit status is 1 if a fault survived or
could not be judged. `--sound` first runs the same tests without faults.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
_COPIED = ("src", "tests", "benchmarks", "examples", "docs", "results", "pyproject.toml")
_PASSED, _FAILED = 0, 1  # exit statuses of pytest; others mean that it could not run the tests
_SECONDS = 900  # for the tests of one fault, because some faults cause endless loops


class Mutation(NamedTuple):
    """A fault, and the tests that must notice it."""

    name: str
    file: str
    """Under src/prenas."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Under tests."""


MUTATIONS = (
    # the length, small and uneven sets
    Mutation(
        "part-of-an-epoch-is-no-end", "length.py",
        "return step % self.steps_per_epoch == 0 or step >= self.num_steps",
        "return step % self.steps_per_epoch == 0",
        ("test_length.py",),
    ),
    Mutation(
        "given-epochs-keep-the-floor", "recipe/changes.py",
        '{"epochs": None, "steps": None, "min_steps": 0}', '{"epochs": None, "steps": None}',
        ("recipe/test_fields.py",),
    ),
    Mutation(
        "warm-up-without-its-limit", "training/optim.py",
        "if training.warmup_share < 1:", "if False:",
        ("training/test_loop.py",),
    ),
    Mutation(
        "small-sets-calibrated-many-times", "evaluation/calibration.py",
        "return min(asked, calibration.max_passes * num_samples(data.train))", "return asked",
        ("evaluation/test_calibration.py",),
    ),
    Mutation(
        "classes-count-the-same", "training/objective.py",
        "(weights * losses).mean()", "losses.mean()",
        ("training/test_objective.py",),
    ),
    Mutation(
        "confusion-by-predicted-class", "evaluation/accuracy.py",
        "cells = labels * counts.shape[1] + columns", "cells = columns * counts.shape[1] + labels",
        ("evaluation/test_accuracy.py",),
    ),
    # odd files
    Mutation(
        "moments-share-memory", "training/optim.py",
        "{name: moment.clone() for name, moment in moments.items()}", "moments",
        ("training/test_optim.py",),
    ),
    Mutation(
        "a-blank-header-ends-a-tar", "data/tars.py",
        'if len(rest) > _MOST_PADDING or rest.strip(b"\\0"):', "if False:",
        ("data/test_shards.py",),
    ),
    Mutation(
        "an-export-empties-its-folder", "devices/exporting.py",
        "for name in earlier - {*card.files_sha256}:\n        (folder / name)",
        "for name in {one.name for one in folder.iterdir()} - {*card.files_sha256}:\n"
        "        (folder / name)",
        ("devices/test_exporting.py",),
    ),
    Mutation(
        "5-is-nanoseconds", "cost.py",
        "if self.needs_unit and not match[2]:", "if False:",
        ("test_cost.py", "recipe/test_budgets.py"),
    ),
    # the step
    Mutation(
        "clip-norm-never", "training/step.py",
        "self._gradients.clip(norm, self._training.clip_grad_norm)", "pass",
        ("training/test_step.py",),
    ),
    Mutation(
        "clip-values-never", "training/step.py",
        "self._gradients.clip_values(self._training.clip_grad_value)", "pass",
        ("training/test_step.py",),
    ),
    Mutation(
        "gradients-of-earlier-steps-stay", "training/step.py",
        "self._gradients.zero()", "pass",
        ("training/test_step.py",),
    ),
    Mutation(
        "rate-of-the-next-step", "training/step.py",
        "self._schedule.step_update(step)", "self._schedule.step_update(step + 1)",
        ("training/test_step.py",),
    ),
    Mutation(
        "parts-weigh-alike-whatever-their-size", "training/step.py",
        "weight = len(part.labels) / part.total",
        "weight = 1 / self._training.grad_accum_steps",
        ("training/test_step.py",),
    ),
    Mutation(
        "sandwich-mean-is-a-sum", "training/step.py",
        "weight /= len(archs)", "pass",
        ("training/test_step.py",),
    ),
    Mutation(
        "non-finite-steps-move-weights", "training/step.py",
        "return math.isfinite(loss) and math.isfinite(norm)", "return True",
        ("training/test_step.py",),
    ),
    Mutation(
        "ema-decay-ignored", "training/step.py",
        "ModelEmaV3(supernet.network, decay=training.ema_decay)", "ModelEmaV3(supernet.network)",
        ("training/test_step.py",),
    ),
    Mutation(
        "ema-never-updated", "training/step.py",
        "self.ema.update(self.supernet.network)", "pass",
        ("training/test_step.py",),
    ),
    Mutation(
        "resume-forgets-the-optimiser", "training/step.py",
        'restore_optimizer(self.optimizer, state["optimizer"])', "pass",
        ("training/test_resume.py",),
    ),
    # optimiser, sampler and losses
    Mutation(
        "decay-of-norms-and-biases", "training/optim.py",
        "fused=True,", "fused=True, filter_bias_and_bn=False,",
        ("training/test_gradients.py",),
    ),
    Mutation(
        "masked-adamw-never-decays", "training/masked_adamw.py",
        'torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])', "pass",
        ("training/test_masked_adamw.py",),
    ),
    Mutation(
        "masked-adamw-moves-overlaps-twice", "training/masked_adamw.py",
        "for box in disjoint(boxes):", "for box in boxes:",
        ("training/test_masked_adamw.py",),
    ),
    Mutation(
        "balanced-sampling-ignores-groups", "training/sampler.py",
        "groups.setdefault(family_of(arch).balancing_group(arch), [])", "groups.setdefault((), [])",
        ("training/test_sampler.py",),
    ),
    Mutation(
        "one-subnet-for-all-draws-of-a-step", "training/sampler.py",
        "position = (step, number) if number else (step,)", "position = (step,)",
        ("training/test_sampler.py",),
    ),
    Mutation(
        "label-smoothing-ignored", "training/objective.py",
        "smoothing = training.label_smoothing", "smoothing = 0.0",
        ("training/test_objective.py", "training/test_step.py"),
    ),
    Mutation(
        "temperature-not-squared", "training/objective.py",
        "told = told * teacher.temperature**2", "told = told * teacher.temperature",
        ("training/test_objective.py",),
    ),
    Mutation(
        "smaller-divergence-followed", "training/distillation.py",
        "is_over = over.value > under.value", "is_over = over.value < under.value",
        ("training/test_distillation.py",),
    ),
    Mutation(
        "resumed-epoch-starts-over", "training/loop.py",
        "start=self.position.step % self._length.steps_per_epoch,", "start=0,",
        ("training/test_resume.py",),
    ),
    Mutation(
        "latest-weights-kept-as-best", "training/loop.py",
        "top1 > self.position.best_top1", "top1 >= 0",
        ("training/test_step.py",),
    ),
    Mutation(
        "average-never-handed-over", "training/loop.py",
        'if chosen == "ema" and ema is not None:', "if False:",
        ("training/test_step.py",),
    ),
    Mutation(
        "test-split-chooses", "training/validation.py",
        '{"validation": data.validation}', '{"validation": data.test or data.validation}',
        ("training/test_validation.py", "training/test_step.py"),
    ),
    # images
    Mutation(
        "same-order-in-every-epoch", "data/batches.py",
        'torch_generator(self.seed, "shuffle", epoch)', 'torch_generator(self.seed, "shuffle")',
        ("data/test_batches.py",),
    ),
    Mutation(
        "same-changes-in-every-epoch", "data/batches.py",
        'numpy_generator(seed, "sample", epoch, *s.position)',
        'numpy_generator(seed, "sample", *s.position)',
        ("data/test_batches.py",),
    ),
    Mutation(
        "fingerprint-ignores-labels", "data/sources.py",
        "for values in (split.names, split.labels, split.versions):",
        "for values in (split.names, split.versions):",
        ("data/test_sources.py", "data/test_folders.py"),
    ),
    Mutation(
        "index-of-an-older-shard", "data/shards.py",
        "np.array([_FORMAT, stamp.num_bytes, stamp.changed_ns])", "np.array([_FORMAT])",
        ("data/test_shards.py",),
    ),
    Mutation(
        "bytes-of-another-picture", "data/shards.py",
        "if found != self._checks[index] or len(content) < size:", "if len(content) < size:",
        ("data/test_shards.py",),
    ),
    Mutation(
        "first-picture-of-the-shard-before", "data/shards.py",
        'side="right")) - 1]', 'side="left")) - 1]',
        ("data/test_shards.py",),
    ),
    Mutation(
        "labels-in-the-order-of-the-tar", "data/shards.py",
        "for x in (labels[i] for i in order)", "for x in labels",
        ("data/test_shards.py",),
    ),
    Mutation(
        "an-unsettled-folder-is-remembered", "data/unchanged.py",
        "_SETTLED_NS = 2 * 10**9", "_SETTLED_NS = -(10**18)",
        ("data/test_unchanged.py",),
    ),
    Mutation(
        "a-folder-reaches-into-the-next", "data/names.py",
        '_AFTER_SLASH = chr(ord("/") + 1)', '_AFTER_SLASH = chr(ord("/") + 2)',
        ("data/test_names.py",),
    ),
    Mutation(
        "pixels-over-256", "data/augmentation.py",
        "result.div_(255)", "result.div_(256)",
        ("data/test_augmentation.py",),
    ),
    Mutation(
        "mirrors-every-picture", "data/augmentation.py",
        "is_mirrored = flip and generator.random() < flip",
        "is_mirrored = flip and generator.random() >= 0",
        ("data/test_augmentation.py",),
    ),
    # evaluation
    Mutation(
        "last-batch-counts-as-full", "evaluation/accuracy.py",
        "totals[:, 3] += len(labels)", "totals[:, 3] += batch_size",
        ("evaluation/test_accuracy.py",),
    ),
    Mutation(
        "last-batch-counts-twice", "evaluation/accuracy.py",
        "totals[:, 3] += len(labels)",
        "totals[:, :] *= 1 if len(labels) == batch_size else 2; totals[:, 3] += len(labels)",
        ("evaluation/test_accuracy.py",),
    ),
    Mutation(
        "first-crop-instead-of-mean", "evaluation/accuracy.py",
        "logits.view(num_images, num_crops, -1).mean(dim=1)",
        "logits.view(num_images, num_crops, -1)[:, 0]",
        ("evaluation/test_accuracy.py",),
    ),
    Mutation(
        "calibration-with-momentum", "supernet.py",
        "module.momentum = share", "module.momentum = 0.1",
        ("evaluation/test_calibration.py",),
    ),
    Mutation(
        "calibration-on-mixed-images", "evaluation/calibration.py",
        "replace(data, mixing=None, repeats=1)", "replace(data, repeats=1)",
        ("evaluation/test_calibration.py",),
    ),
    # supernet, proxy, selection
    Mutation(
        "slices-take-trailing-channels", "families/base.py",
        "return tuple(slice(0, size) for size in shape)",
        "return tuple(slice(end - size, end) for size, end in zip(shape, full, strict=True))",
        ("test_supernet.py", "reference/test_reference.py"),
    ),
    Mutation(
        "kernels-not-from-the-centre", "families/mobilenet/parts.py",
        "starts = (0, 0, (full[2] - shape[2]) // 2, (full[3] - shape[3]) // 2)",
        "starts = (0, 0, 0, 0)",
        ("families/test_mobilenet.py",),
    ),
    Mutation(
        "score-without-absolute-value", "proxy/scores.py",
        "PUBLISHED_SCORE: WeightScore(lambda w, g: (w * g).abs_()),",
        "PUBLISHED_SCORE: WeightScore(lambda w, g: w * g),",
        ("proxy/test_tables.py",),
    ),
    Mutation(
        "importance-of-the-last-batch-only", "proxy/importance.py",
        "sum_so_far += gradient", "sum_so_far.copy_(gradient)",
        ("proxy/test_importance.py",),
    ),
    Mutation(
        "upper-end-of-a-budget-inside", "recipe/budgets.py",
        "(costs < upper)", "(costs <= upper)",
        ("recipe/test_budgets.py",),
    ),
    Mutation(
        "skeletons-near-all-but-one", "selection/shapes.py",
        "is_far = (reached == least).all(axis=1)", "is_far = (reached == least).any(axis=1)",
        ("selection/test_strategies.py",),
    ),
    Mutation(
        "every-edge-of-a-stage-counts-its-shape", "selection/shapes.py",
        "np.where(np.isin(tail, entries), apart, 0)", "apart",
        ("selection/test_strategies.py",),
    ),
    Mutation(
        "a-late-draw-is-a-small-budget", "selection/within.py",
        "        if len(every) < num:\n", "        if len(every) <= num:\n",
        ("selection/test_strategies.py",),
    ),
    Mutation(
        "power-leaves-out-the-stem", "proxy/tables.py",
        "return StageScores(*(np.maximum(found, 0) ** power for found in scores))",
        "return StageScores(scores.fixed, np.maximum(scores.layers, 0) ** power)",
        ("proxy/test_tables.py",),
    ),
    Mutation(
        "infinite-scores-are-searched", "proxy/tables.py",
        "if not torch.isfinite(elements).all():", "if False:",
        ("proxy/test_tables.py",),
    ),
    Mutation(
        "costs-of-the-chosen-are-believed", "selection/search.py",
        "if known != amount:", "if False:",
        ("test_cost_axis.py",),
    ),
    Mutation(
        "autocast-changes-scores", "proxy/importance.py",
        "torch.autocast(device, enabled=False),", "torch.enable_grad(),",
        ("proxy/test_importance.py",),
    ),
    Mutation(
        "evolution-breaks-ties-by-the-first-cost", "rivals/evolution.py",
        "_expense(budget, within.cost(genes))", "within.cost(genes)",
        ("rivals/test_evolution.py",),
    ),
    Mutation(
        "an-adaptation-is-left-as-it-is", "pipeline.py",
        "        if inside.is_searched:", "        if False:",
        ("sources/test_cutting.py",),
    ),
    Mutation(
        "images-elsewhere-are-the-same", "runs/run.py",
        "and self._with_known_images.are_at(data)", "",
        ("test_pipeline_pictures.py",),
    ),
    Mutation(
        "the-whole-network-keeps-the-old-place", "pipeline.py",
        "elif recipe != recorded and join().is_main:", "elif False:",
        ("sources/test_cutting.py",),
    ),
    Mutation(
        "even-options-begin-at-the-front", "selection/allocations.py",
        "(2 * np.arange(number) + 1) * num_free", "(2 * np.arange(number)) * num_free",
        ("selection/test_isomers.py",),
    ),
    Mutation(
        "the-largest-of-equals-wins-a-budget", "runs/contests.py",
        'return top1["validation"], -costs[size]', 'return top1["validation"], costs[size]',
        ("runs/test_contests.py",),
    ),
    Mutation(
        "isomer-rule-reversed", "selection/allocations.py",
        "np.argsort(-gains, axis=0", "np.argsort(gains, axis=0",
        ("selection/test_isomers.py",),
    ),
    # networks
    Mutation(
        "dropped-branches-not-rescaled", "families/vit/network.py",
        "kept = (noise >= rate).to(branch.dtype) / (1.0 - rate)",
        "kept = (noise >= rate).to(branch.dtype)",
        ("families/test_vit_network.py",),
    ),
    Mutation(
        "dropped-branches-not-rescaled-in-convolutions", "families/mobilenet/blocks.py",
        "kept = (noise >= self.rate).to(branch.dtype) / (1.0 - self.rate)",
        "kept = (noise >= self.rate).to(branch.dtype)",
        ("families/test_mobilenet.py",),
    ),
    Mutation(
        "class-token-is-pooled", "families/vit/network.py",
        "tokens[:, 1:].mean(dim=1)", "tokens.mean(dim=1)",
        ("test_golden_vit.py",),
    ),
    Mutation(
        "distances-of-relative-positions-off-by-one", "families/vit/attention.py",
        "distance.clamp(-max_distance, max_distance) + max_distance + 1",
        "distance.clamp(-max_distance, max_distance) + max_distance",
        ("families/test_vit_attention.py",),
    ),
    Mutation(
        "all-folders-without-splits-are-the-same-images", "data/sources.py",
        'fingerprint=_fingerprint(names, {"undivided": pool})', 'fingerprint="all of them"',
        ("sources/test_released.py",),
    ),
    # bounds
    Mutation(
        "huge-description-is-built", "models/export.py",
        "    require_stored(path, description.arch, description.settings, shared=False)\n"
        "    network = build(",
        "    network = build(",
        ("models/test_export.py",),
    ),
    Mutation(
        "repeated-numbers-are-spread-out", "sources/checkpoints.py",
        "    _check_plain(state, file_size)\n", "",
        ("sources/test_released.py",),
    ),
    Mutation(
        "photographs-reduced-too-far", "data/augmentation.py",
        "min(image.size) // self._side", "-(-min(image.size) // self._side)",
        ("data/test_augmentation.py",),
    ),
    Mutation(
        "rates-from-a-checkpoint", "training/optim.py",
        '"param_groups": own})', '"param_groups": state["param_groups"]})',
        ("training/test_resume.py",),
    ),
    # residual branches that are left out
    Mutation(
        "work-of-absent-branches", "families/timm_cut/parts.py",
        'if f"{name}.".startswith(tuple(absent)):', "if False:",
        ("families/test_timm_cut.py",),
    ),
    Mutation(
        "one-column-of-noise-for-two-branches", "families/timm_cut/network.py",
        '"drop_path2": 1', '"drop_path2": 0',
        ("families/test_timm_cut.py",),
    ),
    Mutation(
        "every-branch-is-believed", "families/timm_cut/reading.py",
        "bool(difference <= _LARGEST_DIFFERENCE)\n\n\ndef _by_block", "True\n\n\ndef _by_block",
        ("families/test_timm_cut.py",),
    ),
    Mutation(
        "half-a-bottleneck-is-a-branch", "families/timm_cut/reading.py",
        "if len(block.groups) == 1:", "if True:",
        ("families/test_timm_cut.py",),
    ),
    Mutation(
        "a-transformer-without-any-attention", "families/timm_cut/reading.py",
        "if _sees(network, images, one))", ")",
        ("families/test_timm_cut.py",),
    ),
    Mutation(
        "absent-layers-are-timed", "devices/measuring.py",
        "elif not part.is_absent:\n                prefix", "else:\n                prefix",
        ("test_latency.py",),
    ),
    Mutation(
        "parameters-take-no-time-in-a-network", "devices/measuring.py",
        "parameters += _num_parameters(part)", "parameters += 0",
        ("test_latency.py",),
    ),
    Mutation(
        "the-first-form-of-the-fit-is-taken", "devices/measuring.py",
        "min(fits, key=lambda found: found[0].median_error)", "fits[0]",
        ("test_latency.py",),
    ),
    Mutation(
        "any-number-of-steps-fits-into-a-time", "training/estimate.py",
        "> LARGEST_NUMBER:", "< 0:",
        ("training/test_estimate.py",),
    ),
    # timm and the Hub
    Mutation(
        "blocks-are-never-computed-again", "families/vit/network.py",
        "if self.grad_checkpointing:", "if False:",
        ("families/test_timm_models.py",),
    ),
    Mutation(
        "drawn-weights-are-always-the-same", "randomness.py",
        "manual_seed(int(torch.randint(2**63 - 1, ())))", "manual_seed(0)",
        ("families/test_timm_models.py",),
    ),
    Mutation(
        "positions-of-another-size", "families/timm_models.py",
        "old = new.changed(image_size=size, ", "old = new.changed(",
        ("models/test_timm_config.py",),
    ),
    Mutation(
        "contradicting-config-draws-a-classifier", "families/timm_models.py",
        "if None not in (stored, stated) and stored != stated:", "if False:",
        ("models/test_timm_config.py",),
    ),
    Mutation(
        "timm-sees-imagenets-pixels", "models/timm_config.py",
        '"mean": preprocessing.mean,', '"mean": (0.485, 0.456, 0.406),',
        ("models/test_timm_config.py",),
    ),
    Mutation(
        "push-replaces-what-is-there", "steps/publishing.py",
        "any(to.iterdir()) and not replace:", "any(to.iterdir()) and False:",
        ("steps/test_publishing.py",),
    ),
    Mutation(
        "push-replaces-a-repository", "steps/publishing.py",
        "found & set(_FILES))) and not replace:", "found & set(_FILES))) and False:",
        ("steps/test_publishing.py",),
    ),
    Mutation(
        "commit-of-somebody-else", "models/origin.py",
        'if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:', "if False:",
        ("steps/test_publishing.py",),
    ),
    Mutation(
        "a-trace-checks-shapes", "families/base.py",
        "if isinstance(images, Proxy):", "if False:",
        ("families/test_timm_models.py",),
    ),
    Mutation(
        "lent-layers-remember-their-biases", "supernet.py",
        "if isinstance(getattr(module, _BIAS_CACHE, None), dict):", "if False:",
        ("families/test_timm_cut.py",),
    ),
    Mutation(
        "an-estimate-keeps-its-step", "training/estimate.py",
        "lambda step: tuple(drawn)", "lambda step: tuple(self._drawn)",
        ("training/test_estimate.py",),
    ),
    # steps as graphs
    Mutation(
        "a-graph-keeps-its-learning-rate", "training/graphs.py",
        "tensor.fill_(rate)", "rate",
        ("training/test_graphs.py",),
    ),
    Mutation(
        "a-graph-keeps-its-images", "training/graphs.py",
        "for ours, theirs in zip(_tensors(fixed), given, strict=True):",
        "for ours, theirs in zip(_tensors(fixed)[1:], given[1:], strict=True):",
        ("training/test_graphs.py",),
    ),
    Mutation(
        "a-graph-does-not-hear-a-stop", "training/graphs.py",
        "self._vote.fill_(float(stop))", "self._vote.fill_(0.0)",
        ("training/test_graphs.py",),
    ),
    Mutation(
        "a-graph-of-weights-that-moved", "training/graphs.py",
        "if addresses != self._addresses:", "if False:",
        ("training/test_graphs.py",),
    ),
    Mutation(
        "a-late-step-waits-for-indices", "training/step.py",
        "numbers[::2].isfinite()", "numbers[[0, 2]].isfinite()",
        ("training/test_graphs.py",),
    ),
    Mutation(
        "a-step-that-owns-itself", "training/step.py",
        "                partial(self._computed, late=True),",
        "                setattr(self._graphs, 'own', self) or partial(self._computed, late=True),",
        ("training/test_graphs.py",),
    ),
    # cuts of pretrained models
    Mutation(
        "fisher-sums-before-squaring", "proxy/unit_scores.py",
        '"fisher": (torch.square, torch.clone)', '"fisher": (torch.clone, torch.square)',
        ("proxy/test_unit_scores.py",),
    ),
    Mutation(
        "the-worse-of-two-scores-chooses", "selection/trained.py",
        "taken, name = max(", "taken, name = min(",
        ("selection/test_trained.py",),
    ),
    Mutation(
        "halves-by-the-first-score", "selection/trained.py",
        "choice[name].kept(number, recipe.space)",
        "next(iter(choice.values())).kept(number, recipe.space)",
        ("selection/test_trained.py",),
    ),
    Mutation(
        "a-dry-run-forgets-the-second-score", "selection/trained.py",
        "return search.k * num_scores * len(", "return search.k * len(",
        ("selection/test_trained.py",),
    ),
    Mutation(
        "features-without-their-weight", "training/step.py",
        "loss + teacher.feature_weight * feature_loss(", "loss + feature_loss(",
        ("training/test_features.py",),
    ),
    Mutation(
        "features-of-any-width", "training/teacher.py",
        "    if teacher.feature_weight:\n        _require", "    if False:\n        _require",
        ("training/test_features.py",),
    ),
    Mutation(
        "a-pooling-with-heads-is-described", "families/timm_cut/arguments.py",
        "if whole.attn_pool is not None:", "if False:",
        ("families/test_timm_cut.py",),
    ),
)  # fmt: skip


def occurrences(mutation: Mutation, root: Path = ROOT) -> int:
    """How often the text that the fault replaces occurs in its file."""
    file = root / "src/prenas" / mutation.file
    return file.read_text(encoding="utf-8").count(mutation.old) if file.is_file() else 0


def copy_tree(tree: Path) -> None:
    """Copies everything that the tests need into a new folder."""
    tree.mkdir()
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
        else:
            shutil.copy(ROOT / name, tree / name)


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Runs tests in a copy of the tree; returns pytest's status and the test that failed.

    The status is -1 if the tests take too long.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not slow", *(f"tests/{test}" for test in tests)]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return -1, ""
    failed = re.search(r"^FAILED tests/(.*?)( - .*)?$", done.stdout, re.MULTILINE)
    return done.returncode, failed[1] if failed else ""


def verdict(tree: Path, mutation: Mutation) -> str:
    """Tries a fault in a copy of the tree: `killed by ...`, `SURVIVED`, or why neither is known."""
    if (number := occurrences(mutation, tree)) != 1:
        return f"not applied: its text occurs {number} times"
    file = tree / "src/prenas" / mutation.file
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        status, failed = run_tests(tree, mutation.tests)
    finally:
        file.write_text(text, encoding="utf-8")
    if status == _FAILED and failed:
        return f"killed by {failed}"
    return "SURVIVED" if status == _PASSED else f"not judged: pytest ended with {status}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries the faults, prints one line for each, and returns the exit status."""
    names = [mutation.name for mutation in MUTATIONS]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to try; default: all")
    parser.add_argument("--sound", action="store_true", help="first run the tests without faults")
    parser.add_argument("--list", action="store_true", help="print the names and exit")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; --list prints the names")
    chosen = [each for each in MUTATIONS if not options.names or each.name in options.names]
    if options.list:
        print("\n".join(names))
        return 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = Path(folder) / "tree"
        copy_tree(tree)
        if options.sound:
            for test in sorted({test for mutation in chosen for test in mutation.tests}):
                status, failed = run_tests(tree, [test])
                if status != _PASSED:
                    print(f"{test} fails without any fault: {failed or status}")
                    return 1
        survivors = 0
        for mutation in chosen:
            started = time.perf_counter()
            found = verdict(tree, mutation)
            survivors += not found.startswith("killed")
            seconds = time.perf_counter() - started
            print(f"{mutation.name:48} {mutation.file:32} {found} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
