"""A zoo of ports with known mistakes: small PyTorch models, each in several JAX styles.

`build("vit", "linen", seed=0)` is an exact port; `build(..., mutations=["gelu_tanh"])` plants
mistakes through the port's config. `mutations.MUTATIONS` names every mistake's cause and place.
All weights are drawn, none is zero or constant, and no two dimensions agree by chance.
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .conv_config import ConvConfig
from .decoder_config import DecoderConfig
from .mutations import MUTATIONS, Mutation
from .sequence_config import SequenceConfig
from .vit_config import ViTConfig

if TYPE_CHECKING:  # where a port is recorded, PyTorch need not be there
    from torch import nn

CONFIGS = {
    "vit": ViTConfig,
    "conv": ConvConfig,
    "decoder": DecoderConfig,
    "sequence": SequenceConfig,
}
REFERENCES = {"vit": "ViT", "conv": "ConvNet", "decoder": "Decoder", "sequence": "SequenceNet"}
STYLES = {
    "vit": ("nnx", "linen", "equinox", "scan"),
    "conv": ("nnx", "linen", "equinox"),
    "decoder": ("nnx", "linen", "equinox"),
    "sequence": ("nnx", "linen", "equinox"),
}


@dataclass
class Case:
    """A reference, its port, and inputs for both.

    `jax_model`: an `nnx.Module`, `(linen module, variables)`, an Equinox module or `(fn, params)`.
    """

    model: str
    style: str
    cfg: Any
    port_cfg: Any
    torch_model: "nn.Module"
    jax_model: Any
    inputs: tuple[np.ndarray, ...]
    jax_inputs: tuple[np.ndarray, ...]

    def explainable(self) -> Any:
        """The port as `twinvit.port.explain` takes it."""
        return explainable(self.style, self.jax_model)

    def run_torch(self) -> np.ndarray:
        """The reference's output."""
        import torch

        with torch.no_grad():
            return self.torch_model(*map(torch.from_numpy, self.inputs)).numpy()

    def run_jax(self) -> np.ndarray:
        """The port's output, in the precision of its weights and of JAX's settings."""
        if self.style == "linen":
            module, variables = self.jax_model
            mutable = ["batch_stats"] if getattr(self.port_cfg, "train", False) else False
            out = module.apply(variables, *self.jax_inputs, mutable=mutable)
            return np.asarray(out[0] if mutable else out)
        if self.style == "scan":
            fn, params = self.jax_model
            return np.asarray(fn(params, *self.jax_inputs))
        return np.asarray(self.jax_model(*self.jax_inputs))


def fill(module: "nn.Module", rng: np.random.Generator) -> None:
    """Draw every parameter and statistic: weights by fan-in, scales near 1."""
    import torch

    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or "inv_freq" in name:
            continue
        values = rng.standard_normal(tensor.shape)
        if name.endswith("running_var"):
            values = 0.4 + np.abs(values)
        elif name.endswith("weight") and tensor.ndim == 1:
            values = 1 + 0.3 * values
        elif name.endswith(("weight", "weight_ih_l0", "weight_hh_l0")):
            values *= 1.2 / np.sqrt(np.prod(tensor.shape[1:]))
            if "embed" in name and tensor.ndim == 2:
                values *= 3
        elif "bias_" in name:  # a port adds the two biases of a cell: exact in float32 so
            values = np.round(values * 0.4 * 1024) / 1024
        else:
            values *= 0.4
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(values.astype(np.float32)))


def inputs(model: str, cfg: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The reference's input and the port's: images NCHW and NHWC, or token ids."""
    if model == "decoder":
        ids = rng.integers(0, cfg.vocab, (cfg.batch, cfg.length))
        return ids, ids
    images = rng.standard_normal((cfg.batch, cfg.channels, *cfg.image)).astype(np.float32)
    return images, images.transpose(0, 2, 3, 1)


def configs(
    model: str, seed: int, mutations: Sequence[str], **reference: Any
) -> tuple[np.random.Generator, Any, Any]:
    """What draws the weights, and the configs of the reference and of the port."""
    rng = np.random.default_rng([seed, list(CONFIGS).index(model)])
    cfg = dataclasses.replace(CONFIGS[model].draw(rng), **reference)
    chosen = [find(model, name) for name in mutations]
    for mutation in chosen:
        cfg = dataclasses.replace(cfg, **mutation.reference)
    port_cfg = cfg
    for mutation in chosen:
        change = dict(mutation.change)
        if "extra" in change:
            change["extra"] = port_cfg.extra | change["extra"]
        port_cfg = dataclasses.replace(port_cfg, **change)
    return rng, cfg, port_cfg


def reference_of(
    model: str, cfg: Any, rng: np.random.Generator, dtype: type = np.float32
) -> tuple["nn.Module", np.ndarray]:
    """The reference with its weights drawn, and its input."""
    import torch

    package = importlib.import_module(f"{__name__}.{model}_torch")
    torch_model = getattr(package, REFERENCES[model])(cfg)
    fill(torch_model, rng)
    torch_model.to(getattr(torch, np.dtype(dtype).name)).train(getattr(cfg, "train", False))
    mine, _ = inputs(model, cfg, rng)
    return torch_model, mine.astype(dtype) if mine.dtype == np.float32 else mine


def port_of(
    model: str, style: str, port_cfg: Any, state: Mapping[str, np.ndarray], mine: np.ndarray
) -> tuple[Any, np.ndarray]:
    """The port of a reference with these weights, and its input."""
    channels_last = mine.ndim == 4 and style != "equinox"
    load = importlib.import_module(f"{__name__}.{model}_{style}").load
    return load(port_cfg, state), mine.transpose(0, 2, 3, 1) if channels_last else mine


def explainable(style: str, jax_model: Any) -> Any:
    """A port as `twinvit.port.explain` takes it."""
    if style != "scan":
        return jax_model
    from twinvit import port

    return port.Function(*jax_model)


def build(
    model: str,
    style: str,
    seed: int = 0,
    mutations: Sequence[str] = (),
    dtype: type = np.float32,
    **reference: Any,
) -> Case:
    """A reference and its port of one style, sizes and weights drawn by `seed`.

    `mutations` are names in `MUTATIONS` of that model; `reference` changes the config of both
    sides. Float64 ports need JAX's x64 mode.
    """
    rng, cfg, port_cfg = configs(model, seed, mutations, **reference)
    torch_model, mine = reference_of(model, cfg, rng, dtype)
    state = {k: v.numpy() for k, v in torch_model.state_dict().items()}
    port, theirs = port_of(model, style, port_cfg, state, mine)
    return Case(model, style, cfg, port_cfg, torch_model, port, (mine,), (theirs,))


def find(model: str, name: str) -> Mutation:
    """The mutation of that name and model. Raises KeyError."""
    for mutation in MUTATIONS:
        if (mutation.model, mutation.name) == (model, name):
            return mutation
    raise KeyError(f"{model} has no mutation {name!r}")


def draw_mutations(model: str, style: str, count: int, rng: np.random.Generator) -> list[Mutation]:
    """Catalogued mutations that can be planted together: no two change the same setting."""
    pool = [m for m in MUTATIONS if m.model == model and m.plantable(style) and m.what == "forward"]
    pool = [m for m in pool if m.cause != "expression" and not m.alone]
    while True:
        drawn = [pool[i] for i in rng.choice(len(pool), count, replace=False)]
        keys = [key for m in drawn for key in m.change]
        if len(keys) == len(set(keys)) and sum(bool(m.reference) for m in drawn) < 2:
            return drawn
