"""Evaluating a model that is not being trained."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from forkpoint.config import RunConfig
from forkpoint.evaluation.evaluate import Evaluation, evaluate
from forkpoint.runs import RunDirectory
from forkpoint.runs.atomic import write_json
from forkpoint.runs.completions import write_completions
from forkpoint.sampling import RowMaker, build_sampling


def evaluate_config(
    config: RunConfig,
    root: Path | None,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Evaluate ``config.model`` on held-out problems of ``config.task``.

    Args:
        root: a new folder for config.json, env.json, completions/eval/step_00000.parquet and
            eval/summary.json; None writes nothing.
        note: gets a line about each thing that whoever reads the accuracy should know.

    Raises:
        ForkpointError: see errors.py; ``Interrupted`` when ``should_stop()`` turned true.
    """
    with ExitStack() as stack:
        directory = None
        if root is not None:
            text = config.model_dump_json(indent=2)
            directory = stack.enter_context(RunDirectory.open(root, text, resume=False))
        parts = stack.enter_context(closing(build_sampling(config)))
        for text in parts.task.notes:
            note(text)
        evaluation = evaluate(
            task=parts.task,
            prompter=parts.prompter,
            engine=parts.engine,
            scorer=parts.scorer,
            rollout=config.rollout,
            config=config.evaluation,
            should_stop=should_stop,
        )
        if directory is not None:
            rows = RowMaker(parts.loaded.tokenizer, config.advantage.kind)
            write_completions(
                directory.completions_dir("eval") / "step_00000.parquet",
                rows.rows(0, evaluation.rollouts, None),
            )
            directory.write_environment()
            write_json(directory.eval_dir / "summary.json", evaluation.summary(config.model.path))
    return evaluation
