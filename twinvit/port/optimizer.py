"""What differs between a `torch.optim` optimizer and an Optax transformation, and the proof.

The same drawn gradients go through both in float64. A NumPy model of the reference (checked against
the reference's own trajectory) is then edited, one known difference at a time, until it reproduces
the port's trajectory to rounding.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import optax
import torch

from twinvit.port import optimizer_search as search
from twinvit.port.errors import PortError
from twinvit.port.optimizer_model import Problem, Settings, simulate
from twinvit.port.record_jax import float64_on_cpu
from twinvit.port.report import Finding, Operation, Report

# Names and shapes that decay masks look at: kernels, biases, norms, an embedding, a convolution.
SHAPES = {
    "embed.weight": (5, 3),
    "conv.weight": (2, 3, 2, 2),
    "conv.bias": (2,),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "linear.weight": (4, 3),
    "linear.bias": (4,),
    "head.weight": (3, 4),
}
JAX_NAMES = {
    "embed.weight": "embed/embedding",
    "conv.weight": "conv/kernel",
    "conv.bias": "conv/bias",
    "norm.weight": "norm/scale",
    "norm.bias": "norm/bias",
    "linear.weight": "linear/kernel",
    "linear.bias": "linear/bias",
    "head.weight": "head/kernel",
}
NUDGED_RUNS = 3


@dataclass
class _Reference:
    """A PyTorch run: parameters before and after each step (steps + 1, elements), settings."""

    trajectory: np.ndarray
    settings: Settings | None
    name: str
    note: str = ""


def explain_optimizer(
    torch_optimizer_factory: Callable[[Any], Any],
    optax_transform: Any,
    steps: int = 20,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    jax_names: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Report:
    """Say what an Optax transformation computes that a PyTorch optimizer does not.

    Args:
        torch_optimizer_factory: takes the parameters and returns an optimizer, or a tuple of an
            optimizer and, in any order, a scheduler (stepped after each step) and a clip: the
            `max_norm` of `clip_grad_norm_`, or a function of the parameters called before each
            step. If its argument is called `model` or `module` it gets a module, if
            `named_parameters` (or `named_params`) those, else the list of parameters.
        optax_transform: `optax.GradientTransformation`, or a function from parameters to one.
        steps: steps of both; schedules are judged as far as these go.
        shapes: parameters by their PyTorch names; by default a set of eight small ones.
        jax_names: PyTorch name to path in the JAX tree ("linear/kernel"); by default its dots
            become slashes.
        seed: draws parameters and gradients.

    Returns:
        A report with what="optimizer"; its operations are the steps.

    Raises:
        PortError: a side could not be run.
    """
    if steps < 3:
        raise PortError(f"explain_optimizer: steps={steps} shows too little; give at least 3")
    if shapes is None:
        shapes, jax_names = SHAPES, jax_names or JAX_NAMES
    sizes = {name: tuple(shape) for name, shape in shapes.items()}
    names = {name: (jax_names or {}).get(name, name.replace(".", "/")) for name in shapes}
    problem = _draw(sizes, steps, seed)
    reference = _run_torch(torch_optimizer_factory, problem)
    port = _run_optax(optax_transform, problem, names)
    noise = np.zeros(steps)
    for run in range(NUDGED_RUNS):
        nudged = _run_torch(torch_optimizer_factory, problem.nudged(seed + 1 + run))
        noise = np.maximum(noise, _distances(reference.trajectory, nudged.trajectory))
    limit = max(1e-13, 100 * float(noise.max()))
    distances = _distances(reference.trajectory, port)
    worst = float(distances.max())
    report = Report(
        "same",
        True,
        worst,
        worst,
        operations=[
            Operation(i, f"step {i + 1}", reference.name, float(d), float(n), _status(d, limit))
            for i, (d, n) in enumerate(zip(distances, noise, strict=True))
        ],
        notes=[
            f"{steps} steps, {problem.size} parameters in {len(shapes)} tensors, the same "
            "gradients in float64; distances are of parameters, relative to how far they moved"
        ],
        unseen=[f"schedules after step {steps}"],
    )
    if np.isfinite(worst) and worst <= limit:
        return report
    found = _search(reference, problem, port, limit)
    if found is None:
        findings = [_unknown(reference, problem, port, distances, limit)]
        return replace(report, verdict="different", explained=False, findings=findings)
    notes = list(report.notes)
    if found.others:
        notes.append("explained as well by: " + "; ".join(found.others))
    return replace(
        report,
        verdict="different",
        remaining=found.distance,
        findings=[_finding(edit, reference, found.distance) for edit in found.edits],
        notes=notes,
    )


def _search(
    reference: _Reference, problem: Problem, port: np.ndarray, limit: float
) -> search.Found | None:
    """The reference's settings changed until it is the port; None where that does not succeed."""
    settings = reference.settings
    if settings is None:
        return None
    own = _distances(reference.trajectory, simulate(settings, problem)).max()
    if own > limit:
        reference.note = f"the model of {reference.name} is {own:.1e} from its own trajectory"
        return None
    return search.explain(settings, problem, port, limit)


