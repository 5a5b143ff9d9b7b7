"""Everything about a run that is settled before any device works: data, model, length, directory, first state."""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

from shared_vit import weights
from shared_vit.data import Dataset, open_dataset
from shared_vit.errors import UserError
from shared_vit.run.directory import recorded_model
from shared_vit.run.schedule import learning_rate
from shared_vit.run.state import TrainState, first_state
from shared_vit.spec import canonical, init
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.recipe import TrainConfig, build_model_config
from shared_vit.weights.adapt import adapt


@dataclass
class Plan:
    """A run whose every setting is known. `cfg` has no None that matters."""

    cfg: TrainConfig
    model: ModelConfig
    dataset: Dataset
    run_dir: Path
    total_steps: int
    eval_every: int  # 0: only at the end
    checkpoint_every: int  # 0: only at the end

    def epoch(self, step: int) -> float:
        """Passes over the training split after `step` updates."""
        return step * self.cfg.batch_size / len(self.dataset.train)

    def lr(self, update: int) -> float:
        """Learning rate of update number `update`, from 0."""
        return learning_rate(update, self.total_steps, self.cfg.lr, self.cfg.warmup_steps)

    def record(self) -> dict:
        """What config.json holds: nothing that belongs to one start of the run alone."""
        of_a_start = ("run_dir", "resume", "stop_at", "coordinator", "num_processes", "process_id")
        fresh = {f.name: f.default for f in dataclasses.fields(TrainConfig) if f.name in of_a_start}
        return {
            "train": dataclasses.asdict(self.cfg) | fresh,
            "model": dataclasses.asdict(self.model),
            "data": {"name": self.dataset.name, "fingerprint": self.dataset.fingerprint},
            "total_steps": self.total_steps,
        }


def make_plan(cfg: TrainConfig, framework: str) -> Plan:
    """Settle a run whose devices are resolved. Raises UserError for whatever cannot work; writes nothing."""
    run_dir = Path(cfg.run_dir) if cfg.run_dir else _free_run_dir(cfg, framework)
    from_weights = (cfg.init_from and not cfg.resume) or cfg.mode == "eval"
    if from_weights:
        model = _given_weights(cfg, run_dir).cfg
        if cfg.mode == "eval":
            cfg = dataclasses.replace(
                cfg, image_size=model.image_size, num_classes=model.num_classes
            )
    dataset = open_dataset(cfg, cache_dir=run_dir)
    wanted = build_model_config(cfg, dataset.num_classes)
    if cfg.resume and cfg.mode == "train":
        model = recorded_model(run_dir)
    elif not from_weights:
        model = wanted
    elif cfg.mode == "train":
        model = _adapted(cfg, model, wanted)
    if model.num_classes < dataset.num_classes:
        raise UserError(
            f"the data set {dataset.name} has {dataset.num_classes} classes, the model's head only {model.num_classes}: "
            f"set --num_classes={dataset.num_classes}"
        )
    sizes = dict(
        num_classes=cfg.num_classes or model.num_classes,
        image_size=cfg.image_size or model.image_size,
    )
    cfg = dataclasses.replace(cfg, **sizes)
    epoch_steps = max(1, round(len(dataset.train) / cfg.batch_size))
    total = cfg.steps or max(1, round(cfg.epochs * len(dataset.train) / cfg.batch_size))
    eval_every = epoch_steps if cfg.eval_every is None else cfg.eval_every
    every = eval_every if cfg.checkpoint_every is None else cfg.checkpoint_every
    return Plan(cfg, model, dataset, run_dir, total, eval_every, every)


def first_or_given_state(plan: Plan) -> TrainState:
    """The state before the first update: drawn from the seed, or read from --init_from."""
    if plan.cfg.init_from:
        source = _given_weights(plan.cfg, plan.run_dir)
        _, arrays = adapt(source.cfg, source.arrays, plan.model.image_size, plan.model.num_classes)
    else:
        arrays = init.draw(plan.model, plan.cfg.seed)
    return first_state(plan.model, arrays, plan.cfg.precision)


def state_to_evaluate(plan: Plan) -> TrainState:
    """The weights of --init_from, or of the run's newest whole checkpoint, with empty moments."""
    return first_state(
        plan.model, _given_weights(plan.cfg, plan.run_dir).arrays, plan.cfg.precision
    )


def _given_weights(cfg: TrainConfig, run_dir: Path) -> weights.Source:
    """What --init_from names, else the run's newest whole checkpoint; found and checked, its arrays not yet read."""
    return weights.open_weights(
        cfg.init_from or run_dir, num_heads=cfg.num_heads, num_classes=cfg.num_classes
    )


def _adapted(cfg: TrainConfig, of_file: ModelConfig, wanted: ModelConfig) -> ModelConfig:
    """The file's function at the size and with the classes and dropout that the flags want."""
    sizes = ("patch_size", "width", "depth", "num_heads", "mlp_dim")
    different = [f"{n}: {getattr(of_file, n)}, not {getattr(wanted, n)}" for n in sizes
                 if getattr(of_file, n) != getattr(wanted, n)]  # fmt: skip
    if different:
        expected, found = canonical.shapes(wanted), canonical.shapes(of_file)
        tensors = [
            f"{n} is {found.get(n, 'absent')}, expected {s}"
            for n, s in expected.items()
            if found.get(n) != s
        ]
        raise UserError(
            f"--init_from={cfg.init_from} holds another model than --model={cfg.model} ({'; '.join(different)}); its tensor "
            f"{'; '.join(tensors[:3])}"
            + (f" and {len(tensors) - 3} more" if len(tensors) > 3 else "")
        )
    for name in ("gelu", "pool", "pos_embed"):
        asked = getattr(cfg, name)
        if asked is not None and asked != getattr(of_file, name):
            raise UserError(
                f"--{name}={asked}, but the weights of {cfg.init_from} were trained with {getattr(of_file, name)}"
            )
    changes = dict(
        image_size=wanted.image_size, num_classes=wanted.num_classes, dropout=wanted.dropout
    )
    if of_file.num_classes != wanted.num_classes:
        changes["pre_logits"] = 0  # goes with the head of the old task (see `adapt`)
    return dataclasses.replace(of_file, **changes)


def _free_run_dir(cfg: TrainConfig, framework: str) -> Path:
    """runs/<preset>-<framework>, numbered where that is taken."""
    base = Path("runs") / f"{cfg.preset or 'run'}-{framework}"
    names = itertools.chain(
        [base], (base.with_name(f"{base.name}-{i}") for i in itertools.count(2))
    )
    return next(p for p in names if not p.exists())
