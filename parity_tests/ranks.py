"""What one process of a run of several does in the tests.

Its own module, so that a rank imports no more than it needs.
"""

import dataclasses
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared_vit.data.batch import Batch
from shared_vit.run.requested import RequestedConfig
from shared_vit.run.schedule import learning_rate
from shared_vit.run.state import StepScalars, TrainState
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig


class Job(NamedTuple):
    """Updates on `data`, then an evaluation of `held_out`; global batches, of which a process takes
    its rows."""

    state: TrainState
    data: list[Batch]
    held_out: Batch
    out: Path  # the .npz that process 0 writes
    mutation: str = ""
    memory: dict[str, bool] = {}  # the trainer's remat and shard


def rows_of(batch: Batch, process: int, num_processes: int) -> Batch:
    """The block of rows that is a process's own."""
    share = len(batch.labels) // num_processes
    own = slice(process * share, (process + 1) * share)
    values = {n: getattr(batch, n)[own] for n in ("images", "labels", "weight", "rows")}
    return dataclasses.replace(batch, **values)


def local_rows(batch: Batch) -> Batch:
    """The mutation by which each process draws the dropout masks of the first rows."""
    return dataclasses.replace(batch, rows=np.arange(len(batch.rows)))


def train(trainer, cfg: Recipe, job: Job) -> dict[str, np.ndarray]:
    """The curve (loss, grad_norm) and the evaluation's counts."""

    def take(batch):
        own = rows_of(batch, trainer.process, trainer.num_processes)
        return trainer.to_device(local_rows(own) if job.mutation == "local rows" else own)

    def counts(trainer, averaged):
        return np.array(trainer.eval_step(take(job.held_out), averaged=averaged).get()[:4])

    metrics = []
    for step, batch in enumerate(job.data):
        lr = learning_rate(step, len(job.data), cfg.lr, cfg.warmup_steps)
        metrics.append(trainer.train_step(take(batch), StepScalars(lr)).get())
    return {
        "loss": np.array([m.loss for m in metrics]),
        "grad_norm": np.array([m.grad_norm for m in metrics]),
        "counts": counts(trainer, averaged=False),
        "averaged": counts(trainer, averaged=bool(cfg.ema)),
    }


def torch_rank(job: Job, cfg: Recipe, device) -> None:
    """One rank's `train`; process 0 writes the result."""
    trainer = _torch_trainer(job.state, cfg, device, job.mutation, job.memory)
    if job.mutation == "mean of ranks":
        trainer.num_processes = 1  # then the gradients keep the division that DDP makes
        result = train(_Seen(trainer), cfg, job)
    else:
        result = train(trainer, cfg, job)
    held = (trainer.slots | {"params": dict(trainer.model.named_parameters())}).values()
    result["held"] = np.array(sum(_local(t).numel() for tensors in held for t in tensors.values()))
    if trainer.process == 0:
        np.savez(job.out, **result)


def _local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class _Seen:
    """A trainer whose number of processes is the group's, whatever it believes itself."""

    def __init__(self, trainer):
        import torch.distributed as dist

        self.trainer, self.process, self.num_processes = (
            trainer,
            trainer.process,
            dist.get_world_size(),
        )

    def __getattr__(self, name):
        return getattr(self.trainer, name)


def torch_rank_resumes(job: Job, cfg: Recipe, device) -> None:
    """Writes the last parameters of a run, and of one taken up half-way by trainers made anew."""
    half = len(job.data) // 2
    import torch.distributed as dist

    whole = _torch_trainer(job.state, cfg, device, job.mutation, job.memory)
    _updates(whole, job.data[:half])
    state = [whole.state()]
    dist.broadcast_object_list(state)  # as each process would read it from disk
    _updates(whole, job.data[half:])
    resumed = _torch_trainer(state[0], cfg, device, job.mutation, job.memory)
    _updates(resumed, job.data[half:])
    states = [whole.state(), resumed.state()]
    if whole.process == 0:
        with job.out.open("wb") as file:
            pickle.dump(states, file)


def torch_rank_nudges(job: Job, cfg: Recipe, device) -> None:
    """Writes the state after an update that moves nothing, but for the nudge."""
    trainer = _torch_trainer(job.state, cfg, device, job.mutation, job.memory)
    zeros = {n: np.zeros_like(a) for n, a in job.state.slots["exp_avg"].items()}
    trainer.update(zeros, StepScalars(0.0))
    state = trainer.state()
    if trainer.process == 0:
        job.out.write_bytes(pickle.dumps(state))


def _updates(trainer, data: list[Batch]) -> None:
    for batch in data:
        trainer.train_step(
            trainer.to_device(rows_of(batch, trainer.process, trainer.num_processes)),
            StepScalars(1e-3),
        ).get()


