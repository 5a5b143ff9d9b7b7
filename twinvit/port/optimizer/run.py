"""Both sides of a comparison of optimizers, run on the same gradients in float64."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import optax
import torch

from twinvit.port.errors import PortError
from twinvit.port.optimizer.halves import halves_as_they_come, widened
from twinvit.port.optimizer.model import Problem, Settings, nudges
from twinvit.port.optimizer.settings import FLOOR, NotModelledError, settings_of
from twinvit.port.record.jax_settings import float64_on_cpu


@dataclass
class Reference:
    """A PyTorch run: parameters before and after each step (steps + 1, elements), settings."""

    trajectory: np.ndarray
    settings: Settings | None
    name: str
    note: str = ""
    acted: np.ndarray | None = None  # (steps,) whether the clip did; None without one
    rounded: tuple[str, ...] = ()  # the 16-bit types that it asks for, which were left out


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


def _parts(made: Any) -> tuple[list[torch.optim.Optimizer], list[Any], Any]:
    """(optimizers, schedulers, clip or None) of what the factory returned."""
    items = made if isinstance(made, tuple | list) else (made,)
    optimizers: list[torch.optim.Optimizer] = []
    schedulers: list[Any] = []
    clip = None
    for item in items:
        if isinstance(item, torch.optim.Optimizer):
            optimizers.append(item)
        elif hasattr(item, "get_last_lr"):
            schedulers.append(item)
        elif isinstance(item, int | float) or callable(item):
            clip = item
        elif item is not None:
            raise PortError(
                f"torch_optimizer_factory returned a {type(item).__name__}; return an optimizer, "
                "or (optimizer, scheduler, clip), clip a number or a function of the parameters"
            )
    if not optimizers:
        raise PortError("torch_optimizer_factory returned no torch.optim.Optimizer")
    return optimizers, schedulers, clip


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
def run_torch(
    factory: Callable[[Any], Any], problem: Problem, nudge: int | None = None
) -> Reference:
    """The PyTorch side; with `nudge`, a seed, its parameters are changed by one eps in each
    step."""
    rng = np.random.default_rng(nudge)
    module = _Holder(problem.tree(problem.start))
    own = dict(module.named_parameters())  # a module's own come before its children's
    named = {name: own[name] for name in problem.shapes}
    with halves_as_they_come() as rounded:
        return _moved(factory, problem, module, named, rng if nudge is not None else None, rounded)


def _moved(
    factory: Callable[[Any], Any],
    problem: Problem,
    module: _Holder,
    named: Mapping[str, torch.nn.Parameter],
    rng: np.random.Generator | None,
    rounded: set[str],
) -> Reference:
    """The run of `run_torch`; `rng` nudges parameters after each step."""
    optimizers, schedulers, clip = _parts(factory(_argument(factory, module)))
    _settle_floor(optimizers)
    groups = {id(p): g for o in optimizers for g in o.param_groups for p in g["params"]}
    owners = {id(p): o for o in optimizers for g in o.param_groups for p in g["params"]}
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
        for optimizer in optimizers:
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        if rng is not None:
            for p in named.values():
                p.data *= torch.tensor(nudges(rng, tuple(p.shape)))
        trajectory.append(np.concatenate([p.detach().numpy().ravel() for p in named.values()]))
    name = " and ".join(dict.fromkeys(type(o).__name__ for o in optimizers))
    result = Reference(np.array(trajectory), None, name, rounded=tuple(sorted(rounded)))
    if clip is not None:
        result.acted = (np.array(clipped) != problem.gradients).any(axis=1)
    try:
        own_of = {n: owners[id(p)] for n, p in named.items()}
        result.settings = settings_of(
            own_of, first, np.array(rates), problem, np.array(clipped), result.trajectory
        )
    except NotModelledError as error:
        result.note = str(error)
    return result


@_running("the Optax transformation")
def run_optax(
    transform: Any, problems: Sequence[Problem], names: Mapping[str, str]
) -> list[np.ndarray]:
    """Of each problem the parameters before and after each step; compiled once."""
    found = []
    with float64_on_cpu():
        params = _nest(problems[0].jax_tree(problems[0].start), names)
        transform = _transform(transform, params)

        def update(params: Any, state: Any, gradients: Any) -> Any:
            updates, state = transform.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        step = widened(update, params, transform.init(params)) or jax.jit(update)
        for problem in problems:
            params = _nest(problem.jax_tree(problem.start), names)
            state = transform.init(params)
            trajectory = [problem.start]
            for gradient in problem.gradients:
                params, state = step(params, state, _nest(problem.jax_tree(gradient), names))
                leaves = [
                    problem.from_jax(n, np.asarray(_leaf(params, names[n]))) for n in problem.shapes
                ]
                trajectory.append(np.concatenate(leaves).astype(np.float64))
            found.append(np.array(trajectory))
    return found


def jax_orders(
    shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """Of weights that Flax and Keras call "kernel", (inputs, outputs) and (height, width, inputs,
    outputs), the order of PyTorch's axes."""
    return {
        name: (*range(2, len(shape)), 1, 0)
        for name, shape in shapes.items()
        if names[name].rpartition("/")[2] == "kernel" and len(shape) > 1
    }


