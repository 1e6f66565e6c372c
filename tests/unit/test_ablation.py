"""Ablations: what a recipe may say, what runs are made, and the comparison by hand."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from forkpoint.ablation.compare import compare, over_seeds
from forkpoint.ablation.recipe import (
    AblationRecipe,
    PlannedRun,
    Variant,
    load_ablation,
    planned_runs,
)
from forkpoint.ablation.runs import finished, make_runs
from forkpoint.cli.main import app
from forkpoint.errors import ConfigError, Interrupted, RunError
from forkpoint.evaluation.statistics import t_interval
from forkpoint.runs import RunDirectory
from forkpoint.runs.ablation import Ablation
from forkpoint.runs.results import read_result, result_path
from tests.report_page import page_of
from tests.unit import slow_rule

SMALL = """
name = "small"
recipe = "lab_demo"
set = ["training.threads=1", "training.steps=1", "evaluation.every=1", "evaluation.problems=8",
    "rollout.prompts_per_step=2", "rollout.group_size=4", "scoring.workers=1"]
seeds = [0, 3]

[[variants]]
name = "all"
set = ["selection.rule=all"]

[[variants]]
name = "top20"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def planned(recipe: Path, root: Path, *overrides: str) -> list[PlannedRun]:
    return planned_runs(load_ablation(recipe), root, overrides)


# ---- recipes ------------------------------------------------------------------------------------


def test_a_rule_that_is_not_there_is_known_before_anything_runs(tmp_path: Path) -> None:
    variant = Variant(name="a", set=("selection.rule=tops",))
    ablation = AblationRecipe(name="x", recipe="lab_demo", seeds=(0,), variants=(variant,))
    with pytest.raises(ConfigError, match=r"variant a: .*did you mean 'top'"):
        planned_runs(ablation, tmp_path, ["evaluation.every=1"])


def test_every_variant_has_every_seed_and_its_own_settings(recipe: Path, tmp_path: Path) -> None:
    runs = planned(recipe, tmp_path, "optim.lr=0.5")
    assert [(run.variant, run.seed) for run in runs] == [
        ("all", 0), ("top20", 0), ("all", 3), ("top20", 3),
    ]  # fmt: skip
    for run in runs:
        assert run.config.selection.rule == ("all" if run.variant == "all" else "top")
        assert (run.config.training.seed, run.config.task.seed) == (run.seed, run.seed)
        assert run.config.optim.lr == 0.5
        assert run.folder == tmp_path / run.variant / f"seed_{run.seed}"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("seeds = [0, 3]", "seeds = []", "no ablation: seeds: Tuple should have at least 1"),
        ("seeds = [0, 3]", "seeds = [0, 0]", "two variants of one name, or a seed twice"),
        ('"top20"', '"all"', "two variants of one name"),
        ('"top20"', '"../up"', "variants.1.name: String should match"),
        ("seeds", 'reference = "none"\nseeds', "reference = 'none' is none of all, top20"),
        ("seeds", "sedes = 1\nseeds", r"unknown key sedes; did you mean seeds\?"),
        ("name", "name name", "cannot be read"),
    ],
)
def test_what_is_no_recipe_is_one_line(recipe: Path, old: str, new: str, fault: str) -> None:
    recipe.write_text(SMALL.replace(old, new))
    with pytest.raises(ConfigError, match=fault) as caught:
        load_ablation(recipe)
    assert "\n" not in str(caught.value)