def _torch_trainer(state: TrainState, cfg: Recipe, device, mutation: str = "", memory=None):
    import torch

    from torch_vit import optim
    from torch_vit.trainer import Trainer

    torch.set_num_threads(1)
    if mutation == "unsettled buckets":
        Trainer._warm_up_buckets = lambda self, mixing: None
    if mutation == "the nudge of another part":
        optim.part_of = lambda full, like: full[len(full) - len(_local(like)) :]
    if mutation == "the norm of one part":
        optim.global_norm = lambda grads: torch.nn.utils.get_total_norm([_local(g) for g in grads])
    return Trainer(state, cfg, device, **(memory or {}))


def _say_pid() -> None:
    """In one write, so that ranks' lines do not mix."""
    import torch.distributed as dist

    os.write(1, f"rank {dist.get_rank()} is {os.getpid()}\n".encode())


def torch_rank_fails(how: str, device) -> int:
    """Rank 1 fails in the way named while the others wait for it; they are asked to end, and do not
    listen."""
    import signal
    import time

    import torch
    import torch.distributed as dist

    from shared_vit.errors import UserError

    signal.signal(signal.SIGTERM, lambda *_: None)
    total = torch.ones(1)
    dist.all_reduce(total)
    _say_pid()
    if dist.get_rank() == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "raises":
            raise ZeroDivisionError("the reason")
        if how == "mistake":
            raise UserError("what to do")
        if how == "stuck":
            time.sleep(3600)
    if how == "stuck" and dist.get_rank() == 2:
        raise ZeroDivisionError("the reason")
    dist.all_reduce(total)
    return 0


def torch_rank_waits(device) -> int:
    """Waits for SIGINT or SIGTERM, counts them for a second, and leaves with 70 + their number, by
    agreement."""
    import signal
    import time

    import torch
    import torch.distributed as dist

    seen = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: seen.append(number))
    _say_pid()
    while not seen:
        time.sleep(0.05)
    time.sleep(1)
    counts = torch.tensor([len(seen)])
    dist.all_reduce(counts, dist.ReduceOp.MAX)
    return 70 + int(counts)


def torch_rank_counts_threads(device) -> int:
    """Status 10 + threads."""
    import torch

    return 10 + torch.get_num_threads()


def requested(recipe: Recipe, **flags) -> RequestedConfig:
    """Flags, with a recipe's batch and precision."""
    return RequestedConfig(
        {n: getattr(recipe, n) for n in ("batch_size", "grad_accum", "precision")} | flags
    )


def settle(
    resolve: Callable[[RequestedConfig], RequestedConfig], flags: RequestedConfig
) -> RuntimeConfig:
    """The machine that `resolve` finds for flags."""
    return RuntimeConfig(**resolve(flags).values_of(RuntimeConfig))


def jax_process(job: Job, cfg: Recipe, flags: RequestedConfig) -> None:
    """One process of a JAX run."""
    from jax_vit import devices as jax_devices
    from jax_vit.trainer import Trainer

    runtime = settle(jax_devices.resolve, flags)
    trainer = Trainer(job.state, cfg, jax_devices.start(runtime), **job.memory)
    result = train(trainer, cfg, job)
    if trainer.process == 0:
        np.savez(job.out, **result)


def jax_process_fails(how: str, flags: RequestedConfig) -> None:
    """Process 1 fails in the way named, while the others work."""
    import signal
    import time

    from jax_vit import devices
    from shared_vit.errors import UserError

    runtime = settle(devices.resolve, flags)
    with devices.abort_all_on_failure():
        if runtime.process_id == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "mistake":
                raise UserError("what to do")
            return
        time.sleep(60 if how != "not at all" else 3)


def launch_torch(flags: RequestedConfig, worker: Callable) -> int:
    """As `train_torch.py` does."""
    from torch_vit import devices
    from torch_vit.ranks import launch

    return launch(settle(devices.resolve, flags), worker)


def launch_torch_signalled(flags: RequestedConfig) -> int:
    """As `train_torch.py` does, with a SIGTERM that comes before the first rank has started."""
    import signal

    from torch_vit import ranks

    store = ranks.dist.TCPStore

    def signalled(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return store(*args, **kwargs)

    ranks.dist.TCPStore = signalled
    return launch_torch(flags, torch_rank_waits)


def write_script(path: Path, function: Callable, *args) -> list[str]:
    """The command line of a process that calls `function(*args)`, prints a UserError and leaves
    with its status."""
    path.write_bytes(pickle.dumps((function, args)))
    return [sys.executable, __file__, str(path)]


def _main() -> int | None:
    function, args = pickle.loads(Path(sys.argv[1]).read_bytes())
    return function(*args)


if __name__ == "__main__":
    from shared_vit.errors import run_main

    run_main(_main)
