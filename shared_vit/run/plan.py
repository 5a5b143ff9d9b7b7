"""Everything about a run that is decided before any device works: recipe, data, directory."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shared_vit import weights
from shared_vit.data import Dataset, open_dataset
from shared_vit.data.check import check_dataset
from shared_vit.data.content import content_of
from shared_vit.data.labels import labels_of
from shared_vit.data.minival import with_minival
from shared_vit.data.pipeline import Batches, batches
from shared_vit.data.sources import open_whole
from shared_vit.data.sources.imagenet_names import plain_names
from shared_vit.errors import UserError, some
from shared_vit.run import checkpoint, tensorboard
from shared_vit.run.best import check_metric, read_best
from shared_vit.run.command_line import model_changes, named_model
from shared_vit.run.record import (
    INPUT_FLAGS,
    SIZE_FLAGS,
    VERSION,
    Record,
    is_run,
    new_id,
    other_data,
    read_record,
)
from shared_vit.run.requested import RequestedConfig, check_processes
from shared_vit.run.schedule import learning_rate
from shared_vit.run.start_from import first_name
from shared_vit.run.state import TrainState, first_state
from shared_vit.spec import canonical, init
from shared_vit.spec.class_weights import settled
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.lr_scales import trained_names
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig
from shared_vit.spec.settings import check_range, settings_of
from shared_vit.spec.sides import image_fields
from shared_vit.weights import hub
from shared_vit.weights.adapt import adapt, check_size, in_memory
from shared_vit.weights.choice import split_choice
from shared_vit.weights.class_names import cleaned
from shared_vit.weights.locate import AVERAGE

IMAGE_FIELDS = ("image_size", "image_width")
LONGEST_WARMUP = 10_000  # updates, where nobody chose it: as in most recipes for ImageNet


class GivenWeights:
    """The weights that an evaluation, or a run that starts from weights, reads; opened once in each
    process. `hints` are arguments of `open_weights`; `commit` is that of a name on the hub, if it
    is known already."""

    def __init__(self, path: Path, commit: str | None = None, **hints: Any):
        self.path, self.commit, self.hints = path, commit, hints

    @functools.cached_property
    def source(self) -> weights.Source:
        """Found and checked, and not yet in memory. Raises UserError."""
        path = self.path
        if self.commit is not None and hub.is_name(path):
            path = Path(hub.pinned(str(path), self.commit))
        source = weights.open_weights(path, **self.hints)
        if source.origin is not None:
            self.commit = source.origin.commit  # another process reads the same
        return source

    def __getstate__(self) -> dict[str, Any]:
        # open files stay in their process
        return {"path": self.path, "commit": self.commit, "hints": self.hints}


@dataclass(frozen=True)
class Plan:
    """A run with every setting known.

    weights: what an evaluation, or a run that starts from weights, reads; None otherwise. id,
    first_version, left_open, origin: as in the run's record.
    """

    recipe: Recipe
    runtime: RuntimeConfig
    preset: str | None
    mode: Literal["train", "eval"]
    resume: bool
    dataset: Dataset
    run_dir: Path
    weights: GivenWeights | None = None
    id: str = field(default_factory=new_id)
    first_version: int = VERSION
    left_open: frozenset[str] = frozenset()
    origin: dict[str, Any] | None = None

    @property
    def model(self) -> ModelConfig:
        return self.recipe.model

    @functools.cached_property
    def content(self) -> dict[str, str]:
        """Checksums of what the data's files hold, which are read once."""
        return content_of(self.dataset, self.runtime.data_check == "full")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The data's, which the labels mean, also where a head with other names is continued; a
        class that the data lack is called by its number."""
        names = cleaned(plain_names(self.dataset.class_names))
        return names + tuple(map(str, range(len(names), self.model.num_classes)))

    @property
    def total_steps(self) -> int:
        return self.recipe.steps

    @property
    def end(self) -> int:
        """The step at which this start of the run ends."""
        return min(self.recipe.steps, self.runtime.stop_at or self.recipe.steps)

    def epoch(self, step: int) -> float:
        """Passes over the training split after `step` updates."""
        return step * self.recipe.batch_size / len(self.dataset.train)

    def lr(self, update: int) -> float:
        """Learning rate of update number `update`, from 0."""
        recipe = self.recipe
        return learning_rate(
            update,
            recipe.steps,
            recipe.lr,
            recipe.warmup_steps,
            recipe.schedule,
            recipe.cooldown_steps,
        )

    def record(self, content: bool = True) -> Record:
        """What config.json holds; without `content`, which reads files, what all processes need."""
        data = {"name": self.dataset.name, "fingerprint": self.dataset.fingerprint}
        data |= self.content if content else {}
        identity = (self.id, self.first_version, self.left_open, self.origin)
        return Record(self.recipe, self.runtime, self.preset, data, *identity)

    def batches(
        self, split: Literal["train", "val"], start: int, process: int = 0, num_processes: int = 1
    ) -> Batches:
        """The stream of batches of one process, from batch `start` on."""
        return batches(
            self.recipe,
            split,
            start,
            process,
            num_processes,
            dataset=self.dataset,
            runtime=self.runtime,
        )


def make_plan(requested: RequestedConfig, framework: str) -> Plan:
    """The plan of a run whose devices are resolved. Raises UserError for whatever cannot work;
    writes nothing."""
    run_dir = (
        Path(requested.run_dir) if requested.run_dir else free_run_dir(requested.preset, framework)
    )
    if requested.device == "cpu":
        assert requested.world_size is not None  # the devices are resolved
        check_processes(requested.world_size)
    if requested.tensorboard == "on" and requested.mode == "train":
        tensorboard.check_installed()
    given = _given_weights(requested, run_dir)
    dataset = _dataset(requested, given)
    if requested.minival == "on":
        dataset = with_minival(dataset)
    model = _model(requested, given.source.cfg if given else None, dataset)
    recipe = settle_recipe(requested, model, len(dataset.train))
    if recipe.class_weights:
        weights_of = settled(recipe.class_weights, labels_of(dataset.train), model.num_classes)
        recipe = dataclasses.replace(recipe, class_weights=weights_of)
    runtime = _machine(requested, run_dir, recipe, len(dataset.train))
    _say_of_length(requested, recipe, dataset)
    if requested.mode == "train":
        check_metric(runtime.keep_best, recipe)
    plan = Plan(
        recipe, runtime, requested.preset, requested.mode, requested.resume, dataset, run_dir,
        given, left_open=requested.left_open, origin=_origin(given),
    )  # fmt: skip
    if requested.resume and requested.record is not None:
        known = requested.record
        plan = dataclasses.replace(
            plan,
            id=known.id or plan.id,
            first_version=known.first_version,
            origin=known.origin,
        )
    _check_classes(plan, requested)
    if (
        requested.check_images == "on"
        and requested.mode == "train"
        and _is_first(requested.process_id)
    ):
        _check_images(plan)
    if requested.mode == "eval" and given is not None:
        _check_names(plan, given.source.class_names)
    return plan


def _dataset(requested: RequestedConfig, given: GivenWeights | None) -> Dataset:
    """The data of the flags. Evaluated without a split of their own, they are those held out of the
    run that is evaluated, and all of them for other weights."""
    training = requested.mode == "train"
    dataset = open_dataset(requested.data, requested.data_dir, requested.class_order, training)
    if training or not dataset.held_out:
        return dataset
    own = {"name": dataset.name, "fingerprint": dataset.fingerprint}
    if requested.record is not None and not other_data(requested.record.data, own):
        return dataset
    return open_whole(requested.data_dir, given.source.class_names if given else None)


FEW_STEPS, ENOUGH_STEPS = 100, 200  # of fine-tuning


def settle_recipe(requested: RequestedConfig, model: ModelConfig, num_train: int) -> Recipe:
    """The recipe of flags, a model and `num_train` training examples. Raises UserError.

    Fine-tuning of which nobody chose the length takes at least `ENOUGH_STEPS`, however few the
    images are.
    """
    steps = requested.steps or max(1, round(requested.epochs * num_train / requested.batch_size))
    if _length_is_open(requested):
        steps = max(steps, ENOUGH_STEPS)
    check_range("steps", steps, settings_of(Recipe)["steps"], "the length in --{}")
    values = requested.values_of(Recipe) | {"model": model, "steps": steps}
    if requested.warmup_steps is None:
        values["warmup_steps"] = min(LONGEST_WARMUP, steps // 20)
    recipe = Recipe(**values)
    if not trained_names(recipe):
        raise UserError(f"--freeze={recipe.freeze} leaves nothing to train")
    return recipe


def _length_is_open(requested: RequestedConfig) -> bool:
    """Whether a run fine-tunes by what --data=folder means, and nobody chose a preset or length."""
    chosen = {"preset", "epochs", "steps"} & set(requested.given)
    return requested.record is None and requested.preset == "finetune" and not chosen


def _is_lengthened(requested: RequestedConfig, recipe: Recipe, num_train: int) -> bool:
    few = requested.epochs * num_train / recipe.batch_size < ENOUGH_STEPS - 1
    return _length_is_open(requested) and few and recipe.steps == ENOUGH_STEPS


def _say_of_length(requested: RequestedConfig, recipe: Recipe, dataset: Dataset) -> None:
    """Add to the data's notices where fine-tuning has few steps, or more than its epochs."""
    if not requested.init_from or requested.mode != "train" or requested.record is not None:
        return
    few = f"{len(dataset.train):,} images in batches of {recipe.batch_size}"
    if (
        _length_is_open(requested)
        and recipe.steps > requested.epochs * len(dataset.train) / recipe.batch_size
    ):
        dataset.notices.append(
            f"{requested.epochs:g} epochs of {few} would be few steps, so this run takes "
            f"{recipe.steps}: --steps or --epochs set another length"
        )
    elif recipe.steps < FEW_STEPS:
        dataset.notices.append(
            f"{recipe.steps} steps are few for fine-tuning ({few}): more --epochs or --steps, or a "
            "smaller --batch_size, if the result is poor"
        )