def test_a_faulty_variant_is_known_before_anything_runs(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(SMALL.replace("selection.rule=all", "selection.rul=all"))
    with pytest.raises(ConfigError, match=r"variant all: .*did you mean selection\.rule\?"):
        planned(recipe, tmp_path)
    recipe.write_text(SMALL.replace("lab_demo", "lab_dem"))
    with pytest.raises(ConfigError, match="variant all: there is no file and no recipe 'lab_dem'"):
        planned(recipe, tmp_path)
    recipe.write_text(SMALL)
    with pytest.raises(ConfigError, match=r"evaluation\.every = 0, so there is nothing to comp"):
        planned(recipe, tmp_path, "evaluation.every=0")
    for own in ("training.seed=7", "task.seed = 7", 'name="x"'):
        with pytest.raises(ConfigError, match=f"variant all: {own}: seeds and names of runs are"):
            planned(recipe, tmp_path, own)


# ---- the comparison -----------------------------------------------------------------------------


def made(run: PlannedRun, accuracies: dict[int, float], **metrics: float) -> None:
    """The files of a run that was evaluated at some steps.

    Args:
        metrics: of every line, a ``/`` in their names as ``__``.
    """
    also = {name.replace("__", "/"): value for name, value in metrics.items()}
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text(run.config.model_dump_json())
    with (run.folder / "metrics.jsonl").open("w") as file:
        for step, value in accuracies.items():
            line: dict[str, Any] = {"step": step, "eval/accuracy": value, "eval/problems": 8}
            line |= {"eval/length_mean": 41.0, "work/flops": 5.0}
            file.write(json.dumps(line | also) + "\n")


def test_the_comparison_by_hand(recipe: Path, tmp_path: Path) -> None:
    runs = planned(recipe, tmp_path)
    finals = {("all", 0): 0.5, ("top20", 0): 0.6, ("all", 3): 0.7, ("top20", 3): 0.6}
    for run in runs:
        made(run, {0: 0.1, 1: finals[run.variant, run.seed]})
    found = compare(runs, "all")
    everything, top = found.arms
    assert found.reference == "all"
    assert (everything.label, everything.seeds, everything.final) == ("all", (0, 3), (0.5, 0.7))
    # two values 0.5 and 0.7: s = 0.2 / sqrt 2, t of one degree = 12.706
    half = 12.7062 * (0.2 / math.sqrt(2)) / math.sqrt(2)
    assert everything.accuracy.value == pytest.approx(0.6)
    assert everything.accuracy.interval == pytest.approx((0.6 - half, 0.6 + half), rel=1e-4)
    assert everything.difference is None
    assert top.difference is not None  # paired: 0.1 and -0.1
    assert top.difference.value == pytest.approx(0, abs=1e-12)
    assert top.difference.interval == pytest.approx((-half, half), rel=1e-4)
    assert [(p.step, p.operations, p.length_mean) for p in top.curve] == [(0, 5, 41), (1, 10, 41)]
    assert "selection.rule=all" in everything.settings
    assert not [s for s in everything.settings if "seed" in s or s.startswith("name")]


def test_other_metrics_are_means_over_seeds_by_hand(recipe: Path, tmp_path: Path) -> None:
    runs = planned(recipe, tmp_path)
    for run in runs:
        seed, more = run.seed, {} if run.variant == "all" else {"selection__energy_share": 0.5}
        made(
            run,
            {0: 0.1, 1: 0.5},
            **more,
            entropy__mean=0.2 + seed / 10,
            selection__kept_fraction=0.2 + seed / 10,
            eval__truncated_fraction=seed / 6,
            time__step_s=900.0,
            time__eval_s=450.0,
        )
    everything, top = compare(runs, "all").arms
    assert [(e.step, e.value.n) for e in top.entropy] == [(0, 2), (1, 2)]
    assert top.entropy[1].value.value == pytest.approx(0.35)  # of 0.2 and 0.5
    half = 12.7062 * (0.3 / math.sqrt(2)) / math.sqrt(2)
    assert top.entropy[1].value.interval == pytest.approx((0.35 - half, 0.35 + half), rel=1e-4)
    assert top.kept_fraction == pytest.approx(0.35)
    assert (everything.energy_share, top.energy_share) == (None, 0.5)
    assert top.hours == pytest.approx(2 * 2 * 1350 / 3600)  # seeds, lines
    assert [p.truncated_fraction for p in top.curve] == pytest.approx([0.25, 0.25])


def test_variants_keep_their_order_and_those_without_a_run_are_named(
    recipe: Path, tmp_path: Path
) -> None:
    runs = planned(recipe, tmp_path)
    made(runs[2], {1: 0.5})  # all, seed 3
    found = compare(runs, "all")
    assert (found.variants, found.seeds) == (("all", "top20"), (0, 3))
    assert [arm.label for arm in found.arms] == ["all"]
    made(runs[1], {1: 0.5})  # top20, seed 0: no seed in common
    everything, top = compare(runs, "all").arms
    assert (everything.label, top.label, top.difference) == ("all", "top20", None)
    assert (everything.hours, everything.kept_fraction, everything.entropy) == (None, None, ())


def test_what_is_not_through_is_not_compared(recipe: Path, tmp_path: Path) -> None:
    runs = planned(recipe, tmp_path)
    made(runs[0], {0: 0.1, 1: 0.5})
    made(runs[1], {0: 0.1})  # stopped
    assert finished(runs[1]) is None
    (arm,) = compare(runs, "all").arms
    assert (arm.label, arm.seeds, arm.accuracy.interval) == ("all", (0,), None)
    assert compare(runs, "top20").reference is None


def test_students_interval() -> None:
    # five values, mean 3, s^2 = 2.5: 3 +- 2.776 sqrt(2.5 / 5)
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - 1.9632, 3 + 1.9632), abs=1e-3)
    assert over_seeds([0.25]).interval is None
    # no spread is known of equal values: an interval without width would claim there is none
    assert over_seeds([0.25, 0.25]).interval is None
    # nor of shares of 200 problems whose differences are 3 / 200 but for the last bit
    assert (197 + 3) / 200 - 197 / 200 != (187 + 3) / 200 - 187 / 200
    found = over_seeds([(197 + 3) / 200 - 197 / 200, (187 + 3) / 200 - 187 / 200])
    assert (found.value, found.interval) == (0.015, None)


