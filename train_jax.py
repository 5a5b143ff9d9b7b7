"""Train or evaluate a ViT in JAX: `python train_jax.py --help`."""

from twinvit.start import main

if __name__ == "__main__":
    main("jax")
