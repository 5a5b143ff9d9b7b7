"""Trainers of one recipe in one process share their traced and compiled programs.

Half of a test of a JAX trainer is to trace and compile the step of a recipe that a test before it
has used. `share` lets trainers of the same class, recipe, mesh and settings use the jitted
functions of the first of them, as long as no function or class of the packages was replaced in
between: a fault that a test plants is traced anew, and is not seen by the tests after it.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

PACKAGES = ("jax_vit", "jax.nn", "shared_vit.spec", "shared_vit.run.state", "twinvit.lockstep")
PROGRAMS = ("compute_step", "compute_gradients", "compute_update", "compute_counts")
_known: dict[Any, tuple[dict[str, Any], list[Any]]] = {}


@functools.cache
def share() -> None:
    """Change the three classes of trainers, for this process, once."""
    from jax_vit.trainer import Trainer
    from twinvit.lockstep.jax_step import WatchedTrainer
    from twinvit.lockstep.jax_update import HostTrainer

    for kind in (Trainer, WatchedTrainer, HostTrainer):
        kind.__init__ = _sharing(kind, kind.__init__)


def forget() -> None:
    """Share with no trainer of before."""
    _known.clear()


def _sharing(kind: type, init: Any) -> Any:
    @functools.wraps(init)
    def __init__(self, state, train, mesh, remat=False, shard=False):
        init(self, state, train, mesh, remat=remat, shard=shard)
        if type(self) is kind:
            _take(self, (remat, shard))

    return __init__


def _take(trainer: Any, settings: tuple) -> None:
    """Give a trainer the programs of an equal one, or note its own."""
    parts = _parts()
    key = (type(trainer), trainer.train, trainer.mesh, settings, tuple(sorted(trainer.slots)))
    key = (*key, tuple(map(id, parts)))
    own = {name: getattr(trainer, name) for name in PROGRAMS}
    found, _ = _known.setdefault(key, (own, parts))  # what is kept keeps its id
    for name, program in found.items():
        if hasattr(program, "_keep"):  # a watched one: its results go to this trainer
            own[name]._inner = program._inner
        else:
            setattr(trainer, name, program)


def _parts() -> list[Any]:
    """Every object of the packages' modules and of their classes."""
    found = []
    for name, module in list(sys.modules.items()):
        if name.startswith(PACKAGES) and module is not None:
            for part in list(vars(module).values()):
                found.append(part)
                if isinstance(part, type) and part.__module__.startswith(PACKAGES):
                    found += vars(part).values()
    return found
