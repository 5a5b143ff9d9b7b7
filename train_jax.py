"""Train the JAX twin: `python train_jax.py --help`."""

from jax_vit.train import main

if __name__ == "__main__":
    main()
