"""Everything about a run that is settled before any device works: recipe, data, directory."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared_vit import weights
from shared_vit.data import Dataset, open_dataset
from shared_vit.errors import UserError, some
from shared_vit.run.asked import Asked
from shared_vit.run.command_line import model_changes, named_model
from shared_vit.run.record import Record
from shared_vit.run.schedule import learning_rate
from shared_vit.run.state import TrainState, first_state
from shared_vit.spec import canonical, init
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.machine import Machine
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.settings import check_range, settings_of
from shared_vit.weights.adapt import adapt


@dataclass(frozen=True)
class Plan:
    """A run of which every setting is known.

    weights: what an evaluation, or a run that starts from weights, reads; None otherwise.
    """

    recipe: Recipe
    machine: Machine
    preset: str | None
    mode: Literal["train", "eval"]
    resume: bool
    dataset: Dataset
    run_dir: Path
    weights: weights.Source | None = None

    @property
    def model(self) -> ModelConfig:
        return self.recipe.model

    @property
    def total_steps(self) -> int:
        return self.recipe.steps

    def epoch(self, step: int) -> float:
        """Passes over the training split after `step` updates."""
        return step * self.recipe.batch_size / len(self.dataset.train)

    def lr(self, update: int) -> float:
        """Learning rate of update number `update`, from 0."""
        recipe = self.recipe
        return learning_rate(update, recipe.steps, recipe.lr, recipe.warmup_steps)

    def record(self) -> Record:
        """What config.json holds, with an identity of its own."""
        data = {"name": self.dataset.name, "fingerprint": self.dataset.fingerprint}
        return Record(self.recipe, self.machine, self.preset, data)


def make_plan(asked: Asked, framework: str) -> Plan:
    """Settle a run whose devices are resolved. Raises UserError for whatever cannot work; writes
    nothing."""
    run_dir = Path(asked.run_dir) if asked.run_dir else _free_run_dir(asked.preset, framework)
    source = _source(asked, run_dir)
    dataset = open_dataset(asked.data, asked.data_dir)
    model = _model(asked, source, dataset)
    recipe = settle_recipe(asked, model, len(dataset.train))
    machine = _machine(asked, run_dir, recipe, len(dataset.train))
    plan = Plan(recipe, machine, asked.preset, asked.mode, asked.resume, dataset, run_dir, source)
    _check_classes(plan, asked)
    return plan


def settle_recipe(asked: Asked, model: ModelConfig, num_train: int) -> Recipe:
    """The recipe of flags, a model and `num_train` training examples. Raises UserError."""
    steps = asked.steps or max(1, round(asked.epochs * num_train / asked.batch_size))
    check_range("steps", steps, settings_of(Recipe)["steps"], "the length in --{}")
    return Recipe(**asked.values_of(Recipe) | {"model": model, "steps": steps})


def first_or_given_state(plan: Plan) -> TrainState:
    """The state before the first update: drawn from the seed, or read from --init_from."""
    recipe = plan.recipe
    if recipe.init_from:
        source = plan.weights or weights.open_weights(recipe.init_from)
        cfg = recipe.model
        _, arrays = adapt(source.cfg, source.arrays, cfg.image_size, cfg.num_classes)
    else:
        arrays = init.draw(recipe.model, recipe.seed)
    return first_state(recipe.model, arrays, recipe.precision)


def state_to_evaluate(plan: Plan) -> TrainState:
    """The weights to evaluate, with moments of zero."""
    assert plan.weights is not None
    source, cfg = plan.weights, plan.recipe.model
    _, arrays = adapt(source.cfg, source.arrays, cfg.image_size)
    return first_state(cfg, arrays, plan.recipe.precision)


def _source(asked: Asked, run_dir: Path) -> weights.Source | None:
    """The weights that an evaluation or a new run reads: found and checked, not yet loaded."""
    known = dict(num_heads=asked.num_heads, num_classes=asked.given.get("num_classes"))
    if asked.mode == "eval":
        return weights.open_weights(asked.init_from or run_dir, **known)
    if asked.init_from and not asked.resume:
        return weights.open_weights(asked.init_from, **known)
    return None


def _model(asked: Asked, source: weights.Source | None, dataset: Dataset) -> ModelConfig:
    if asked.mode == "eval":
        assert source is not None
        return _evaluated(asked, source.cfg)
    if asked.resume:
        assert asked.record is not None
        return _resumed(asked, asked.record.recipe.model)
    wanted = named_model(asked, asked.num_classes or dataset.num_classes)
    return wanted if source is None else _adapted(asked, source.cfg, wanted)


def _evaluated(asked: Asked, of_file: ModelConfig) -> ModelConfig:
    """The function of the weights; --image_size and --eval_resize may differ, nothing else."""
    given = model_changes(asked, only_given=True)
    free = {n: given.pop(n) for n in ("image_size", "eval_resize") if n in given}
    wrong = [f"--{n}={v}, and they have {getattr(of_file, n)}" for n, v in given.items()
             if n != "dropout" and getattr(of_file, n) != v]  # fmt: skip
    if wrong:
        raise UserError(f"the weights to evaluate do not fit the flags: {some(wrong)}")
    return dataclasses.replace(of_file, dropout=0.0, **free)


def _resumed(asked: Asked, recorded: ModelConfig) -> ModelConfig:
    """The run's model with the flags given here, so that a difference can be named."""
    changes = model_changes(asked, only_given=True)
    if "model" not in asked.given:
        return dataclasses.replace(recorded, **changes)
    return dataclasses.replace(named_model(asked, recorded.num_classes), **changes)


