"""What is wrong with a run's data is said before a step is made, not when its turn comes."""

import json
from pathlib import Path
from typing import Any

import pytest

from forkpoint.config import RunConfig, parse_config
from forkpoint.errors import DataError
from forkpoint.lab import WalkWorld, draw_problem
from forkpoint.training.loop import train

WORLD = WalkWorld()
PROMPTS = [
    WORLD.prompt(draw_problem(WORLD, seed=0, serial=serial, split="train").columns)
    for serial in range(8)
]
EAST = {"type": "format", "pattern": "go east.*"}


def written(path: Path, prompts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


def config(path: Path, **sections: dict[str, Any]) -> RunConfig:
    raw: dict[str, Any] = {
        "model": {"path": "lab:walk"},
        "task": {"type": "data", "path": str(path), "chat": False},
        "rewards": [EAST],
        "scoring": {"workers": 1},
        "rollout": {"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 41, "max_rounds": 1},
        "training": {"steps": 4, "mini_batches": 1, "threads": 1},
        "checkpoint": {"every": 1},
    }
    for name, settings in sections.items():
        raw[name] = {**raw.get(name, {}), **settings}
    return parse_config(raw)


def begun(root: Path) -> bool:
    """Whether anything was sampled."""
    return (root / "completions").exists()


def test_held_out_problems_that_are_not_there(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", PROMPTS)
    evaluation = {"every": 2, "at_start": False}
    with pytest.raises(DataError, match="there are no held-out problems: name some with"):
        train(config(path, evaluation=evaluation), tmp_path / "run")
    assert not begun(tmp_path / "run")


@pytest.mark.parametrize("where", ["path", "eval_path"])
def test_a_prompt_that_is_too_long(where: str, tmp_path: Path) -> None:
    rows = {name: written(tmp_path / f"{name}.jsonl", PROMPTS) for name in ("path", "eval_path")}
    written(rows["eval_path"], [f"{prompt} :" for prompt in PROMPTS])
    lines = rows[where].read_text().splitlines()
    longest = json.dumps({"prompt": " ".join(PROMPTS * 40)})
    rows[where].write_text("\n".join([*lines[:-1], longest]))
    task = {"eval_path": str(rows["eval_path"])}
    evaluation = {"every": 4, "at_start": False, "problems": 8}
    with pytest.raises(DataError, match=r"the prompt of problem '7' has \d+ tokens"):
        train(config(rows["path"], task=task, evaluation=evaluation), tmp_path / "run")
    assert not begun(tmp_path / "run")


def test_a_run_does_not_go_on_with_other_rows(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", PROMPTS)
    short = config(path, training={"steps": 1})
    train(short, tmp_path / "run")
    written(path, PROMPTS[:-1])
    with pytest.raises(DataError, match=r"rows.jsonl holds other rows than when this run began"):
        train(config(path), tmp_path / "run", resume=True)
    written(path, PROMPTS)
    assert train(config(path), tmp_path / "run", resume=True).state.step == 4
