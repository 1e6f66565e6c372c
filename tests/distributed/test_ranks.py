"""A run on several processes is the run on one: same selection, metrics, weights; none hangs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from forkpoint.errors import Interrupted, NumericalError
from forkpoint.lab import BASE_POLICIES
from forkpoint.ranks import ALONE, Ranks
from forkpoint.runs.checkpoints import checkpoint_fault
from forkpoint.runs.completions import read_completions
from tests.equivalence.families import build

SMALL = {
    "training.threads": 1,
    "training.mini_batches": 2,
    "rollout.prompts_per_step": 6,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 60,
    "evaluation.every": 2,
    "evaluation.problems": 6,
    "checkpoint.every": 1,
    "checkpoint.keep_last": 9,
    "scoring.workers": 1,
}
TOLERANCE = 1e-5
"""Relative; what differs is the order in which gradients are added."""


def command(processes: int, run: Path, steps: int, **settings: Any) -> list[str]:
    """``forkpoint train`` on so many processes; settings with ``__`` for the dot."""
    recipe = settings.pop("recipe", "lab_game")
    given = {**SMALL, "training.steps": steps}
    given |= {name.replace("__", "."): value for name, value in settings.items()}
    launch = ["-m", "forkpoint"]
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        launch += ["-m", "forkpoint"]
    what = ["--resume"] if (run / "config.json").exists() else [str(recipe)]
    options = [part for k, v in given.items() for part in ("--set", f"{k}={json.dumps(v)}")]
    return [sys.executable, *launch, "train", *what, *options, "--run-dir", str(run)]


def train(processes: int, run: Path, steps: int = 2, **settings: Any) -> str:
    done = subprocess.run(
        command(processes, run, steps, **settings), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what no two runs have in common."""
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in found
    ]


def selected(run: Path) -> list[tuple[Any, ...]]:
    """Which tokens of which completions got a policy gradient."""
    paths = sorted((run / "completions" / "train").glob("*.parquet"))
    found = []
    for row in (row for path in paths for row in read_completions([path])):
        chosen = [] if row.selected is None else list(row.selected)
        found.append((row.step, row.serial, row.sample, row.completion.token_ids.tolist(), chosen))
    return found


