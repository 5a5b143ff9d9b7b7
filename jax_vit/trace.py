"""The outputs of a model's modules, by name."""

from unittest import mock

import jax
from flax import nnx


def trace(model: nnx.Module, images: jax.Array) -> dict[str, jax.Array]:
    """`{canonical module name: output}` of `model(images)`, in order of completion; `""` is the model's own output."""
    names = {id(m): ".".join(map(str, path)) for path, m in nnx.iter_modules(model)}
    outputs: dict[str, jax.Array] = {}

    def recording(call):
        def wrapped(self, *args, **kwargs):
            output = call(self, *args, **kwargs)
            if id(self) in names:
                outputs[names[id(self)]] = output
            return output

        return wrapped

    # Python looks `__call__` up on the class, so the hook goes there for the length of one forward pass.
    classes = {type(m) for _, m in nnx.iter_modules(model) if "__call__" in vars(type(m))}
    patches = [mock.patch.object(c, "__call__", recording(c.__call__)) for c in classes]
    for patch in patches:
        patch.start()
    try:
        model(images)
    finally:
        for patch in patches:
            patch.stop()
    return outputs
