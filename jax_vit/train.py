"""`train_jax.py`: flags, mesh, trainer, loop."""

import sys

from shared_vit.command_line import parse
from shared_vit.errors import run_main


def main() -> None:
    run_main(_main)


def _main() -> int:
    cfg = parse(sys.argv[1:], prog="train_jax.py")

    import jax

    from jax_vit import mesh
    from jax_vit.trainer import Trainer
    from shared_vit import loop
    from shared_vit.plan import make_plan

    cfg = mesh.resolve(cfg)
    plan = make_plan(cfg, "jax")  # before the mesh, so that an error comes before any device starts
    devices = mesh.start(cfg)
    return loop.run(plan, jax.process_index(), lambda state: Trainer(state, plan.cfg, devices))


if __name__ == "__main__":
    main()