def _finding(edit: search.Edit, reference: _Reference, after: float) -> Finding:
    return Finding(
        kind="precision" if edit.cause == "" else "cause",
        cause=edit.cause,
        text=edit.text,
        torch=f"{reference.name}: {edit.setting}",
        jax="",
        before=edit.before,
        after=after,
        places=edit.places,
        what="optimizer",
    )


def _status(distance: float, limit: float) -> str:
    return "found" if distance <= limit else "lost"


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(steps,) L2 distances of the parameters after each step over the furthest that `a` went."""
    moved = np.linalg.norm(a - a[0], axis=1).max()
    with np.errstate(invalid="ignore"):
        d = np.linalg.norm(a[1:] - b[1:], axis=1) / (moved or 1.0)
    return np.where(np.isfinite(d), d, np.inf)


def _draw(shapes: Mapping[str, tuple[int, ...]], steps: int, seed: int) -> Problem:
    """Parameters near 1 in size, gradients over many orders of size so that every epsilon shows."""
    rng = np.random.default_rng(seed)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    size = sum(sizes)
    scale = 10.0 ** rng.uniform(-8, 0, size)
    # Norms from 1/100 to 100: any usual clip acts in some steps and not in others.
    norms = 10.0 ** rng.permutation(np.linspace(-2, 2, steps))
    gradients = rng.standard_normal((steps, size)) * scale
    gradients *= (norms / np.linalg.norm(gradients, axis=1))[:, None]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return Problem(dict(shapes), rng.standard_normal(size), gradients, owner)


class _Holder(torch.nn.Module):
    """A module whose parameters have the given dotted names."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        for name, array in arrays.items():
            *path, leaf = name.split(".")
            module: torch.nn.Module = self
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, torch.nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(leaf, torch.nn.Parameter(torch.tensor(array)))


def _argument(factory: Callable[[Any], Any], module: torch.nn.Module) -> Any:
    try:
        first = next(iter(inspect.signature(factory).parameters), "")
    except (TypeError, ValueError):  # a class without a signature
        first = ""
    if first in ("model", "module"):
        return module
    if first in ("named_parameters", "named_params"):
        return list(module.named_parameters())
    return list(module.parameters())


def _parts(made: Any) -> tuple[torch.optim.Optimizer, Any, Any]:
    """(optimizer, scheduler or None, clip or None) of what the factory returned."""
    items = made if isinstance(made, tuple | list) else (made,)
    optimizer = scheduler = clip = None
    for item in items:
        if isinstance(item, torch.optim.Optimizer):
            optimizer = item
        elif hasattr(item, "get_last_lr"):
            scheduler = item
        elif isinstance(item, int | float) or callable(item):
            clip = item
        elif item is not None:
            raise PortError(
                f"torch_optimizer_factory returned a {type(item).__name__}; return an optimizer, "
                "or (optimizer, scheduler, clip), clip a number or a function of the parameters"
            )
    if optimizer is None:
        raise PortError("torch_optimizer_factory returned no torch.optim.Optimizer")
    return optimizer, scheduler, clip


@contextlib.contextmanager
def _running(side: str) -> Iterator[None]:
    """Word what a side raises as that side's."""
    try:
        yield
    except PortError:
        raise
    except Exception as error:
        raise PortError(f"{side} cannot be run: {type(error).__name__}: {error}") from error


@_running("the PyTorch optimizer")
def _run_torch(factory: Callable[[Any], Any], problem: Problem) -> _Reference:
    module = _Holder(problem.tree(problem.start))
    own = dict(module.named_parameters())  # a module's own come before its children's
    named = {name: own[name] for name in problem.shapes}
    optimizer, scheduler, clip = _parts(factory(_argument(factory, module)))
    groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    missing = [name for name, p in named.items() if id(p) not in groups]
    if missing:
        listed = ", ".join(missing)
        raise PortError(f"the optimizer was not given {listed}: group every parameter")
    first = {name: dict(groups[id(p)]) for name, p in named.items()}
    trajectory = [problem.start]
    rates, clipped = [], []
    for step in range(len(problem.gradients) + 1):
        rates.append([float(groups[id(p)]["lr"]) for p in named.values()])
        if step == len(problem.gradients):
            break  # one rate more than steps: a schedule that is one ahead
        for p, gradient in zip(named.values(), problem.tree(problem.gradients[step]).values()):
            p.grad = torch.tensor(gradient)
        if callable(clip):
            clip(list(named.values()))
        elif clip is not None:
            torch.nn.utils.clip_grad_norm_(named.values(), float(clip))
        grads = [p.grad.numpy().ravel() for p in named.values() if p.grad is not None]
        clipped.append(np.concatenate(grads))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        trajectory.append(np.concatenate([p.detach().numpy().ravel() for p in named.values()]))
    name = type(optimizer).__name__
    result = _Reference(np.array(trajectory), None, name)
    if name not in ("Adam", "AdamW", "SGD"):
        result.note = f"{name} is not modelled (Adam, AdamW and SGD are)"
        return result
    try:
        result.settings = _settings(name, first, np.array(rates), problem, np.array(clipped))
    except _NotModelledError as error:
        result.note = str(error)
    return result


