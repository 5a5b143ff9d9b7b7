"""What a run reports: metrics.jsonl, timing.jsonl, a progress bar or lines, wandb, TensorBoard; in
process 0."""

from __future__ import annotations

import dataclasses
import json
import secrets
import sys
import threading
import time
from typing import Any

from shared_vit.errors import UserError
from shared_vit.files import atomic_write, read_limited
from shared_vit.run.directory import RunDir
from shared_vit.run.evaluation import describe
from shared_vit.run.plan import Plan
from shared_vit.run.state import StepMetrics
from shared_vit.run.tensorboard import EventFile


class Tracker:
    """Takes each update's and evaluation's metrics; writes them in blocks, at full precision."""

    LINES_PER_BLOCK = 50

    def __init__(self, plan: Plan, run: RunDir, start: int, versions: dict[str, str]):
        self.plan, self.run = plan, run
        self.lines: list[str] = []
        self.block_begin, self.block_step, self.waited = time.perf_counter(), start, 0.0
        self.bar = _Bar(start, plan.total_steps, plan.recipe.batch_size)
        self.wandb = _start_wandb(plan, run)
        self.events = EventFile(run, start) if plan.runtime.tensorboard == "on" else None
        self.compiles = versions["framework"] == "jax" or plan.runtime.compile == "on"
        self.run.append_timing([json.dumps({"step": start} | versions)])

    def compiling(self) -> None:
        """Say why the first step of this start takes long, while it is compiled."""
        self.compile_begin = time.perf_counter()
        if self.compiles:
            self.bar.busy("compiling the training step")

    def compiled(self, seconds: float | None) -> None:
        """Say how long it took: as the trainer measured it, else until the step was queued."""
        if not self.compiles:
            return
        self.bar.idle()
        seconds = seconds or time.perf_counter() - self.compile_begin
        self.say(f"compiled in {seconds:.1f} s")
        self.run.append_timing([json.dumps({"step": self.block_step, "compile_seconds": seconds})])
        self.restart_clock(self.block_step)

    def step(self, step: int, lr: float, metrics: StepMetrics) -> None:
        """Record update number `step` (counting from 1) and the learning rate it used."""
        line = {
            "step": step,
            "epoch": self.plan.epoch(step),
            "loss": metrics.loss,
            "grad_norm": metrics.grad_norm,
            "lr": lr,
        }
        shown = step % self.plan.runtime.log_every == 0 or step == self.plan.end
        self._add(line | ({"skipped": True} if metrics.skipped else {}), shown)
        if shown:
            self.bar.update(step, metrics.loss)
        if len(self.lines) >= self.LINES_PER_BLOCK:
            self.flush(step)

    def evaluation(self, step: int, result: dict[str, float]) -> None:
        """Record an evaluation after `step` updates: val_loss, val_top1, val_top5, val_count."""
        self._add({"step": step} | result)
        self.say(f"step {step}: {describe(result)}")

    def flush(self, step: int) -> None:
        """Write every line so far to disk, and how long that took."""
        self.run.append_metrics(self.lines)
        self.lines = []
        now = time.perf_counter()
        if step > self.block_step:
            elapsed, images = (
                now - self.block_begin,
                (step - self.block_step) * self.plan.recipe.batch_size,
            )
            timing = {
                "step": step,
                "images_per_second": images / elapsed,
                "data_wait_share": self.waited / elapsed,
            }
            self.run.append_timing([json.dumps(timing | {"seconds": elapsed})])
            if self.events is not None:
                self.events.add(step, {"images_per_second": timing["images_per_second"]})
        if self.events is not None:
            self.events.flush()
        self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        """Leave evaluation and the copy of a checkpoint out of the timing of training."""
        self.block_begin, self.block_step, self.waited = time.perf_counter(), step, 0.0

    def say(self, text: str) -> None:
        self.bar.say(text)

    def warn(self, text: str) -> None:
        """Print on stderr what may come from another thread at any time: the response to a
        signal."""
        self.bar.warn(text)

    def release_line(self) -> None:
        """End the bar's line, whatever ended the run: an error's message is a line of its own."""
        self.bar.close()

    def close(self, step: int) -> None:
        self.flush(step)
        self.bar.close()
        if self.wandb is not None:
            self.wandb.finish()
        if self.events is not None:
            self.events.close()

    def _add(self, line: dict[str, Any], shown: bool = True) -> None:
        self.lines.append(json.dumps(line))
        if self.events is not None and shown:
            beside = ("step", "epoch", "skipped")
            self.events.add(line["step"], {k: v for k, v in line.items() if k not in beside})
        if self.wandb is not None and shown:
            self.wandb.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])


