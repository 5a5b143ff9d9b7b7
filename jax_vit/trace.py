"""The outputs of a model's modules, by name. Twin of `torch_vit/trace.py`."""

from contextvars import ContextVar
from functools import cache
from typing import Any

from flax import nnx
from jax import Array

# What the trace of this thread (and asyncio task) records: {id(module): name}, {name: output}, and
# of how many tokens.
_recording: ContextVar[tuple[dict[int, str], dict[str, Array], int]] = ContextVar("recording")


def trace(model: nnx.Module, images: Array) -> dict[str, Array]:
    """`{canonical module name: output}` of `model(images)`, in order of completion.

    `""` is the model's own output. The model itself stays as it is: the modules of a copy record,
    without the token that fused attention is padded with.
    """
    copy = nnx.merge(*nnx.split(model))
    copy.remat = False  # which would call copies of the blocks
    names = {id(m): ".".join(map(str, path)) for path, m in nnx.iter_modules(copy)}
    for _, module in nnx.iter_modules(copy):
        if callable(module):
            kind: Any = type(module)
            object.__setattr__(module, "__class__", _recorder(kind))
    outputs: dict[str, Array] = {}
    token = _recording.set((names, outputs, model.cfg.num_tokens))
    try:
        copy(images, every_token=True)
    finally:
        _recording.reset(token)
    return outputs


@cache
def _recorder(kind: type[nnx.Module]) -> type[nnx.Module]:
    """The subclass whose calls record their output. Python looks `__call__` up on the class."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Array:
        output = kind.__call__(self, *args, **kwargs)
        names, outputs, num_tokens = _recording.get()
        outputs[names[id(self)]] = output[:, :num_tokens] if output.ndim == 3 else output
        return output

    return type(kind.__name__, (kind,), {"__call__": call})
