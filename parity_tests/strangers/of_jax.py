"""Flax's msgpack, orbax, Google's `.npz`, Equinox and Keras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.training.train_state import TrainState

from strangers.row import CFG, Logits, Stranger


class Block(nn.Module):
    """A block of `vision_transformer/vit_jax/models_vit.py`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=CFG.num_heads)(y, y)
        y = nn.LayerNorm()(x)
        return x + Mlp(name="MlpBlock_0")(y)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.gelu(nn.Dense(CFG.mlp_dim)(x))
        return nn.Dense(CFG.width)(x)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Positions(name="posembed_input")(x)
        for i in range(CFG.depth):
            x = Block(name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class Positions(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        table = self.param("pos_embedding", nn.initializers.normal(0.2), (1, *x.shape[1:]))
        return x + table


class GoogleViT(nn.Module):
    """The ViT of `vision_transformer`, with its names."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        patch = (CFG.patch_size, CFG.patch_size)
        x = nn.Conv(CFG.width, patch, patch, padding="VALID", name="embedding")(images)
        x = x.reshape(len(x), -1, CFG.width)
        token = self.param("cls", nn.initializers.normal(0.2), (1, 1, CFG.width))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        return nn.Dense(CFG.num_classes, name="head")(Encoder(name="Transformer")(x)[:, 0])


def parameters(seed: int = 0) -> dict[str, Any]:
    """Random ones of which none is zero or constant, float32."""
    image = np.zeros((1, CFG.image_size, CFG.image_size, 3), np.float32)
    params = GoogleViT().init(jax.random.key(seed), image)["params"]
    rng = np.random.default_rng(seed)
    noise = lambda a: (np.asarray(a) + 0.2 * rng.standard_normal(a.shape)).astype(np.float32)  # noqa: E731
    return jax.tree.map(noise, params)


def of_google(params: dict[str, Any]) -> Logits:
    def logits(images: np.ndarray) -> np.ndarray:
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), np.float64), params)
        return np.asarray(GoogleViT().apply({"params": wide}, images))

    return logits


def train_state(seed: int = 0) -> TrainState:
    """After one update, so that AdamW's moments are no zeros."""
    state = TrainState.create(
        apply_fn=GoogleViT().apply, params=parameters(seed), tx=optax.adamw(1e-3)
    )
    return state.apply_gradients(grads=jax.tree.map(np.ones_like, state.params))


def to_bytes(folder: Path) -> tuple[Path, Logits]:
    state = train_state()
    (folder / "state.msgpack").write_bytes(flax.serialization.to_bytes(state))
    return folder / "state.msgpack", of_google(state.params)


def to_bytes_with_average(folder: Path) -> tuple[str, Logits]:
    """As timm's Flax twins and score models do: `ema_params` beside `params`."""
    state, average = train_state(), parameters(1)
    tree = flax.serialization.to_state_dict(state) | {"ema_params": average}
    (folder / "state.msgpack").write_bytes(flax.serialization.msgpack_serialize(
        jax.tree.map(np.asarray, tree)
    ))  # fmt: skip
    return f"{folder / 'state.msgpack'}#ema", of_google(average)


def legacy_checkpoint(folder: Path) -> tuple[Path, Logits]:
    """`flax.training.checkpoints`, as it was before orbax: a file without a suffix."""
    state = train_state()
    (folder / "checkpoint_500").write_bytes(flax.serialization.to_bytes(state))
    return folder / "checkpoint_500", of_google(state.params)


def folder_of_legacy(folder: Path) -> tuple[Path, Logits]:
    """The folder of such files, of which Flax's own `restore_checkpoint` takes the newest."""
    state = train_state()
    for step, each in ((500, train_state(1)), (1000, state)):
        (folder / f"checkpoint_{step}").write_bytes(flax.serialization.to_bytes(each))
    return folder, of_google(state.params)


def orbax_tree(folder: Path) -> tuple[Path, Logits]:
    state = train_state()
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(folder / "500", state)
    return folder / "500", of_google(state.params)


def orbax_standard(folder: Path) -> tuple[Path, Logits]:
    params = parameters()
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder / "params", params)
    return folder / "params", of_google(params)


def orbax_manager(folder: Path, last: str = "1000") -> tuple[Path, Logits]:
    """`CheckpointManager`: a folder a step, in it one for each item."""
    state = train_state()
    with ocp.CheckpointManager(folder / "run") as manager:
        manager.save(500, args=ocp.args.StandardSave(train_state(1)))
        manager.save(1000, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
    return folder / "run" / last, of_google(state.params)


def orbax_items(folder: Path) -> tuple[Path, Logits]:
    """Several items a step: the state, and a description of the data's place."""
    state = train_state()
    with ocp.CheckpointManager(folder / "run") as manager:
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=ocp.args.JsonSave({"epoch": 3})
        )
        manager.save(1000, args=items)
        manager.wait_until_finished()
    return folder / "run/1000", of_google(state.params)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        inner = value if isinstance(value, dict) else None
        found |= flat(inner, f"{prefix}{name}/") if inner else {f"{prefix}{name}": value}
    return found


def vit_jax(folder: Path) -> tuple[Path, Logits]:
    """`vit_jax/checkpoint.py`: the parameters' names joined by `/`."""
    params = parameters()
    np.savez(folder / "ViT-S_4.npz", **flat(params))
    return folder / "ViT-S_4.npz", of_google(params)


def vit_jax_optimizer(folder: Path) -> tuple[Path, Logits]:
    """A checkpoint of fine-tuning there: the parameters under `opt/target`, momenta beside them."""
    params = parameters()
    state = {f"opt/target/{n}": a for n, a in flat(params).items()}
    state |= {f"opt/state/param_states/{n}/momentum": a for n, a in flat(params).items()}
    np.savez(folder / "checkpoint.npz", **state, **{"opt/state/step": np.int32(500)})
    return folder / "checkpoint.npz", of_google(params)


def equinox(folder: Path) -> tuple[Path, None]:
    import equinox as eqx

    model = eqx.nn.MLP(4, 5, 8, 2, key=jax.random.key(0))
    eqx.tree_serialise_leaves(folder / "model.eqx", model)
    return folder / "model.eqx", None


def keras_file(folder: Path) -> tuple[Path, None]:
    import h5py

    with h5py.File(folder / "model.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones((4, 5))
    return folder / "model.weights.h5", None


ROWS = [
    Stranger(
        "Flax TrainState",
        "Flax's `serialization.to_bytes(TrainState)`",
        "`step`, `params`, `opt_state`",
        to_bytes,
        by_library=True,
        read="the parameters",
        hints={},
    ),
    Stranger(
        "Flax TrainState, averaged",
        "the same with `ema_params`, as `state.msgpack#ema`",
        "the average beside the parameters",
        to_bytes_with_average,
        by_library=True,
        read="the average",
        hints={},
    ),
    Stranger(
        "Flax checkpoints",
        "`flax.training.checkpoints`, a file",
        "`checkpoint_500`, without a suffix",
        legacy_checkpoint,
        by_library=True,
        read="the parameters",
        hints={},
    ),
    Stranger(
        "Flax checkpoints, the folder",
        "`flax.training.checkpoints`, its folder",
        "`checkpoint_500`, `checkpoint_1000`",
        folder_of_legacy,
        by_library=True,
        read="the newest, as `restore_checkpoint` does",
        said=("checkpoint_1000",),
        hints={},
    ),
    Stranger(
        "orbax PyTreeCheckpointer",
        "orbax's `PyTreeCheckpointer` of a TrainState",
        "a folder: `step`, `params`, `opt_state`",
        orbax_tree,
        by_library=True,
        read="the parameters",
        hints={},
    ),
    Stranger(
        "orbax StandardCheckpointer",
        "orbax's `StandardCheckpointer` of parameters",
        "a folder",
        orbax_standard,
        by_library=True,
        read="the parameters",
        hints={},
    ),
    Stranger(
        "orbax CheckpointManager",
        "orbax's `CheckpointManager`, a step's folder",
        "an item `default` in it",
        orbax_manager,
        by_library=True,
        read="the parameters",
        hints={},
    ),
    Stranger(
        "orbax CheckpointManager, the run",
        "orbax's `CheckpointManager`, its folder",
        "a folder a step",
        lambda folder: orbax_manager(folder, ""),
        by_library=True,
        read="the newest, as `latest_step` does",
        said=("1000",),
        hints={},
    ),
    Stranger(
        "orbax, several items",
        "orbax's `CheckpointManager` with several items",
        "a state and JSON",
        orbax_items,
        by_library=True,
        read="the parameters",
        hints={},
    ),
    Stranger(
        "vision_transformer",
        "Google's `vision_transformer`",
        "`.npz` of the parameters",
        vit_jax,
        read="the weights",
        hints={},
    ),
    Stranger(
        "vision_transformer, fine-tuning",
        "Google's `vision_transformer`, a training's file",
        "`opt/target/` beside momenta",
        vit_jax_optimizer,
        read="the weights",
        hints={},
    ),
    Stranger(
        "Equinox",
        "Equinox's `tree_serialise_leaves`",
        "arrays without names",
        equinox,
        by_library=True,
        refused="NumPy arrays without names",
        read="its arrays have no names: `twinvit port` compares the model itself",
    ),
    Stranger(
        "Keras",
        "Keras' `save_weights`",
        "HDF5",
        keras_file,
        refused="HDF5",
        read="layers by number: `twinvit port` compares the model itself",
    ),
]
