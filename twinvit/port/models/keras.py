"""A Keras 3 model with the JAX backend."""

from __future__ import annotations

import sys
from typing import Any

from twinvit.port.errors import PortError
from twinvit.port.models.base import Mode, Pure, is_of


def accepts(port: Any) -> bool:
    return is_of(port, "keras") and callable(port)


def pure(port: Any, mode: Mode) -> Pure:
    """Its variables are the leaves, those that are trained first.

    Raises:
        PortError: another backend than JAX is in force, or the model has not been built.
    """
    backend = sys.modules["keras"].backend.backend()
    if backend != "jax":
        raise PortError(
            f"the Keras port runs on the {backend} backend; set KERAS_BACKEND=jax before keras is "
            "imported"
        )
    if not port.built:
        raise PortError("the Keras port has no weights yet; call it once, or build(input_shape)")
    trained, others = list(port.trainable_variables), list(port.non_trainable_variables)
    count = len(trained)

    def call(ls: Any, *xs: Any) -> Any:
        out, state = port.stateless_call(ls[:count], ls[count:], *xs, training=mode.train)
        return (out, state) if mode.train else out

    variables = [*trained, *others]
    names = [v.path.replace("/", ".") for v in variables]
    return Pure(call, [v.value for v in variables], names, "keras", stateful=mode.train)