def first_or_given_state(plan: Plan) -> TrainState:
    """The state before the first update: drawn from the seed, or read from --init_from."""
    recipe, given = plan.recipe, plan.weights
    if recipe.init_from:
        cfg = recipe.model
        if given is None:  # resumed before any checkpoint
            hints = dict(num_heads=cfg.num_heads, num_classes=cfg.num_classes)
            commit = plan.origin["revision"] if plan.origin else None
            path = _newest(recipe.init_from, plan.runtime.process_id)
            given = GivenWeights(path, commit, **hints)
        source = given.source
        _, adapted = adapt(
            source.cfg,
            source.arrays,
            cfg.image_shape,
            cfg.num_classes,
            positions=recipe.positions,
        )
        arrays = in_memory(adapted)
    else:
        arrays = init.draw(recipe.model, recipe.seed)
    return first_state(recipe.model, arrays, recipe.precision, recipe)


def start_state(plan: Plan) -> TrainState:
    """The state that a start of the run begins from: of a resumed one its newest checkpoint."""
    found = checkpoint.newest(plan.run_dir, plan.record(content=False)) if plan.resume else None
    return first_or_given_state(plan) if found is None else checkpoint.load(found)[0]


def state_to_evaluate(plan: Plan) -> TrainState:
    """The weights to evaluate, with moments of zero."""
    assert plan.weights is not None
    source, cfg = plan.weights.source, plan.recipe.model
    _, arrays = adapt(source.cfg, source.arrays, cfg.image_shape, positions=plan.recipe.positions)
    return first_state(cfg, in_memory(arrays), plan.recipe.precision, plan.recipe)


