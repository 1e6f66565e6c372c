"""reasoning-gym's generated tasks, training and held-out questions apart.

Entry i of a reasoning-gym data set is generated from ``seed + i``, so data sets of near-by seeds
share nearly all of their questions. Here every question has a seed of its own, drawn from (task
seed, serial), and a hash of the question's text decides whether it is held out.
"""

import hashlib

from forkpoint.config.stages import GymTaskConfig
from forkpoint.errors import DataError
from forkpoint.randomness import stream
from forkpoint.tasks.base import Task, ask
from forkpoint.types import Problem
from forkpoint.verifiers.gym import GymVerifier, is_right, judged, make_dataset

HELD_OUT_SHARE = 4
"""One in so many distinct questions is held out."""

CHECKED = 8
"""Problems whose verifier is tried at the start: on the right answer, and on one that is none."""
NO_ANSWER = "I cannot say"
TRIED = (NO_ANSWER, "7", "2 * x + (3 - 1)", "[[1, 2], [3, 4]]", '["a", "b"]')
"""Answers of several forms, to see whether a verifier runs them."""

ATTEMPTS = 200
"""Draws to find a question of the wanted side before giving up."""


class GymTask(Task):
    """One task of reasoning-gym."""

    columns = frozenset({"answer", "entry"})

    def __init__(self, config: GymTaskConfig) -> None:
        """
        Raises:
            ConfigError: no such task or parameter. DataError: the task's own answer is not right
                by its own verifier (some have none), or any answer is; or it would run answers.
        """
        self._config = config
        self.verifier = GymVerifier(config.name, dict(config.parameters), config.answer_format)
        dataset = make_dataset(config.name, config.parameters, seed=0)
        for serial in range(CHECKED):
            entry = self.problem(serial).columns["entry"]
            for text in (entry["answer"] or "", *TRIED):
                if judged(dataset, text, entry)[1]:
                    raise DataError(
                        f"task.name = {config.name!r}: its verifier runs answers as Python (eval), "
                        "and with them whatever the model writes"
                    )
            if entry["answer"] is None or not is_right(dataset, entry["answer"], entry):
                raise DataError(
                    f"task.name = {config.name!r}: the task's own answer {entry['answer']!r} does "
                    "not get full marks from its verifier, so no completion could"
                )
            if is_right(dataset, NO_ANSWER, entry):
                raise DataError(
                    f"task.name = {config.name!r}: its verifier gives {NO_ANSWER!r} full marks "
                    f"where the answer is {entry['answer']!r}, so a policy could learn to say that"
                )

    def problem(self, serial: int) -> Problem:
        return self._draw(self._config.seed, serial, held_out=False)

    def held_out(self, count: int, seed: int) -> list[Problem]:
        return [self._draw(seed, serial, held_out=True) for serial in range(count)]

    def _draw(self, seed: int, serial: int, *, held_out: bool) -> Problem:
        config = self._config
        generator = stream(seed, f"gym {config.name} {held_out}", serial)
        for _ in range(ATTEMPTS):
            entry_seed = int(generator.integers(2**31))
            entry = make_dataset(config.name, config.parameters, seed=entry_seed)[0]
            if is_held_out(entry["question"]) == held_out:
                side = "held_out" if held_out else "train"
                return Problem(
                    id=f"{config.name}/{side}/{_digest(entry['question']):016x}",
                    prompt=ask(entry["question"] + config.instruction, chat=config.chat),
                    columns={"answer": entry["answer"], "entry": entry},
                )
        raise DataError(
            f"task.name = {config.name!r}: {ATTEMPTS} questions drawn and none "
            f"{'to hold out' if held_out else 'to train on'}: with these task.parameters it has "
            "too few different ones"
        )


def is_held_out(question: str) -> bool:
    """Which side a question is on, by a hash of its text."""
    return _digest(question) % HELD_OUT_SHARE == 0


def _digest(question: str) -> int:
    return int.from_bytes(hashlib.blake2b(question.encode(), digest_size=8).digest(), "big")