def _settle_floor(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Give Adafactor the eps that it takes where parameters are float32, as models run: here they
    are float64."""
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.Adafactor):
            for group in optimizer.param_groups:
                floor, least = group["eps"]
                group["eps"] = (FLOOR if floor is None else floor, least)


def _transform(transform: Any, params: Any) -> Any:
    """An `optax.GradientTransformation`, made for these parameters where it is a function."""
    if hasattr(transform, "init") and hasattr(transform, "update"):
        return transform
    if not callable(transform):
        raise PortError(
            f"optax_transform is a {type(transform).__name__}; give an "
            "optax.GradientTransformation or a function from parameters to one"
        )
    return transform(params)


def by_names(
    factory: Callable[[Any], Any],
    transform: Any,
    problem: Problem,
    names: Mapping[str, str],
    given: tuple[bool, bool],
) -> list[str]:
    """Why names decide that are not the model's; `given`: whether shapes and jax_names were."""
    found = []
    text = (
        "{} goes by the parameters' names, and those here are not the model's: give {}, so that "
        "what they choose is compared"
    )
    plain = dict(zip(problem.shapes, _plain_names(list(problem.shapes), ".")))
    if not given[0]:
        renamed = replace(problem, shapes={plain[n]: s for n, s in problem.shapes.items()})
        try:
            same = np.array_equal(
                run_torch(factory, renamed).trajectory,
                run_torch(factory, problem).trajectory,
                equal_nan=True,
            )
        except PortError:
            same = False
        if not same:
            found.append(text.format("the PyTorch side", "shapes= by the model's names"))
    if not all(given):
        others = dict(zip(names, _plain_names(list(names.values()), "/")))
        if _program(transform, problem, names) != _program(transform, problem, others):
            found.append(text.format("the Optax side", "shapes= and jax_names="))
    return found


def _plain_names(names: Sequence[str], mark: str) -> list[str]:
    """Names that say nothing, which sort as the others do and nest as they do."""
    parts = sorted({part for name in names for part in name.split(mark)})
    plain = {part: f"x{i:04}" for i, part in enumerate(parts)}
    return [mark.join(plain[part] for part in name.split(mark)) for name in names]


def _program(transform: Any, problem: Problem, names: Mapping[str, str]) -> str:
    """What the transformation computes, as text; why it cannot be traced where it cannot."""
    try:
        with float64_on_cpu():
            params = _nest(problem.jax_tree(problem.start), names)
            made = _transform(transform, params)
            state = made.init(params)
            text = str(jax.make_jaxpr(made.update)(params, state, params))
            held = [np.asarray(x).tobytes() for x in jax.tree.leaves(state) if hasattr(x, "shape")]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return re.sub("0x[0-9a-f]+", "", text) + repr(held)


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
