"""Train or evaluate a ViT in JAX: `python train_jax.py --help`."""

from twinvit.training.command import main

if __name__ == "__main__":
    main("jax")