def _given_weights(requested: RequestedConfig, run_dir: Path) -> GivenWeights | None:
    """The weights that an evaluation or a new run reads."""
    path = requested.init_from or (run_dir if requested.mode == "eval" else None)
    if path is None or requested.resume:
        return None
    hints = dict(
        num_heads=requested.given.get("num_heads"), num_classes=requested.given.get("num_classes")
    )
    return GivenWeights(_newest(path, requested.process_id), **hints)


def _origin(given: GivenWeights | None) -> dict[str, Any] | None:
    """What a record stores about weights that were downloaded."""
    origin = given.source.origin if given else None
    return {"revision": origin.commit, "sha256": origin.sha256} if origin else None


def _newest(path: str | Path, process: int | None) -> Path:
    """The newest intact checkpoint, where a path is a run; else the path.

    What is to be said of it the first process says.
    """
    given, (path, which) = path, split_choice(path)
    if not is_run(path):
        return Path(given)
    found = checkpoint.newest(path, read_record(path))
    if found is None:
        raise UserError(f"the run in {path} has no checkpoint yet")
    if _is_first(process):
        notice = _best_notice(path, found.step)
        lines = [f"skipped: {line}" for line in found.skipped] + ([notice] if notice else [])
        for line in lines:
            print(line, file=sys.stderr, flush=True)
    if which != "ema":
        return found.path / checkpoint.MODEL
    if not (found.path / AVERAGE).exists():
        raise UserError(f"{path} has no average of its weights (--ema): leave #ema out")
    return found.path / AVERAGE