class _Bar:
    """A tqdm bar on a terminal; elsewhere a line now and then."""

    SECONDS_PER_LINE = 10.0
    SECONDS_PER_TICK = 1.0

    def __init__(self, start: int, total: int, batch_size: int):
        self.start, self.total, self.batch_size = start, total, batch_size
        self.begin: float | None = None  # of the first update: throughput leaves out compilation
        self.last = time.perf_counter()
        self.bar: Any = None
        self.ticking: tuple[threading.Thread, threading.Event] | None = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def update(self, step: int, loss: float) -> None:
        now = time.perf_counter()
        if self.begin is None:
            self.begin, self.start = now, step
        elapsed = now - self.begin
        # Results come in blocks, so the first second has no meaningful throughput.
        rate = (step - self.start) / elapsed if elapsed > 1 else None
        images = f"{rate * self.batch_size:.0f} images/s" if rate else ""
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4f}  {images}", refresh=False)
            self.bar.update(step - self.bar.n)
        elif now - self.last >= self.SECONDS_PER_LINE or step == self.total:
            self.last = now
            left = f"{(self.total - step) / rate:.0f} s left" if rate else ""
            print(
                f"step {step}/{self.total}  loss {loss:.4f}  {images}  {left}".rstrip(), flush=True
            )

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)  # takes the bar away first
        else:
            print(text, file=sys.stderr, flush=True)

    def busy(self, what: str) -> None:
        """Say what takes long; on a terminal with the seconds so far, until `idle`."""
        if self.bar is None:
            print(f"{what} ...", flush=True)
            return
        done, begin = threading.Event(), time.perf_counter()

        def tick() -> None:
            while not done.is_set():
                self.bar.set_postfix_str(f"{what}: {time.perf_counter() - begin:.0f} s")
                done.wait(self.SECONDS_PER_TICK)

        thread = threading.Thread(target=tick, name="elapsed", daemon=True)
        self.ticking = (thread, done)
        thread.start()

    def idle(self) -> None:
        if self.ticking is not None:
            thread, done = self.ticking
            self.ticking = None
            done.set()
            thread.join()
            self.bar.set_postfix_str("")

    def close(self) -> None:
        self.idle()
        if self.bar is not None:
            self.bar.close()


def _start_wandb(plan: Plan, run: RunDir) -> Any:
    """wandb's run, one for a training however often it is resumed; None where it is off.

    Raises UserError where it cannot be started.
    """
    if plan.runtime.wandb == "off":
        return None
    import wandb

    id_file = run.folder / "wandb_id"
    with run.errors():
        if not id_file.exists():
            with atomic_write(id_file) as file:
                file.write(secrets.token_hex(4).encode())
        name = read_limited(id_file, 100).decode(errors="replace")
    try:
        return wandb.init(
            project="twinvit",
            name=run.path.name,
            id=name,
            resume="allow",
            mode=plan.runtime.wandb,
            dir=run.path,
            config={
                "recipe": dataclasses.asdict(plan.recipe),
                "machine": dataclasses.asdict(plan.runtime),
            },
        )
    except (wandb.Error, OSError) as error:
        raise UserError(
            f"--wandb={plan.runtime.wandb}: {error}; --wandb=off goes without"
        ) from error