def _machine(asked: Asked, run_dir: Path, recipe: Recipe, num_train: int) -> Machine:
    values: dict[str, Any] = asked.values_of(Machine) | {"run_dir": str(run_dir)}
    if asked.eval_every is None:
        values["eval_every"] = max(1, round(num_train / recipe.batch_size))
    if asked.checkpoint_every is None:
        values["checkpoint_every"] = values["eval_every"]
    return Machine(**values)


def _check_classes(plan: Plan, asked: Asked) -> None:
    """The head and the data must have the same classes; a larger head only where it is asked for."""
    has, needs = plan.model.num_classes, plan.dataset.num_classes
    wanted = plan.mode == "train" or "num_classes" in asked.given or _same_data(plan, asked)
    if has == needs or (has > needs and wanted):
        return
    if plan.mode == "eval":
        raise UserError(
            f"the data set {plan.dataset.name} has {needs} classes, the weights have {has}: name "
            "the data they were trained on by --data and --data_dir"
        )
    raise UserError(
        f"the data set {plan.dataset.name} has {needs} classes, the model's head only {has}: set "
        f"--num_classes={needs}"
    )


def _same_data(plan: Plan, asked: Asked) -> bool:
    """Whether the data are those that the evaluated run was trained on."""
    return asked.record is not None and asked.record.data == plan.record().data


def _adapted(asked: Asked, of_file: ModelConfig, wanted: ModelConfig) -> ModelConfig:
    """The file's function at the size and with the classes and dropout that the flags want."""
    sizes = ("patch_size", "width", "depth", "num_heads", "mlp_dim")
    different = [f"{n}: {getattr(of_file, n)}, not {getattr(wanted, n)}" for n in sizes
                 if getattr(of_file, n) != getattr(wanted, n)]  # fmt: skip
    if different:
        expected, found = canonical.shapes(wanted), canonical.shapes(of_file)
        tensors = [f"{n} is {found.get(n, 'absent')}, expected {s}" for n, s in expected.items()
                   if found.get(n) != s]  # fmt: skip
        raise UserError(
            f"--init_from={asked.init_from} holds another model than --model={asked.model} "
            f"({'; '.join(different)}); its tensor {some(tensors, 3)}"
        )
    for name in ("gelu", "pool", "pos_embed"):
        wants = asked.given.get(name)
        if wants is not None and wants != getattr(of_file, name):
            raise UserError(
                f"--{name}={wants}, but the weights of {asked.init_from} were trained with "
                f"{getattr(of_file, name)}"
            )
    changes: dict[str, Any] = {
        n: getattr(wanted, n) for n in ("image_size", "num_classes", "dropout")
    }
    if asked.eval_resize is not None:
        changes["eval_resize"] = asked.eval_resize
    if of_file.num_classes != wanted.num_classes:
        changes["pre_logits"] = 0  # goes with the head of the old task (see `adapt`)
    return dataclasses.replace(of_file, **changes)


def _free_run_dir(preset: str | None, framework: str) -> Path:
    """runs/<preset>-<framework>, numbered where that is taken."""
    base = Path("runs") / f"{preset or 'run'}-{framework}"
    numbered = (base.with_name(f"{base.name}-{i}") for i in itertools.count(2))
    return next(p for p in itertools.chain([base], numbered) if not p.exists())