def _is_first(process: int | None) -> bool:
    return not process and os.environ.get("RANK", "0") == "0"


def _check_images(plan: Plan) -> None:
    """Decode every image. Raises UserError for bad ones; with --on_bad_image=skip names them."""
    bad = check_dataset(plan.dataset)
    total = len(plan.dataset.train) + len(plan.dataset.val)
    text = f"{len(bad):,} of {total:,} images cannot be decoded: {some(bad)}"
    if bad and plan.runtime.on_bad_image == "stop":
        raise UserError(
            f"{text}. Fix or remove them, or --on_bad_image=skip uses their neighbours instead"
        )
    if bad:
        print(f"notice: {text}", file=sys.stderr, flush=True)


def _best_notice(run_dir: Path, newest: int) -> str | None:
    """A notice that a run also has a best checkpoint, where its newest was used."""
    try:
        best = read_best(run_dir)
    except UserError as error:
        return f"skipped: {error}"
    if best is None or best.step == newest:
        return None
    return (
        f"notice: this is the newest checkpoint of {run_dir}, step {newest}; its best is named by "
        f"{run_dir / best.path} ({best.describe()})"
    )


def _model(
    requested: RequestedConfig, of_file: ModelConfig | None, dataset: Dataset
) -> ModelConfig:
    if requested.mode == "eval":
        assert of_file is not None
        return _evaluated(requested, of_file)
    if requested.resume:
        assert requested.record is not None
        return _resumed(requested, requested.record.recipe.model)
    num_classes = requested.num_classes or dataset.num_classes
    if of_file is None:
        return named_model(requested, num_classes)
    return _adapted(requested, of_file, num_classes)


def _evaluated(requested: RequestedConfig, of_file: ModelConfig) -> ModelConfig:
    """The function of the weights; the size and the preparation of images may differ, nothing
    else."""
    given = model_changes(requested, only_given=True)
    free = {n: given.pop(n) for n in (*IMAGE_FIELDS, *INPUT_FLAGS) if n in given}
    wrong = [f"--{n}={v}, and they have {getattr(of_file, n)}" for n, v in given.items()
             if n not in ("dropout", "drop_path") and getattr(of_file, n) != v]  # fmt: skip
    if wrong:
        raise UserError(f"the weights to evaluate do not fit the flags: {some(wrong)}")
    return dataclasses.replace(of_file, dropout=0.0, drop_path=0.0, **free)


def _resumed(requested: RequestedConfig, recorded: ModelConfig) -> ModelConfig:
    """The run's model with the flags given here, so that a difference can be named."""
    changes = model_changes(requested, only_given=True)
    if "model" not in requested.given:
        return dataclasses.replace(recorded, **changes)
    return dataclasses.replace(named_model(requested, recorded.num_classes), **changes)


