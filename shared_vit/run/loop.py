"""The one training loop. The arithmetic on a device is the Trainer's; all else is here."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NoReturn

from shared_vit.data import orientation
from shared_vit.errors import StoppedTogether, UserError
from shared_vit.files import wait_until_there
from shared_vit.run import checkpoint, data_files
from shared_vit.run.best import Best, better, of_state, write_best
from shared_vit.run.directory import RunDir
from shared_vit.run.evaluation import describe_evaluated, evaluate
from shared_vit.run.feed import LAG, Feed
from shared_vit.run.free_space import check_free_space
from shared_vit.run.interrupt import EXIT_INTERRUPTED, Interrupt
from shared_vit.run.plan import Plan, first_or_given_state, state_to_evaluate
from shared_vit.run.start_from import describe_start
from shared_vit.run.state import Lazy, StepMetrics, StepScalars, Trainer, TrainState
from shared_vit.run.tracking import Tracker
from shared_vit.spec.config import name_of
from shared_vit.spec.recipe import enabled_features
from shared_vit.spec.sides import shown
from shared_vit.weights.checkpoints import STATE


def run(plan: Plan, process: int, make_trainer: Callable[[TrainState], Trainer]) -> int:
    """Train or evaluate by `plan`; returns the exit status. Every process calls it; process 0 alone
    writes and prints."""
    if plan.mode == "eval":
        if process == 0:
            _say_of_data(plan, functools.partial(print, file=sys.stderr))
        trainer = make_trainer(state_to_evaluate(plan))
        result = evaluate(plan, trainer, Interrupt())
        if process == 0 and result is not None:
            print(describe_evaluated(plan, result), flush=True)
        return 0
    with (
        Interrupt(quiet=process != 0) as interrupt,
        RunDir(plan.run_dir) if process == 0 else nullcontext() as run_dir,
    ):
        state, pending_evaluation, best = _begin(plan, run_dir)
        if state.step >= plan.end and not pending_evaluation:
            if run_dir is not None:
                print(_nothing_to_do(plan, state.step), flush=True)
            return 0
        if run_dir is not None and (
            text := check_free_space(plan.run_dir, state, plan.runtime.keep)
        ):
            print(f"notice: {text}", flush=True)
        trainer = make_trainer(state)
        loop = _Loop(plan, trainer, run_dir, interrupt, best)
        try:
            return loop.train(state.step, pending_evaluation)
        finally:
            if loop.tracker is not None:
                loop.tracker.release_line()


def _begin(plan: Plan, run_dir: RunDir | None) -> tuple[TrainState, bool, Best | None]:
    """The state to start from, whether the evaluation due at its step is still to be done, and the
    best one so far; process 0 opens the run."""
    speak = print if run_dir is not None else lambda *args, **kwargs: None
    if not plan.resume:
        state = first_or_given_state(plan)
        if run_dir is not None:
            run_dir.open_new(plan.record())
            with run_dir.errors():
                data_files.write_files(run_dir.folder, plan.dataset)
        _announce(plan, speak)
        if run_dir is not None:
            _say_of_data(plan, speak)
        if plan.weights is not None and run_dir is not None:
            lines = describe_start(
                plan.weights.source, plan.model, plan.class_names, plan.recipe.positions
            )
            speak("\n".join(lines), flush=True)
        return state, False, None
    notices = []
    if run_dir is not None:
        changes = functools.partial(data_files.changes, dataset=plan.dataset)
        notices = run_dir.open_resume(plan.record(), changes)
    found = checkpoint.newest(plan.run_dir, plan.record(content=False))
    if found is not None and found.step > plan.total_steps:
        raise UserError(
            f"the run in {plan.run_dir} is at step {found.step} already, past the length of "
            f"{plan.total_steps} steps that are requested: give it more --steps, or leave --steps "
            "and --epochs out"
        )
    if run_dir is not None:
        run_dir.write_record()
    for notice in notices:
        speak(f"notice: {notice}", flush=True)
    _announce(plan, speak)
    if run_dir is not None:
        _say_of_data(plan, speak)
    for line in found.skipped if found else ():
        speak(f"skipped: {line}", flush=True)
    if found is None:
        speak("no checkpoint yet: starting from the beginning", flush=True)
        state, pending, best = first_or_given_state(plan), False, None
    else:
        speak(f"resuming from {found.path} (step {found.step})", flush=True)
        state, extra = checkpoint.load(found)
        pending = extra.get("pending_evaluation", False)
        best = of_state(plan.run_dir, extra)
        if best is None and extra.get("best"):
            speak(
                "notice: the best checkpoint is missing, and is searched for from here on",
                flush=True,
            )
    if run_dir is not None:
        write_best(run_dir, best)
        last = run_dir.cut_metrics(state.step, keep_evaluation=not pending)
        if last < state.step:
            speak(
                f"notice: metrics.jsonl ends at step {last}: the lines up to step {state.step} are "
                "lost",
                flush=True,
            )
    return state, pending, best


def _nothing_to_do(plan: Plan, step: int) -> str:
    if step >= plan.total_steps:
        return f"done at step {step} already: {plan.run_dir}; more --epochs or --steps lengthen it"
    return (
        f"stopped at step {step} already, and --stop_at={plan.runtime.stop_at} requests no more: "
        f"{plan.run_dir}; --resume continues it"
    )


def _announce(plan: Plan, speak: Callable[..., Any]) -> None:
    recipe, runtime, model = plan.recipe, plan.runtime, plan.model
    speak(
        f"run directory: {plan.run_dir}\n"
        f"model: {name_of(model)}, {shown(model.image_shape)}, patch {model.patch_size}, "
        f"{model.num_classes} classes\n"
        f"data: {plan.dataset.name}, {len(plan.dataset.train)} training and "
        f"{len(plan.dataset.val)} validation examples\n"
        f"length: {recipe.steps} steps of {recipe.batch_size} ({plan.epoch(recipe.steps):.1f} "
        f"epochs), warm-up {recipe.warmup_steps}; {recipe.optimizer}, lr {recipe.lr}, weight decay "
        f"{recipe.weight_decay}, clip {recipe.clip}, dropout {model.dropout}\n"
        f"precision {recipe.precision} on {runtime.world_size} {runtime.device} device(s), seed "
        f"{recipe.seed}",
        flush=True,
    )
    if beyond := enabled_features(recipe):
        speak(f"recipe: {', '.join(beyond)}", flush=True)
    if recipe.warmup_steps >= recipe.steps:
        speak(
            f"notice: the entire run is warm-up ({recipe.warmup_steps} of {recipe.steps} steps)",
            flush=True,
        )


def _say_of_data(plan: Plan, speak: Callable[..., Any]) -> None:
    """Notices about the data; files of a sample are read for them, so in process 0 alone."""
    for text in (*plan.dataset.notices, orientation.notice(plan.dataset, plan.model.exif)):
        if text:
            speak(f"notice: {text}", flush=True)


class _Loop:
    def __init__(
        self,
        plan: Plan,
        trainer: Trainer,
        run_dir: RunDir | None,
        interrupt: Interrupt,
        best: Best | None,
    ):
        self.plan, self.trainer, self.interrupt = plan, trainer, interrupt
        self.run_dir = run_dir
        self.best = best  # the same in every process: all of them take part in saving it
        self.tracker: Tracker | None = None
        self.writer: checkpoint.Writer | None = None
        self.in_flight: deque[tuple[int, float, Lazy]] = deque()
        self.last_good: tuple[int, StepMetrics] | None = None
        self.stopping = False
        self.failure: UserError | None = None  # raised once what was done is saved

    def train(self, start: int, pending_evaluation: bool) -> int:
        """Run to the end, `stop_at` or an interruption; returns the exit status."""
        runtime, end = self.plan.runtime, self.plan.end
        if self.run_dir is not None:
            self.tracker = Tracker(self.plan, self.run_dir, start, self.trainer.versions())
            self.interrupt.say = self.tracker.warn
            self.writer = checkpoint.Writer(self.run_dir, runtime.keep, self.plan.class_names)
        feed: Feed | None = None
        step = start
        try:
            evaluated = pending_evaluation and self._evaluate(step)
            if evaluated and (start >= end or self._is_best(step)):
                self._save(step, pending_evaluation=False)
            ahead = None
            if start < end and not self.stopping:
                feed = Feed(self.plan, self.trainer, start, end)
                ahead = self._next(feed)
            while ahead is not None and not self.stopping:
                batch, lr = ahead, self.plan.lr(step)
                if step == start and self.tracker is not None:
                    self.tracker.compiling()
                failed = feed is not None and feed.failure is not None
                result = self.trainer.train_step(
                    batch, StepScalars(lr), stop=self.interrupt.requested or failed
                )
                step += 1
                self.in_flight.append((step, lr, result))
                if step == start + 1 and self.tracker is not None:
                    self.tracker.compiled(self.trainer.compile_seconds)
                ahead = self._next(feed)
                self._read(LAG)
                if self.writer is not None:
                    self.writer.poll()
                self._evaluate_and_save(step)
        finally:
            if feed is not None:
                feed.close()
            if self.writer is not None:
                self.writer.close()
        if self.failure is None and feed is not None:
            self.failure = feed.failure
        return self._leave(step)

    def _evaluate_and_save(self, step: int) -> None:
        """What is due after `step` updates, and where the run stops a checkpoint."""
        runtime = self.plan.runtime
        # Nudged runs measure how far rounding moves the curve, not how good weights are.
        due_evaluation = self.plan.recipe.nudge is None and self._due(step, runtime.eval_every)
        due_checkpoint = self._due(step, runtime.checkpoint_every) or step == self.plan.end
        if due_evaluation or due_checkpoint or self.stopping:
            self._read(0)
            evaluated = not due_evaluation or self._evaluate(step)
            if due_checkpoint or self.stopping or self._is_best(step):
                self._save(step, pending_evaluation=not evaluated)

    def _leave(self, step: int) -> int:
        if self.tracker is not None and self.run_dir is not None:
            self.run_dir.check()
            finished = step == self.plan.total_steps and self.failure is None
            done = "done" if finished else "stopped"
            if self.stopping and self.failure is None:
                alone = self.trainer.num_processes == 1  # else another's bad image may be the cause
                done = "interrupted" if alone or self.interrupt.requested else "stopped"
            goes_on = "" if done == "done" else "; --resume continues it"
            self.tracker.say(f"{done} at step {step}: {self.plan.run_dir}{goes_on}")
            if self.best is not None:
                where = self.plan.run_dir / self.best.path
                self.tracker.say(f"the best evaluation: {self.best.describe()}, {where}")
        bad = self.plan.dataset.bad_images
        if bad.count:  # each process knows those of its own rows
            whose = f"process {self.trainer.process}: " if self.trainer.num_processes > 1 else ""
            say = print if self.tracker is None else self.tracker.say
            say(whose + bad.describe())
        if self.tracker is not None:
            self.tracker.close(step)
        if self.failure is not None:
            self._fail(step, self.failure)
        return EXIT_INTERRUPTED if self.stopping else 0

    def _fail(self, step: int, failure: UserError) -> NoReturn:
        """Raise what stopped the run, with where it was saved."""
        saved = self.plan.run_dir / "checkpoints" / f"step_{step}"
        if self.trainer.num_processes > 1:  # the end of this process ends the one that writes
            wait_until_there(saved / STATE)
        where = (
            f". The run is saved at step {step}: --resume continues it" if saved.exists() else ""
        )
        raise StoppedTogether(f"{failure}{where}") from failure

    def _due(self, step: int, every: int) -> bool:
        return step == self.plan.total_steps or (every > 0 and step % every == 0)

    def _next(self, feed: Feed | None) -> Any:
        """The next batch on its way to the device; None where there is none."""
        begin = time.perf_counter()
        batch = feed.take() if feed is not None else None
        if self.tracker is not None:
            self.tracker.waited += time.perf_counter() - begin
        return None if batch is None else self.trainer.to_device(batch)

    def _read(self, lag: int) -> None:
        """Take in the results of all but the last `lag` steps."""
        while len(self.in_flight) > lag:
            step, lr, result = self.in_flight.popleft()
            metrics = result.get()
            self.stopping |= metrics.stop
            if not (
                math.isfinite(metrics.loss)
                and (math.isfinite(metrics.grad_norm) or metrics.skipped)
            ):
                self._not_finite(step, metrics)
            self.last_good = (step, metrics)
            if self.tracker is not None:
                self.tracker.step(step, lr, metrics)

    def _not_finite(self, step: int, metrics: StepMetrics) -> None:
        if self.writer is not None:
            self.writer.wait()
        found = checkpoint.newest(self.plan.run_dir)
        where = (
            f"The newest checkpoint, from before, is {found.path}"
            if found
            else "There is no checkpoint yet"
        )
        good = "none"
        if self.last_good is not None:
            at, last = self.last_good
            good = f"loss {last.loss:.6g}, grad norm {last.grad_norm:.6g} at step {at}"
        if self.tracker is not None:
            self.tracker.close(step - 1)
        raise UserError(
            f"step {step}: loss {metrics.loss}, grad norm {metrics.grad_norm}, not finite (last "
            f"good: {good}). {where}; nothing was saved since. Try a lower --lr, a longer "
            "--warmup_steps or --precision=fp32 in a new --run_dir"
            + (f" with --init_from={found.path}" if found else "")
        )

    def _evaluate(self, step: int) -> bool:
        """Evaluate and record; False if a stop was requested, or an image cannot be read, in any
        process before the end."""
        if self.tracker is not None:
            self.tracker.flush(step)  # first: its timing is of training alone
        result = None
        try:
            result = evaluate(self.plan, self.trainer, self.interrupt)
        except UserError as error:  # the updates before it are saved first
            self.failure = error
        if result is None:
            self.stopping = True
        elif self.tracker is not None:
            self.tracker.evaluation(step, result)
        metric = self.plan.runtime.keep_best
        if result is not None and metric != "off":
            self.best = better(self.best, metric, step, result)
        if self.tracker is not None:
            self.tracker.restart_clock(step)
        return result is not None

    def _is_best(self, step: int) -> bool:
        return self.best is not None and self.best.step == step

    def _save(self, step: int, pending_evaluation: bool) -> None:
        if self.tracker is None or self.writer is None:
            if self.trainer.sharded:
                self.trainer.snapshot()  # in which every process takes part
            return
        self.tracker.flush(step)
        extra = {
            "epoch": self.plan.epoch(step),
            "seed": self.plan.recipe.seed,
            "versions": self.trainer.versions(),
        }
        self.writer.save(
            step,
            self.trainer.snapshot(),
            extra | {"pending_evaluation": pending_evaluation},
            self.best,
        )
        self.tracker.restart_clock(step)
