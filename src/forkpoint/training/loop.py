"""A run from beginning to end: sample, train, record, evaluate, save; and on after a crash."""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from forkpoint.batching import build_batch
from forkpoint.config import RunConfig
from forkpoint.errors import DataError, ForkpointError, Interrupted, NumericalError, RunError
from forkpoint.evaluation.evaluate import evaluate
from forkpoint.ranks import Lost, Ranks, join, lost
from forkpoint.runs import MetricsLog, RunDirectory
from forkpoint.runs.checkpoints import checkpoint_path, finish_removals
from forkpoint.runs.completions import write_completions
from forkpoint.sampling import RowMaker, StepRollouts
from forkpoint.sampling.record import stored_rows
from forkpoint.tracking import Tracking, refuse_missing
from forkpoint.training.bad_steps import (
    check_bad_steps,
    dump_batch,
    nothing_scored,
    nothing_to_learn,
)
from forkpoint.training.checkpoint import (
    FoundCheckpoint,
    RunState,
    latest_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from forkpoint.training.metrics import entropy_summary, peak_memory, rollout_metrics
from forkpoint.training.parts import RunParts, build_parts
from forkpoint.training.sampler import StepSampler
from forkpoint.training.step import StepResult, train_step


class Observer(Protocol):
    """Watches a run: the command line's live table, a test's list."""

    def note(self, text: str) -> None:
        """Something worth a line: a checkpoint written or skipped, a step skipped."""

    def step(self, metrics: dict[str, float]) -> None:
        """A finished step's line of metrics.jsonl."""


class Silent:
    """Observes nothing."""

    def note(self, text: str) -> None: ...

    def step(self, metrics: dict[str, float]) -> None: ...


class _Both:
    """Tells two observers."""

    def __init__(self, one: Observer, other: Observer) -> None:
        self._observers = one, other

    def note(self, text: str) -> None:
        for observer in self._observers:
            observer.note(text)

    def step(self, metrics: dict[str, float]) -> None:
        for observer in self._observers:
            observer.step(metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    state: RunState
    stopped: bool
    """A signal asked for it; ``--resume`` goes on."""


def train(
    config: RunConfig,
    root: Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run ``config`` in the folder ``root``, from the newest complete checkpoint if resumed.

    A run that was killed and resumed ends with the same bytes in weights, optimizer and metrics
    (all but ``time/`` and ``memory/``) as one that was not: every random draw derives from the
    seed and what it is for, and the metrics are cut back to the checkpoint's step.

    Raises:
        ForkpointError: see errors.py. The last finished step is saved first, whatever is raised,
            unless the weights have moved on: between a step's first update and its end.
    """
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    ranks = join(config.training.rank_timeout_minutes)
    with ExitStack() as stack:
        directory = RunDirectory(root)

        def take() -> None:  # one process owns the folder
            refuse_missing(config.tracking.to)
            opened = RunDirectory.open(root, config.model_dump_json(indent=2), resume=resume)
            stack.enter_context(opened)
            directory.write_environment()
            finish_removals(directory.checkpoints_dir)

        ranks.by_first(take)
        told = observer if observer and ranks.first else Silent()
        if config.tracking.to and ranks.first:
            tracking = Tracking(config.tracking.to, directory, told.note)
            told = _Both(told, stack.enter_context(closing(tracking)))
        found, skipped = ranks.by_first(lambda: latest_checkpoint(directory.checkpoints_dir))
        for sentence in skipped:
            told.note(sentence)
        try:
            run = _Run(config, directory, told, should_stop, ranks, found)
        except Interrupted:  # while servers started
            return Outcome(state=found.state if found else RunState(), stopped=True)
        stack.callback(run.close)
        return run.run()


class _Run:
    """The state of a run in progress."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        observer: Observer,
        should_stop: Callable[[], bool],
        ranks: Ranks,
        found: FoundCheckpoint | None,
    ) -> None:
        self.config, self.directory, self.observer = config, directory, observer
        self.should_stop, self.ranks = should_stop, ranks
        self.parts: RunParts = build_parts(
            config, weights=found.path if found else None, ranks=ranks, should_stop=should_stop
        )
        for sentence in self.parts.sampling.task.notes:
            observer.note(sentence)
        if config.evaluation.benchmarks:
            observer.note("evaluation.benchmarks are for forkpoint eval: training measures none")
        rows = self.parts.sampling.task.digest
        self.state = found.state if found else RunState()
        self.saved = self.state
        if self.state.rows not in (None, rows):
            raise DataError(
                f"{config.task_name} holds other rows than when this run began, and their order "
                "goes by their number: put back the old ones, or start a new run"
            )
        self.state = replace(self.state, rows=rows)
        if found:
            restore_optimizer(found, self.parts.optimizer)
            observer.note(f"resuming after step {self.state.step} from {found.path.name}")
        self.log = MetricsLog(directory.metrics_jsonl)
        logged = self.state.step if self.state.unevaluated is None else self.state.step - 1
        self.ranks.by_first(lambda: self.log.truncate_after(logged if found else -1))
        self.sampler = StepSampler(config, self.parts, should_stop)
        self.rows = RowMaker(self.parts.sampling.loaded.tokenizer, config.advantage.kind)

    def close(self) -> None:
        """End what samples and scores."""
        self.sampler.close()
        self.parts.sampling.close()

    def run(self) -> Outcome:
        try:
            if self.state.step == 0 and self._evaluates_at(0):
                self._evaluate({"step": 0})
            if self.state.unevaluated is not None:
                self._evaluate(self.state.unevaluated)
            steps = self.config.training.steps
            while self.state.step < steps and not self.ranks.any(self.should_stop()):
                self._step(self.state.step + 1)
        except Interrupted:
            pass  # what was being sampled is given up; the last finished step is saved below
        except BaseException as error:
            if self.ranks.size > 1 and (found := lost(error)):
                raise found from error
            # Of several processes all have met an error of ours; any other, only this one.
            together = isinstance(error, ForkpointError) and not isinstance(error, Lost)
            if together or self.ranks.size == 1:
                self._save_after_fault()
            raise
        self._save()
        finished = self.state.step >= self.config.training.steps and not self.state.unevaluated
        return Outcome(state=self.state, stopped=not finished)

    def _step(self, step: int) -> None:
        """One step; the state moves on when all it says is on disk."""
        started = time.perf_counter()
        rollouts, result, fault = self._sample_and_train(step)
        trained = self.parts.optimizer.updates > self.state.updates
        bad_steps = 0 if fault is None else self.state.bad_steps + 1
        line: dict[str, float] = {"step": step, "step/skipped": float(fault is not None)}
        if rollouts is not None:
            line |= _metrics(rollouts, result) | self.sampler.metrics
            self._record(step, rollouts, result)
        line |= {"time/step_s": time.perf_counter() - started, **peak_memory()}
        evaluates = self._evaluates_at(step)
        if not evaluates:
            self._log(line)
        self.state = RunState(
            rows=self.state.rows,
            step=step,
            next_serial=rollouts.next_serial if rollouts else self.state.next_serial,
            updates=self.parts.optimizer.updates,
            bad_steps=bad_steps,
            unevaluated=line if evaluates else None,
        )
        if fault is not None:
            whole = f"step {step} was not trained on"
            what = f"not all of step {step} was trained on" if trained else whole
            self.observer.note(f"{what}: {fault}")
        if evaluates:  # interrupted here, the run is saved with the evaluation still to do
            self._evaluate(line)
        every = self.config.checkpoint.every
        if every and step % every == 0:
            self._save()
        check_bad_steps(fault, bad_steps, self.config.training.max_bad_steps)

    def _sample_and_train(
        self, step: int
    ) -> tuple[StepRollouts | None, StepResult | None, str | None]:
        """Rollouts, what was trained on them, and why they were not if they were not."""
        config, parts = self.config, self.parts
        dump = self.directory.root / "bad_steps" / f"step_{step:05d}.safetensors"
        try:
            rollouts = self.sampler.take(step, self.state.next_serial)
        except NumericalError as error:
            return None, None, str(error)
        batch = build_batch(
            rollouts.accepted,
            advantage=config.advantage.kind,
            truncated=config.rollout.truncated,
            zero_advantage_in_pool=config.selection.zero_advantage_in_pool,
            truncated_in_pool=config.selection.truncated_in_pool,
        )
        if fault := nothing_scored(rollouts) or nothing_to_learn(batch):
            return rollouts, None, fault
        started = time.perf_counter()
        try:
            result = train_step(
                parts.policy,
                parts.optimizer,
                batch,
                config,
                step=step,
                same_weights=parts.sampling.engine.same_weights,
                reference=parts.reference,
            )
        except NumericalError as error:
            self.ranks.by_first(lambda: dump_batch(dump, batch))
            return rollouts, None, str(error)
        if result.fault is not None:
            self.ranks.by_first(lambda: dump_batch(dump, result.batch))
        result.metrics["time/train_s"] = time.perf_counter() - started
        return rollouts, result, result.fault

    def _record(self, step: int, rollouts: StepRollouts, result: StepResult | None) -> None:
        """Store as many of a step's completions as the configuration asks for."""
        keep = self.config.rollout.keep
        if keep != "none":
            rows = self.rows.rows(step, rollouts, result.batch if result else None, keep)
            path = self.directory.completions_dir("train") / f"step_{step:05d}.parquet"
            self.ranks.by_first(lambda: write_completions(path, rows))

    def _evaluates_at(self, step: int) -> bool:
        config = self.config.evaluation
        if not config.every:
            return False
        if step == 0:
            return config.at_start
        return step % config.every == 0 or step == self.config.training.steps

    def _evaluate(self, line: dict[str, float]) -> None:
        """Evaluate, and log ``line`` with the result in it."""
        started = time.perf_counter()
        parts, step = self.parts.sampling, int(line["step"])
        with self.sampler.serving():
            evaluation = evaluate(parts, self.config, self.should_stop)
        accuracy = evaluation.accuracy
        rows = (r for g in evaluation.groups for r in stored_rows(g, parts.loaded.tokenizer))
        path = self.directory.completions_dir("eval") / f"step_{step:05d}.parquet"
        self.ranks.by_first(lambda: write_completions(path, rows))
        self._log(
            line
            | {
                "eval/accuracy": accuracy.value,
                "eval/accuracy_low": accuracy.low,
                "eval/accuracy_high": accuracy.high,
                "eval/problems": accuracy.n,
                "eval/length_mean": evaluation.length_mean,
                "eval/truncated_fraction": evaluation.truncated_fraction,
                "time/eval_s": time.perf_counter() - started,
            }
        )
        self.state = replace(self.state, unevaluated=None)

    def _log(self, line: dict[str, float]) -> None:
        self.ranks.by_first(lambda: self.log.append(line))
        self.observer.step(line)

    def _save_after_fault(self) -> None:
        """Save what can be saved, and say from where the run goes on if that is not all."""
        if self.parts.optimizer.updates == self.state.updates:
            try:
                self._save()
            except RunError as error:  # reported beside the fault that ends the run
                self.observer.note(str(error))
        else:  # nothing holds the weights that the last finished step had
            saved = self.saved.step
            newest = checkpoint_path(self.directory.checkpoints_dir, saved).name
            self.observer.note(
                f"step {self.state.step + 1} was broken off after its first update, so it cannot "
                "be saved; --resume goes on "
                + (f"after step {saved} from {newest}" if saved else "from the beginning")
            )

    def _save(self) -> None:
        """Write a checkpoint, unless there is nothing new."""
        if self.state in (self.saved, RunState()):
            return
        loaded, optimizer = self.parts.sampling.loaded, self.parts.optimizer
        path = save_checkpoint(
            self.directory.checkpoints_dir,
            self.state,
            loaded.model,
            loaded.tokenizer,
            optimizer,
            self.config.checkpoint.keep_last,
            self.ranks,
        )
        self.saved = self.state
        self.observer.note(f"saved {path.name}")


def _metrics(rollouts: StepRollouts, result: StepResult | None) -> dict[str, float]:
    """The line of a step: what was sampled and what was trained."""
    line = {
        "time/rollout_s": rollouts.sample_s,
        "time/score_s": rollouts.score_s,
        **rollout_metrics(rollouts),
    }
    if result is None:
        return line
    if "entropy/mean" not in line:  # the engine has none: those of the tokens trained on
        line |= entropy_summary(result.entropies_T.numpy())
    return line | result.metrics