def _machine(
    requested: RequestedConfig, run_dir: Path, recipe: Recipe, num_train: int
) -> RuntimeConfig:
    values: dict[str, Any] = requested.values_of(RuntimeConfig) | {"run_dir": str(run_dir)}
    if requested.eval_every is None:
        values["eval_every"] = max(1, round(num_train / recipe.batch_size))
        if _is_lengthened(requested, recipe, num_train):  # each epoch would be each step
            values["eval_every"] = max(values["eval_every"], recipe.steps // 10)
    if requested.checkpoint_every is None:
        values["checkpoint_every"] = values["eval_every"]
    return RuntimeConfig(**values)


def _check_classes(plan: Plan, requested: RequestedConfig) -> None:
    """The head and the data must have the same classes; more in the head only on request."""
    has, needs = plan.model.num_classes, plan.dataset.num_classes
    wanted = plan.mode == "train" or "num_classes" in requested.given or _same_data(plan, requested)
    if has == needs or (has > needs and wanted):
        return
    if plan.mode == "eval" and not has:
        raise UserError("the weights have no head to evaluate: --preset=linear_probe trains one")
    if plan.mode == "eval":
        raise UserError(
            f"the data set {plan.dataset.name} has {needs} classes, the weights have {has}: name "
            "the data they were trained on by --data and --data_dir"
        )
    raise UserError(
        f"the data set {plan.dataset.name} has {needs} classes, the model's head only {has}: set "
        f"--num_classes={needs}"
    )


def _check_names(plan: Plan, names: Sequence[str] | None) -> None:
    """Raise UserError for weights of the data's own classes in another order: a label would mean
    another class to them. Names that the data do not have may be other words for the same."""
    if not names:
        return
    ours = [first_name(n) for n in cleaned(plain_names(tuple(names)))]
    theirs = [first_name(n) for n in plan.class_names[: plan.dataset.num_classes]]
    moved = [i for i, n in enumerate(ours[: len(theirs)]) if n != theirs[i] and n in theirs]
    crossed = [i for i in moved if theirs[i] in ours]  # one name alone may be another wording
    if crossed or 100 * len(moved) > len(theirs):
        i = (crossed or moved)[0]
        raise UserError(
            f"{len(moved)} classes of the weights have another number in the data: class {i} is "
            f"{ours[i]!r} to the weights, and {theirs[i]!r} to the data {plan.dataset.name}, which "
            f"have {ours[i]!r} as class {theirs.index(ours[i])}. Evaluate on data whose class "
            "folders sort as those that the weights were trained on"
        )


def _same_data(plan: Plan, requested: RequestedConfig) -> bool:
    """Whether the data are those that the evaluated run was trained on."""
    return requested.record is not None and not other_data(
        requested.record.data, plan.record().data
    )


def _adapted(requested: RequestedConfig, of_file: ModelConfig, num_classes: int) -> ModelConfig:
    """The file's function at the size and with the classes and dropout that the flags want.

    Its sizes are the file's: a preset's model is for runs from scratch. One that is named must fit.
    """
    if "model" in requested.given:
        _check_model(requested, of_file, named_model(requested, num_classes))
    for name in ("gelu", "pool", "pos_embed", *SIZE_FLAGS):
        wants = requested.given.get(name)
        if wants is not None and wants != getattr(of_file, name):
            raise UserError(
                f"--{name}={wants}, but the weights of {requested.init_from} have "
                f"{getattr(of_file, name)}"
            )
    changes: dict[str, Any] = {n: getattr(requested, n) for n in ("dropout", "drop_path")}
    changes["num_classes"] = num_classes
    for name in INPUT_FLAGS:
        if getattr(requested, name) is not None:
            changes[name] = getattr(requested, name)
    if requested.image_size is not None:
        changes |= image_fields(requested.image_size)
    if of_file.num_classes != num_classes:
        changes["pre_logits"] = 0  # goes with the head of the old task (see `adapt`)
    new = dataclasses.replace(of_file, **changes)
    check_size(of_file, new)
    return new


def _check_model(requested: RequestedConfig, of_file: ModelConfig, wanted: ModelConfig) -> None:
    different = [f"{n}: {getattr(of_file, n)}, not {getattr(wanted, n)}" for n in SIZE_FLAGS
                 if getattr(of_file, n) != getattr(wanted, n)]  # fmt: skip
    if different:
        expected, found = canonical.shapes(wanted), canonical.shapes(of_file)
        tensors = [f"{n} is {found.get(n, 'absent')}, expected {s}" for n, s in expected.items()
                   if found.get(n) != s]  # fmt: skip
        raise UserError(
            f"--init_from={requested.init_from} holds another model than --model={requested.model} "
            f"({'; '.join(different)}), which may be left out; its tensor {some(tensors, 3)}"
        )


def free_run_dir(preset: str | None, framework: str) -> Path:
    """runs/<preset>-<framework>, numbered where that is taken."""
    base = Path("runs") / f"{preset or 'run'}-{framework}"
    numbered = (base.with_name(f"{base.name}-{i}") for i in itertools.count(2))
    return next(p for p in itertools.chain([base], numbered) if not p.exists())
