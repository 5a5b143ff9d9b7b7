"""Claim: weights without a head, in the files that people have, are fine-tuned by both twins alike:
a run goes on in the other framework, and lockstep decides its steps.

Six families over 200 steps, from the command line: benchmarks/results/lockstep_headless.json.
"""

import numpy as np
import pytest
from helpers import random_arrays
from whole_runs import metrics, train_here

from shared_vit import weights
from shared_vit.run.command_line import parse
from shared_vit.run.plan import first_or_given_state
from shared_vit.run.state import StepScalars
from shared_vit.spec.config import model_config
from twinvit.lockstep import record, trainer_run
from twinvit.lockstep.twins import Pair
from twinvit.parity.noise_rule import machine_epsilon

SIZES = dict(image_size=8, patch_size=4, width=32, depth=1, num_heads=2, mlp_dim=48, num_classes=0)
RUN = ("--preset=digits", "--device=cpu", "--precision=fp64", "--workers=0", "--batch_size=8",
       "--steps=4", "--warmup_steps=1", "--eval_every=0", "--randaug=off")  # fmt: skip
FILES = {
    "DINOv2 of its authors": ("dinov2r_s14", "dinov2", "w.pth"),
    "SigLIP of big_vision": ("siglip_b16", "big_vision", "w.npz"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_headless_file_is_tuned_by_both_twins(name, x64, tmp_path):
    model, format, file = FILES[name]
    cfg = model_config(model, **SIZES)
    weights.write_weights(tmp_path / file, cfg, random_arrays(cfg, dtype=np.float64), format)
    start = f"--init_from={tmp_path / file}"
    assert train_here("jax", tmp_path / "handed", *RUN, start, "--stop_at=2") == 0
    more = ("--resume", "--precision=fp64", "--device=cpu", "--workers=0")
    assert train_here("torch", tmp_path / "handed", *more) == 0
    assert train_here("torch", tmp_path / "torch", *RUN, start) == 0
    runs = (metrics(tmp_path / run) for run in ("handed", "torch"))
    handed, alone = ([m for m in run if "loss" in m] for run in runs)
    assert len(handed) == len(alone) == 4 and handed[0]["loss"] == pytest.approx(np.log(10))
    assert [m["loss"] for m in handed] == pytest.approx([m["loss"] for m in alone], rel=1e-11)
    assert handed[-1]["loss"] != handed[0]["loss"]
    requested = parse([*RUN, start, f"--run_dir={tmp_path / 'none'}"], "train")
    plan = trainer_run.resolve(requested)
    assert plan.recipe.model.num_classes == 10 and plan.recipe.model.registers == cfg.registers
    pair, stream = Pair(plan, first_or_given_state(plan), "torch"), plan.batches("train", 0)
    scalars = [StepScalars(plan.lr(i)) for i in range(3)]
    lines = [
        record.line_of(pair.step(next(stream), each, noise=i == 1), each)
        for i, each in enumerate(scalars)
    ]
    stream.close()
    gradients, maps = record.judge(lines, machine_epsilon("fp64"))
    assert gradients.joined(maps).line() == "lockstep: decided 3 of 3 steps, same"
