"""The MLP of a block. Twin of `torch_vit/mlp.py`."""

from flax import nnx
from jax import Array

from jax_vit.dropout import Dropout, drop
from jax_vit.ops import Linear, activation_of, identity, make_norm
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import Policy


class Mlp(nnx.Module):
    """[B, N, width] -> the same, through an activation; its dropout sites are `site` and
    `site + 1`."""

    def __init__(self, cfg: ModelConfig, policy: Policy):
        self.rate, self.act = cfg.dropout, activation_of(cfg)
        has_bias, has_norm = "mlp" not in cfg.no_bias, cfg.inner_norm != "none"
        self.fc1 = Linear(cfg.width, cfg.mlp_dim * (2 if cfg.gated else 1), policy, has_bias)
        self.norm = make_norm(cfg, cfg.mlp_dim, policy) if has_norm else identity
        self.fc2 = Linear(cfg.mlp_dim, cfg.width, policy, has_bias)

    def __call__(self, x: Array, dropout: Dropout, site: int) -> Array:
        x = self.act(self.fc1(x))
        x = self.fc2(self.norm(drop(x, dropout, site, self.rate)))
        return drop(x, dropout, site + 1, self.rate)
