"""Claim: weights go through the formats and come to both twins, bit for bit and as one
function, with nothing installed but the frameworks, numpy, safetensors and ml_dtypes."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import SMALL, SUFFIX, random_arrays, random_images, relative_l2, to_torch

import jax_vit
import torch_vit
from shared_vit import weights

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("format", ["torch", "jax", "timm", "torchvision"])
def test_there_and_back_and_one_function(format, tmp_path):
    arrays, images = random_arrays(SMALL), random_images(SMALL)
    path = tmp_path / f"weights{SUFFIX[format]}"
    weights.write(path, SMALL, arrays, format=format)
    hints = {} if format in ("torch", "jax") else {"num_heads": SMALL.num_heads}
    cfg, back = weights.read(path, **hints)
    assert cfg.width == SMALL.width and back.keys() == arrays.keys()
    assert all(np.array_equal(back[n], a) for n, a in arrays.items())
    with torch.no_grad():
        a = torch_vit.from_arrays(cfg, back).eval()(to_torch(images)).numpy()
    b = np.asarray(jax_vit.from_arrays(cfg, back)(jnp.asarray(images)))
    assert relative_l2(a, b) < 1e-5 and np.ptp(a) > 0.1