# ---- runs ---------------------------------------------------------------------------------------


def test_other_settings_are_refused_before_anything_runs(recipe: Path, tmp_path: Path) -> None:
    made(planned(recipe, tmp_path)[2], {1: 0.5})
    runs = planned(recipe, tmp_path, "optim.lr=0.5")
    with pytest.raises(RunError, match=r"made with other settings \(optim\.lr: 0\.0001 -> 0\.5\)"):
        make_runs(runs, "lab_demo", jobs=1, note=print)
    assert not runs[0].folder.exists()


def test_a_run_that_another_process_is_making_is_named(recipe: Path, tmp_path: Path) -> None:
    runs = planned(recipe, tmp_path)
    with (
        RunDirectory.claim(runs[1].folder),
        pytest.raises(RunError, match=r"top20/seed_0 is being written by process \d+"),
    ):
        make_runs(runs, "lab_demo", jobs=1, note=print)
    assert not runs[0].folder.exists()


def test_ctrl_c_in_a_terminal_saves_the_runs_in_flight(recipe: Path, tmp_path: Path) -> None:
    """It goes to every process there; a second signal would end them at once."""
    variant = 'set = ["selection.rule=tests.unit.slow_rule:everything"]'
    text = SMALL.replace('set = ["selection.rule=all"]', variant).replace("[0, 3]", "[0]")
    recipe.write_text(text.replace("training.steps=1", "training.steps=4"))
    root, working = tmp_path / "ablation", tmp_path / "working"
    command = [sys.executable, "-m", "forkpoint", "ablate", str(recipe), "--run-dir", str(root)]
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, slow_rule.MARK: str(working)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 240
    while not working.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # amid a step, which takes longer than we look away
    output, _ = process.communicate(timeout=240)
    log = (root / "all" / "seed_0.log").read_text()
    assert process.returncode == 130, output + log
    assert "go on with the same command" in output
    assert "saved step_00001" in log
    assert [one.name for one in (root / "all/seed_0/checkpoints").iterdir()] == ["step_00001"]


def test_a_run_that_fails_does_not_keep_the_others_from_theirs(
    recipe: Path, tmp_path: Path
) -> None:
    recipe.write_text(
        SMALL.replace("[0, 3]", "[0]").replace("selection.rule=all", "model.path=/nowhere")
    )
    notes: list[str] = []
    runs = planned(recipe, tmp_path)
    with pytest.raises(RunError, match=r"1 of 2 runs failed, the first one .*all/seed_0: see"):
        make_runs(runs, "lab_demo", jobs=2, note=notes.append)
    assert finished(runs[1])
    assert any(note.startswith("all, seed 0: failed, see") for note in notes)
    log = (tmp_path / "all/seed_0.log").read_text()
    assert "error: " in log
    assert "/nowhere" in log


def test_stopped_it_goes_on_where_it_was(recipe: Path, tmp_path: Path) -> None:
    runs = planned(recipe, tmp_path)
    notes: list[str] = []
    with pytest.raises(Interrupted):
        make_runs(runs, "lab_demo", jobs=1, note=notes.append, should_stop=lambda: bool(notes))
    assert finished(runs[0])
    assert finished(runs[3]) is None
    arguments = ["ablate", str(recipe), "--run-dir", str(tmp_path), "--jobs", "2"]
    assert app(arguments, result_action="return_value") == 0
    assert sum("done" in note for note in notes) == 1
    found = read_result(result_path(tmp_path, Ablation), Ablation)
    assert [(arm.label, arm.seeds) for arm in found.arms] == [("all", (0, 3)), ("top20", (0, 3))]
    assert found.arms[0].curve[-1].truncated_fraction is not None
    asked = json.loads((tmp_path / "recipe.json").read_text())
    assert (asked["name"], asked["seeds"], asked["overrides"]) == ("small", [0, 3], [])
    assert "git" in json.loads((tmp_path / "env.json").read_text())
    text = page_of(tmp_path).words()
    assert "2 variants with 2 seeds each, 4 of 4 runs finished." in text
    assert "on the laboratory's walk, starting from the model lab:walk: 1 steps" in text
    assert "all selection.rule=all" in text


def test_the_shipped_ablation_can_be_planned(tmp_path: Path) -> None:
    runs = planned_runs(load_ablation("ablation_lab"), tmp_path)
    assert {run.variant for run in runs} >= {
        "all", "top10", "top20", "top50", "bottom80", "random20",
    }  # fmt: skip
    assert {run.config.training.threads for run in runs} == {1}