def assert_same_run(run: Path, other: Path, *, but: str = r"mismatch/") -> None:
    assert selected(run) == selected(other)
    for ours, theirs in zip(lines(run), lines(other), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if not re.match(but, name):
                assert value == pytest.approx(theirs[name], rel=TOLERANCE, abs=1e-6), name
    newest = [sorted((r / "checkpoints").iterdir())[-1] for r in (run, other)]
    assert newest[0].name == newest[1].name
    for family, bound in (("*model", TOLERANCE), ("optimizer", 1e-3)):
        ours, theirs = (stored_tensors(folder, family) for folder in newest)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            gap = (tensor - theirs[name]).norm() / tensor.norm().clamp(min=1e-12)
            assert gap < bound, (family, name)


def stored_tensors(folder: Path, family: str) -> dict[str, torch.Tensor]:
    """Of all files of a checkpoint; no tensor is in two."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"{family}*.safetensors")):
        tensors = load_file(path)
        assert not found.keys() & tensors.keys()
        found |= tensors
    assert found
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(1, run, steps=4)
    return run


# ---- plans --------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.1, 9), max_size=12), st.integers(1, 5))
def test_tasks_are_shared_out_and_no_process_has_more_of_them(
    costs: list[float], size: int
) -> None:
    shares = [Ranks(rank, size).share(costs) for rank in range(size)]
    assert len({len(share) for share in shares}) == 1
    done = sorted(task for share in shares for task in share if task is not None)
    assert done == list(range(len(costs)))
    counts = [sum(task is not None for task in share) for share in shares]
    assert max(counts) - min(counts) <= 1
    assert ALONE.share(costs) == list(range(len(costs)))


def test_the_line_of_a_second_thread_is_as_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def new_group(**named: Any) -> str:
        given.update(named)
        return "a line"

    monkeypatch.setattr(torch.distributed, "new_group", new_group)
    patience = timedelta(minutes=90)
    line = Ranks(1, 2, patience=patience).second_line()
    assert line == Ranks(1, 2, "a line", patience)
    assert given == {"backend": "gloo", "timeout": patience}


def test_one_process_talks_to_nobody() -> None:
    assert ALONE.gather(3) == [3]
    assert ALONE.agree(lambda: "x") == ["x"]
    assert ALONE.add(torch.ones(2)).tolist() == [1, 1]
    assert (ALONE.any(True), ALONE.any(False), ALONE.first) == (True, False, True)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_of_several_faults_all_processes_meet_the_first(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stopped and one that went on would wait for each other."""
    own = {1: Interrupted("stopped"), 2: NumericalError("not finite")}
    outcomes = [(None, None), *((None, (type(e), str(e))) for e in own.values())]
    monkeypatch.setattr(Ranks, "gather", lambda self, value: outcomes)

    def make() -> None:
        if rank in own:
            raise own[rank]

    with pytest.raises(Interrupted, match="stopped") as caught:
        Ranks(rank, 3).agree(make)
    assert (caught.value is own[1]) is (rank == 1)


# ---- the same run -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_make_the_run_of_one(alone: Path, tmp_path: Path, processes: int) -> None:
    run = tmp_path / "run"
    said = train(processes, run, steps=4)
    assert_same_run(run, alone)
    assert said.count("done: ") == 1  # one process speaks


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"training__gradient": "dense"},
        {"selection__scope": "sequence", "loss__kl_coefficient": 0.01},
        {"selection__entropy": "current", "selection__scope": "minibatch"},
        {"selection__rule": "random", "loss__denominator": "sequence"},
        {"training__micro_batch_tokens": 64, "training__mini_batches": 5},
        {"rollout__prompts_per_step": 2, "training__mini_batches": 8},  # some have nothing to do
        {"selection__scope": "microbatch", "training__micro_batch_sequences": 3},
        {"model__lora__rank": 4},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_every_way_to_train_is_the_same_on_two(settings: dict[str, Any], tmp_path: Path) -> None:
    train(1, tmp_path / "one", **settings)
    train(2, tmp_path / "two", **settings)
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "mixtral"])
def test_other_families_are_the_same_on_two(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(BASE_POLICIES["lab:game"]))
    model = build(family, vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "odd.py").write_text(
        "def odd(prompts, completions, completion_ids, **columns):\n"
        "    return [float(sum(ids) % 2) for ids in completion_ids]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    settings = {"model__path": str(tmp_path / "model"), "evaluation__every": 0}
    # A value in TOML, which has no JSON colons.
    rewards = 'rewards=[{type="custom",path="odd:odd"}]'
    for processes, name in ((1, "one"), (2, "two")):
        line = [*command(processes, tmp_path / name, 2, **settings), "--set", rewards]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_local_and_bfloat16_run_on_two(tmp_path: Path) -> None:
    """Their work differs: no keys are kept; bfloat16 sums differ by its rounding."""
    train(1, tmp_path / "one", training__gradient="local")
    train(2, tmp_path / "two", training__gradient="local")
    assert_same_run(tmp_path / "two", tmp_path / "one", but=r"mismatch/|grad/norm|work/")
    train(2, tmp_path / "half", model__compute_dtype="bfloat16")
    assert [line["step"] for line in lines(tmp_path / "half")] == [0, 1, 2]


# ---- going on -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(alone: Path, tmp_path: Path) -> None:
    """Each writes its part of a checkpoint, which any number reads."""
    run = tmp_path / "run"
    for processes, steps in ((2, 1), (1, 2), (3, 4)):
        train(processes, run, steps=steps, evaluation__every=2)
        folder = run / "checkpoints" / f"step_{steps:05d}"
        for family in ("model", "optimizer"):
            assert len(list(folder.glob(f"{family}*.safetensors"))) == processes
        listed = json.loads((folder / "manifest.json").read_text())
        assert {path.name for path in folder.iterdir()} == {*listed, "manifest.json"}
        read, about = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True
        )
        assert not about["missing_keys"]
        for name, tensor in stored_tensors(folder, "model").items():
            assert torch.equal(read.state_dict()[name], tensor)
        for family, bound in (("model", TOLERANCE), ("optimizer", 1e-3)):
            theirs = stored_tensors(alone / "checkpoints" / folder.name, family)
            ours = stored_tensors(folder, family)
            assert ours.keys() == theirs.keys()
            for name, tensor in ours.items():
                gap = (tensor - theirs[name]).norm() / tensor.norm().clamp(min=1e-12)
                assert gap < bound, (folder.name, name)
    ours, theirs = lines(run), lines(alone)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert selected(run) == selected(alone)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_part_that_cannot_be_written_leaves_the_earlier_checkpoints(
    rank: int, tmp_path: Path
) -> None:
    (tmp_path / "full_disk.py").write_text(
        "import os\n"
        "from forkpoint.sampling.rows import settle_decoding\n"
        "from forkpoint.sampling.transformers import TransformersEngine\n"
        "from forkpoint.training import checkpoint\n"
        "write = checkpoint._write_part\n"
        "def full(part, *rest):\n"
        f"    if os.environ['RANK'] == '{rank}' and 'step_00002' in str(part):\n"
        "        raise OSError(28, 'No space left on device')\n"
        "    return write(part, *rest)\n"
        "checkpoint._write_part = full\n"
        "def factory(loaded, config):\n"
        "    decoding = settle_decoding(loaded.model)\n"
        "    return TransformersEngine(loaded, decoding=decoding, batch_sequences=99)\n"
    )
    run = tmp_path / "run"
    done = subprocess.run(
        command(2, run, 4, rollout__engine="full_disk:factory"),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode != 0
    assert done.stderr.count("error: cannot write checkpoint") == 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00001"]
    assert checkpoint_fault(run / "checkpoints" / "step_00001") is None


def start(processes: int, run: Path, steps: int, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(processes, run, steps, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def worker_of(launcher: subprocess.Popen[str], rank: int) -> int:
    """The process id of a rank."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return int(child)
    raise AssertionError(f"no process has rank {rank}")


def wait_for_line(run: Path, count: int) -> None:
    for _ in range(600):
        path = run / "metrics.jsonl"
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.1)
    raise AssertionError("no step was made")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_and_the_run_goes_on(
    alone: Path, tmp_path: Path, rank: int
) -> None:
    run = tmp_path / "run"
    launcher = start(2, run, steps=4)
    wait_for_line(run, 2)
    os.kill(worker_of(launcher, rank), signal.SIGKILL)
    killed = time.monotonic()
    _, said = launcher.communicate(timeout=120)
    assert "error: the processes of this run have lost each other" in said
    assert "/forkpoint/" not in said  # torchrun prints a traceback of its own, and we none
    assert launcher.returncode != 0
    assert time.monotonic() - killed < 60
    train(2, run, steps=4)
    assert_same_run(run, alone)


@pytest.mark.slow
def test_a_stop_of_one_process_stops_all_with_everything_saved(alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = start(2, run, steps=4)
    wait_for_line(run, 2)
    os.kill(worker_of(launcher, 1), signal.SIGTERM)
    _, said = launcher.communicate(timeout=120)
    assert "/forkpoint/" not in said  # torchrun prints a traceback of its own
    made = len(lines(run)) - 1
    assert made < 4
    assert sorted(p.name for p in (run / "checkpoints").iterdir())[-1] == f"step_{made:05d}"
    train(1, run, steps=4)
    assert selected(run) == selected(alone)


@pytest.mark.slow
def test_what_one_process_meets_ends_all_with_its_message(tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text(
        "import os\n"
        "from forkpoint.errors import DataError\n"
        "from forkpoint.sampling.rows import settle_decoding\n"
        "from forkpoint.sampling.transformers import TransformersEngine\n"
        "def factory(loaded, config):\n"
        "    decoding = settle_decoding(loaded.model)\n"
        "    engine = TransformersEngine(loaded, decoding=decoding, batch_sequences=99)\n"
        "    sample = engine.sample\n"
        "    def fails(*arguments):\n"
        "        if os.environ['RANK'] == '1':\n"
        "            raise DataError('the disk of the second machine is full')\n"
        "        return sample(*arguments)\n"
        "    engine.sample = fails\n"
        "    return engine\n"
    )
    run = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    started = time.monotonic()
    done = subprocess.run(
        command(2, run, 2, rollout__engine="only_here:factory"),
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode != 0
    assert done.stderr.count("error: the disk of the second machine is full") == 1
    assert "lost each other" not in done.stderr
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_a_folder_that_is_taken_is_refused_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("")
    done = subprocess.run(command(2, run, 1), capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("exists already: go on with it by --resume") == 1