class _NotModelledError(Exception):
    pass


def _settings(
    name: str, groups: dict[str, dict], rates: np.ndarray, problem: Problem, clipped: np.ndarray
) -> Settings:
    """The reference's settings as its parameter groups hold them; its clip from what it did."""
    all_groups = list(groups.values())

    def one(key: str) -> Any:
        values = {repr(g.get(key)): g.get(key) for g in all_groups}
        if len(values) > 1:
            raise _NotModelledError(f"{name}: {key} differs between parameter groups")
        return next(iter(values.values()))

    if one("maximize"):
        raise _NotModelledError(f"{name}: maximize is not modelled")
    decay = np.array([float(g["weight_decay"]) for g in all_groups])
    settings = Settings(
        kind="sgd" if name == "SGD" else "adam",
        rates=rates,
        decay=float(decay.max()),
        decayed=decay == decay.max() if decay.max() else np.ones(len(decay), bool),
        clip=_clip_of(problem.gradients, clipped),
    )
    if decay.max() and len(set(decay[decay > 0])) > 1:
        raise _NotModelledError(f"{name}: parameter groups with several weight decays")
    if name == "SGD":
        settings.momentum = float(one("momentum"))
        settings.dampening = float(one("dampening"))
        settings.nesterov = bool(one("nesterov"))
        settings.coupling = "coupled"
    else:
        b1, b2 = one("betas")
        settings.b1, settings.b2 = float(b1), float(b2)
        settings.eps = float(one("eps"))
        settings.amsgrad = bool(one("amsgrad"))
        decoupled = one("decoupled_weight_decay") if name == "Adam" else True
        settings.coupling = "decoupled" if decoupled else "coupled"
    return settings


def _clip_of(before: np.ndarray, after: np.ndarray) -> float | None:
    """`max_norm` of a `clip_grad_norm_` that turned `before` into `after`; None without a clip."""
    norms = np.linalg.norm(before, axis=1)
    factors = np.linalg.norm(after, axis=1) / norms
    acted = np.abs(factors - 1) > 1e-12
    if not acted.any():
        return None
    values = factors[acted] * (norms[acted] + 1e-6)
    value = float(np.median(values))
    if np.abs(values / value - 1).max() > 1e-12:
        raise _NotModelledError("the clip is not clip_grad_norm_'s")
    return search.plain_number(value, lambda x: abs(x / value - 1) < 1e-13)


@_running("the Optax transformation")
def _run_optax(transform: Any, problem: Problem, names: Mapping[str, str]) -> np.ndarray:
    with float64_on_cpu():
        params = _nest(problem.tree(problem.start), names)
        if not (hasattr(transform, "init") and hasattr(transform, "update")):
            if not callable(transform):
                raise PortError(
                    f"optax_transform is a {type(transform).__name__}; give an "
                    "optax.GradientTransformation or a function from parameters to one"
                )
            transform = transform(params)
        state = transform.init(params)

        @jax.jit
        def step(params: Any, state: Any, gradients: Any) -> Any:
            updates, state = transform.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        trajectory = [problem.start]
        for gradient in problem.gradients:
            params, state = step(params, state, _nest(problem.tree(gradient), names))
            leaves = [np.asarray(_leaf(params, names[n])).ravel() for n in problem.shapes]
            trajectory.append(np.concatenate(leaves).astype(np.float64))
    return np.array(trajectory)


def _nest(arrays: Mapping[str, np.ndarray], names: Mapping[str, str]) -> dict:
    tree: dict = {}
    for name, array in arrays.items():
        *path, leaf = names[name].split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = jax.numpy.asarray(array)
    return tree


def _leaf(tree: Any, path: str) -> Any:
    for part in path.split("/"):
        tree = tree[part]
    return tree


def _unknown(
    reference: _Reference,
    problem: Problem,
    port: np.ndarray,
    distances: np.ndarray,
    limit: float,
) -> Finding:
    """Where the two part: step, tensors, and the shape of the difference."""
    first = int(np.argmax(distances > limit))
    mine, theirs = np.diff(reference.trajectory, axis=0), np.diff(port, axis=0)
    apart = np.abs(reference.trajectory[1:] - port[1:]).max(axis=0)
    moved = np.abs(mine).max() or 1.0
    tensors = [
        name
        for i, name in enumerate(problem.shapes)
        if not apart[problem.owner == i].max() <= 1e-12 * moved
    ]
    text = [f"no known difference explains it; they part at step {first + 1}"]
    if len(tensors) < len(problem.shapes):
        text.append("only in " + ", ".join(tensors))
    a, b = mine[first], theirs[first]
    scale = float(a @ b / (a @ a)) if a @ a else np.nan
    if np.linalg.norm(b - scale * a) <= 1e-10 * np.linalg.norm(b):
        text.append(f"that step is the reference's times {scale:.6g}")
    if reference.note:
        text.append(reference.note)
    worst = float(distances.max())
    return Finding(
        kind="unknown",
        cause="",
        text="; ".join(text),
        torch=f"{reference.name}: step {first + 1}",
        jax="",
        before=worst,
        after=worst,
        places=tensors,
        what="optimizer",
    )
