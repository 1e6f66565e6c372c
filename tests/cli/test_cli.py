"""The command line as a user meets it: quick help, errors in one line, exit codes."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from forkpoint.cli import main as main_module
from forkpoint.cli.evaluate import chosen_benchmarks
from forkpoint.config import load_config, parse_config
from forkpoint.demo import demo_runs
from forkpoint.evaluation.statistics import bootstrap_interval
from forkpoint.lab import BASE_POLICIES
from forkpoint.report.provenance import leaves
from forkpoint.runs import RunDirectory
from forkpoint.runs.completions import part_files, read_completions
from forkpoint.runs.evaluation import Answered, Comparison
from forkpoint.runs.results import (
    Estimate,
    Evaluation,
    find_result,
    read_result,
    result_path,
    write_result,
)
from forkpoint.sampling.transformers import TransformersEngine

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "src" / "forkpoint" / "recipes").glob("*.toml"))

USER_ERROR = 2


def forkpoint(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "forkpoint", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


class Here:
    """The same in this process, which has torch already: (exit code, output, errors)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["forkpoint", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main_module.main()
        out, err = self._capsys.readouterr()
        return int(caught.value.code or 0), out, err


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Here:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    return Here(monkeypatch, capsys)


# ---- run directories of the first version ------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "old"],
        ["figures", "old"],
        ["train", "--resume", "--run-dir", "old"],
        ["demo", "--resume", "--run-dir", "old"],
        ["eval", "--run-dir", "old"],
        ["analyze", "--run-dir", "old"],
        ["analyze", "--rollouts", "old", "--run-dir", "new"],
        ["dynamics", "old"],
        ["temperature", "--run-dir", "old"],
        ["branch", "--budget-tokens", "99999", "--run-dir", "old"],
    ],
    ids=" ".join,
)
def test_a_run_of_the_first_version_is_refused_in_one_line(
    arguments: list[str], here: Here, tmp_path: Path
) -> None:
    """Its configuration has keys that are gone, too: that is not what is wrong with it."""
    (tmp_path / "old" / "rollouts").mkdir(parents=True)
    (tmp_path / "old" / "config.json").write_text('{"model": {"dtype": "bfloat16"}}')
    (tmp_path / "old" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "old" / "env.json").write_text('{"command": []}')
    code, _, err = here(*arguments)
    assert code == USER_ERROR
    assert "old is a run directory of schema version 1, and this forkpoint reads and writes" in err
    assert err.count("\n") == 1


# ---- help ----------------------------------------------------------------------------------------


def user_seconds_of_help() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert forkpoint("--help").returncode == 0
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def test_help_is_quick() -> None:
    # the best of three: a busy machine is not our doing
    assert min(user_seconds_of_help() for _ in range(3)) < 0.5


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(arguments: list[str], here: Here) -> None:
    code, out, _ = here(*arguments)
    assert code == 0
    for command in ("demo", "train", "eval", "report", "doctor"):
        assert re.search(rf"│ {command} +\S", out)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["eval", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom forkpoint.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stderr.replace("'", '"')))
    assert {"forkpoint", "cyclopts"} <= loaded
    heavy = {"torch", "transformers", "numpy", "scipy", "pyarrow", "pebble", "jinja2", "pydantic"}
    assert not loaded & heavy


@pytest.mark.parametrize("command", ["demo", "train", "eval", "report"])
def test_every_option_is_explained(command: str, here: Here) -> None:
    _, out, _ = here(command, "--help")
    lines = [line.strip("│ ") for line in out.splitlines() if re.match("│ .*--[a-z]", line)]
    options = {name: text for name, *text in (re.split("  +", line, maxsplit=1) for line in lines)}
    assert any(name.startswith(("--run-dir", "--out")) for name in options)
    assert [name for name, text in options.items() if not text] == []


def test_version_and_entry_point(here: Here) -> None:
    import forkpoint as package

    assert here("--version")[:2] == (0, f"{package.__version__}\n")
    (script,) = entry_points(group="console_scripts", name="forkpoint")
    assert script.load() is main_module.main


# ---- errors of the user's ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tran"], 'Unknown command "tran". Did you mean "train"?'),
        (["train", "--resum"], "Unknown option: --resum. Did you mean --resume?"),
        (["train", "--run-dri", "x"], "Unknown option: --run-dri. Did you mean --run-dir?"),
        (["eval", "--problem", "3"], "Unknown option: --problem. Did you mean --problems?"),
        # before what is missing, which the misspelling may have been meant for
        (["analyze", "--modle", "lab"], "Unknown option: --modle. Did you mean --model?"),
        (["branch", "--budget-token=9"], "Unknown option: --budget-token. Did you mean --budget-"),
        (["temperature", "--run-dri", "x"], "Unknown option: --run-dri. Did you mean --run-dir?"),
        (["eval", "--problems", "--modle", "x"], "Unknown option: --modle. Did you mean --model?"),
        (["analyze"], "parameter --run-dir requires an argument"),
        (["eval", "--problems", "many"], 'unable to convert "many" into int'),
        (["train", "a.toml", "b.toml"], "Unused Tokens: ['b.toml']"),
        (
            ["train", "--dry-run", "--set", "selection.keep_fractoin=0.1"],
            "error: the command line: unknown key selection.keep_fractoin; "
            "did you mean selection.keep_fraction?",
        ),
        (["train", "--set", "optim.lr"], "error: --set 'optim.lr': expected section.key=value"),
        (
            ["train", "--set", "training.steps=many"],
            "training.steps: Input should be a valid integer, unable to parse string as an "
            "integer (given 'many')",
        ),
        (
            ["train", "lab_dem"],
            "error: there is no file and no recipe 'lab_dem'; did you mean lab_demo?; there are ",
        ),
        (
            ["train", "recipes/lab_dem.toml"],
            "error: there is no file recipes/lab_dem.toml; did you mean lab_demo?",
        ),
        (["train", "--resume"], "error: --resume needs the run to go on with: --run-dir DIR"),
        (["train", "--resume", "--run-dir", "nowhere"], "there is no file nowhere/config.json"),
        (["report"], "error: name at least one run directory: forkpoint report RUN -o report.html"),
        (["report", "nowhere"], "nowhere: no such run directory"),
    ],
)
def test_mistakes_are_named_with_what_was_meant(
    arguments: list[str], message: str, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, err = here(*arguments)
    assert (code, out) == (USER_ERROR, "")
    assert message in err
    if err.startswith("error: "):
        assert len(err.splitlines()) == 1


def test_mistakes_end_a_process_with_2_and_no_traceback() -> None:
    for arguments in (["trian"], ["train", "--set", "a"]):
        done = forkpoint(*arguments)
        assert done.returncode == USER_ERROR
        assert done.stderr
        assert "Traceback" not in done.stderr


def test_run_directory_that_exists(here: Here, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("mine")
    code, _, err = here("train", "--run-dir", "run")
    assert code == USER_ERROR
    assert err == (
        "error: run exists already: go on with it by --resume, or choose another --run-dir\n"
    )
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "mine"


def copy_of_lab(folder: Path) -> Path:
    return Path(shutil.copytree(BASE_POLICIES["lab:game"], folder))


@pytest.mark.parametrize(
    "command",
    [
        ["train"],
        ["eval"],
        ["analyze", "--run-dir", "a"],
        ["temperature", "--run-dir", "t"],
        ["branch", "--run-dir", "b", "--budget-tokens", "999999999"],
        ["dynamics", "--run-dir", "d", "--base", "lab:game", "--checkpoints", "lab:game"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(
    ("new", "message"),
    [
        (
            510,
            "and an answer may have 510; the model reads at most 512 together: lower",
        ),
        (
            512,
            "max_new_tokens = 512 leaves no room for a prompt: the model reads at most",
        ),
    ],
)
def test_answers_without_room_are_known_before_anything_is_sampled(
    here: Here, monkeypatch: pytest.MonkeyPatch, command: list[str], new: int, message: str
) -> None:
    monkeypatch.setattr(TransformersEngine, "sample", None)
    code, _, err = here(*command, "--set", f"rollout.max_new_tokens={new}")
    assert code == USER_ERROR
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", [["train"], ["eval"], ["analyze", "--run-dir", "a"]])
def test_text_that_the_tokenizer_cannot_encode_is_one_line(
    here: Here, tmp_path: Path, command: list[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": f"{name} \x1b[2J"}) + "\n")
    task = 'task={type="data", path="a.jsonl", eval_path="b.jsonl", chat=false}'
    rewards = 'rewards=[{type="format", pattern="x"}]'
    code, _, err = here(*command, "--set", task, "--set", rewards)
    assert code == USER_ERROR
    assert re.fullmatch(r"error: the prompt of problem '0' cannot be .* '[ab] \\x1b\[2J'\n", err)


def test_held_out_prompts_that_are_trained_on_are_told(here: Here, tmp_path: Path) -> None:
    both, other = ({"prompt": f"n{n} n5 goal n8 :"} for n in (3, 4))
    (tmp_path / "a.jsonl").write_text(json.dumps(both) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps(both) + "\n" + json.dumps(other) + "\n")
    task = 'task={type="data", path="a.jsonl", eval_path="b.jsonl", chat=false}'
    sets = [task, 'rewards=[{type="format", pattern="x"}]', "rollout.max_new_tokens=4"]
    flags = [flag for setting in sets for flag in ("--set", setting)]
    said = "1 of 2 held-out prompts are trained on as well"
    code, out, err = here("eval", *flags)
    assert code == 0
    assert said in err
    assert json.loads(out)["accuracy"]["n"] == 2
    code, out, _ = here("train", *flags, "--set", "training.steps=0")
    assert code == 0
    assert said in out


def test_code_of_the_users_that_raises_is_one_line(here: Here, tmp_path: Path) -> None:
    (tmp_path / "my_code.py").write_text("def rule(candidates):\n    return candidates.nothing\n")
    (tmp_path / "my_engine.py").write_text(
        "class Engine:\n"
        "    captures_entropy = same_weights = splits_temperatures = False\n"
        "    def __init__(self, *_): ...\n"
        "    def sample(self, requests, settings, should_stop):\n"
        "        raise RuntimeError('no\\nserver')\n"
        "    def close(self): ...\n"
    )
    (tmp_path / "my_broken.py").write_text("import json\n\njson.loads('')\n")
    small = ["rollout.prompts_per_step=2", "rollout.max_new_tokens=40", "training.steps=1"]
    for setting, line in {
        "selection.rule=my_code:rule": "raised AttributeError: 'Candidates' .* line 2)",
        "rollout.engine=my_engine:Engine": r"raised RuntimeError: no\\nserver .*engine.py, line 5",
        "selection.rule=my_broken:rule": "cannot import 'my_broken': JSONDecodeError: .* line 3)",
        "rollout.engine=my_broken:engine": "cannot import 'my_broken': JSONDecodeError: .* line 3)",
        'rewards=[{type="custom", path="my_broken:f"}]': "cannot import 'my_broken': .* line 3)",
    }.items():
        sets = [*small, setting]
        run = ["train", "--run-dir", str(abs(hash(setting)))]
        code, _, err = here(*run, *(x for s in sets for x in ("--set", s)))
        assert code == USER_ERROR
        assert re.search(line.replace(")", r"\)"), err), err
        assert len(err.splitlines()) == 1


def test_start_that_failed_can_be_repeated(here: Here, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for model, message in (("./empty", "cannot be loaded"), ("./nowhere", "no such folder")):
        code, _, err = here("train", "--set", f"model.path={model}", "--run-dir", "run")
        assert code == USER_ERROR
        assert message in err


def test_model_without_a_tokenizer(here: Here, tmp_path: Path) -> None:
    folder = copy_of_lab(tmp_path / "model")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    code, _, err = here("eval", "--model", folder)
    assert code == USER_ERROR
    assert (
        err == f"error: model.path = {str(folder)!r} has no tokenizer: tokenizer.json is missing\n"
    )


def test_model_without_a_chat_template(here: Here) -> None:
    code, _, err = here("eval", "--model", "lab:game", "--task", "chain_sum")
    assert code == USER_ERROR
    assert "the tokenizer has none (a base model?): set task.chat = false, or use an inst" in err


def test_vocabulary_larger_than_the_head(here: Here, tmp_path: Path) -> None:
    folder = copy_of_lab(tmp_path / "model")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    while len(vocabulary) <= rows:
        vocabulary[f"more{len(vocabulary)}"] = len(vocabulary)
    file.write_text(json.dumps(content))
    code, _, err = here("eval", "--model", folder)
    assert code == USER_ERROR
    assert f"the tokenizer knows {rows + 1} tokens but the model's head has {rows} rows" in err


@pytest.mark.parametrize("name", ['quote"', "back\\slash", "sp ace", "'"])
def test_model_path_of_any_spelling(name: str, here: Here) -> None:
    code, _, err = here("eval", "--model", f"./{name}")
    assert code == USER_ERROR
    assert err == f"error: model.path = {f'./{name}'!r}: there is no such folder\n"


def test_faults_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, here: Here) -> None:
    def broken(arguments: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(main_module, "app", broken)
    monkeypatch.setattr(sys, "argv", ["forkpoint"])
    with pytest.raises(ZeroDivisionError):
        main_module.main()


# ---- recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_says_what_to_expect(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem or path.stem == "lab_demo"
    text = path.read_text()
    header = text.partition("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    # what a recipe sets is what runs: presets fill in the rest only
    written = leaves(tomllib.loads(text))
    resolved = leaves(json.loads(config.model_dump_json()))
    for key in ("rewards", "evaluation.benchmarks"):  # lists of what has settings of its own
        written.pop(key, None)
    assert {key: resolved[key] for key in written} == written


def test_there_are_recipes() -> None:
    assert {"lab_demo", "smollm2_chain_sum", "qwen3_8b_paper"} <= {path.stem for path in RECIPES}


def test_the_demo_is_its_recipe() -> None:
    assert (
        load_config(ROOT / "src" / "forkpoint" / "recipes" / "lab_demo.toml")
        == demo_runs()[0].config
    )


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--set", "evaluation.every=0"], "it needs evaluation.every > 0"),
        (["--set", "evaluation.at_start=false"], "evaluation.at_start = true"),
        (["--set", "selection.rule=all"], "for selection.rule = 'all' use forkpoint train"),
        (["--resume"], "--resume needs the demo to go on with: --run-dir DIR"),
    ],
)
def test_what_is_no_demo_is_refused_before_it_starts(
    here: Here, arguments: list[str], fault: str
) -> None:
    code, out, err = here("demo", *arguments)
    assert (code, out) == (2, "")
    assert fault in err
    assert not Path("runs").exists()


def test_the_demos_controls_differ_in_their_tokens_alone() -> None:
    runs = demo_runs(["training.steps=3"])
    assert [run.folder for run in runs] == ["", "control", "random"]
    main, control, random = (run.config.model_dump() for run in runs)

    def changed(other: dict[str, Any]) -> set[tuple[str, str]]:
        return {
            (section, key)
            for section, settings in main.items()
            if isinstance(settings, dict)
            for key in settings
            if settings[key] != other[section][key]
        }

    rule, start = ("selection", "rule"), ("evaluation", "at_start")
    assert changed(control) == {rule, start, ("selection", "keep_fraction")}
    assert changed(random) == {rule, start}
    assert random["selection"]["rule"] == "random"
    assert (main["selection"]["rule"], control["selection"]["rule"]) == ("top", "bottom")
    fractions = main["selection"]["keep_fraction"] + control["selection"]["keep_fraction"]
    assert fractions == pytest.approx(1.0)


# ---- commands ------------------------------------------------------------------------------------


def test_dry_run_prints_and_writes_nothing(here: Here, tmp_path: Path) -> None:
    code, out, _ = here(
        *(
            "train",
            ROOT / "src" / "forkpoint" / "recipes" / "qwen3_8b_paper.toml",
            "--dry-run",
            "--run-dir",
            "out",
        ),
        *("--set", "rollout.group_size=8", "--set", "optim.lr=3e-6"),
    )
    assert code == 0
    config, end = json.JSONDecoder().raw_decode(out)
    assert parse_config(config).rollout.group_size == 8
    description = out[end:].strip()
    assert "would train Qwen/Qwen3-8B-Base, computing in bfloat16, on task data" in description
    assert "85 steps of 512 prompts x 8 = 4096 completions of at most 20480 tokens" in description
    assert "(ppo_clip, sparse) on top 20% of the tokens: scope minibatch" in description
    assert "16 optimizer updates a step, lr 3e-06" in description
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_a_threshold_names_it_and_no_share(here: Here) -> None:
    settings = ("--set", "selection.rule=threshold", "--set", "selection.threshold_nats=0.672")
    code, out, _ = here("train", "--dry-run", *settings)
    assert code == 0
    assert "(ppo_clip, sparse) on tokens of more than 0.672 nats: scope batch" in out
    assert "20%" not in out


def test_doctor_says_what_runs_here(here: Here) -> None:
    code, out, _ = here("doctor")
    assert code == 0
    for name in ("torch", "transformers", "reasoning-gym"):
        assert re.search(rf"^  {name} +\d+\.\d+", out, re.MULTILINE)
    assert "policy lab:walk is shipped" in out


@pytest.mark.parametrize(("missing", "code"), [("math-verify", 0), ("torch", USER_ERROR)])
def test_doctor_says_what_is_missing(
    missing: str, code: int, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "forkpoint.environment.package_version", lambda name: None if name == missing else "1.0"
    )
    found, out, _ = here("doctor")
    assert found == code
    expected = {
        "math-verify": "not installed: pip install 'forkpoint[math]'  (rewards.type = 'math')",
        "torch": "missing",
    }
    assert re.search(rf"{missing} +{re.escape(expected[missing])}", out)


def test_eval_prints_the_accuracy_with_its_interval(tmp_path: Path) -> None:
    arguments = ["--model", "lab:game", "--task", "lab:game", "--problems", "8", "--samples", "2"]
    # a busy machine may need long for what is quick
    patient = ["--set", 'rewards=[{type="task", timeout_s=60}]', "--run-dir", "out"]
    done = forkpoint("eval", *arguments, *patient, cwd=tmp_path)
    assert done.stderr == ""
    assert done.returncode == 0
    printed: dict[str, Any] = json.loads(done.stdout)
    folder = tmp_path / "out" / "completions" / "evaluation"
    rows = list(read_completions(part_files(folder)))
    assert len(rows) == 16
    right = [sum(r.score.reward or 0 for r in rows if r.serial == n) / 2 for n in range(8)]
    low, high = bootstrap_interval(right, seed=20_000)
    accuracy = {"value": sum(right) / 8, "low": low, "high": high, "n": 8}
    pass_2 = printed["pass_at"].pop("2")
    assert pass_2["value"] == sum(share > 0 for share in right) / 8
    assert printed == {
        "schema_version": 1,
        "model": "lab:game",
        "task": "lab:game",
        "verifier": '{"type": "task"}',
        "temperature": 1.0,
        "seed": 20_000,
        "samples": 2,
        "max_new_tokens": 160,
        "accuracy": accuracy,
        "pass_at": {"1": accuracy},
        # one of two right: variance (1/2)(1/2)/1 of the mean of two
        "sampling_error": pytest.approx(sum(share == 0.5 for share in right) ** 0.5 / 2 / 8),
        "length_mean": sum(len(r.completion) for r in rows) / 16,
        "truncated_fraction": sum(r.completion.finish_reason == "length" for r in rows) / 16,
        "unjudged": 0,
    }
    directory = RunDirectory(tmp_path / "out")
    stored = read_result(result_path(tmp_path / "out", Evaluation), Evaluation)
    printed["pass_at"]["2"] = pass_2
    shown = stored.model_dump(mode="json", exclude={"problems"})
    assert shown == printed
    assert [sum(one.right) / 2 for one in stored.problems] == right
    assert json.loads(directory.env_json.read_text())["command"][1:] == [
        "eval",
        *arguments,
        *patient,
    ]
    assert load_config(directory.config_json).evaluation.problems == 8


# ---- benchmarks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--benchmark", "aime42"], "error: there is no benchmark 'aime42'; did you mean 'aime2"),
        (["--benchmark", "aime24,aime24"], "error: --benchmark: aime24 is named twice"),
        (["--benchmark", "aime24,"], "error: --benchmark '': '' is no name"),
        (["--benchmark", "a b.jsonl"], "error: --benchmark 'a b.jsonl': 'a b' is no name"),
        (["--benchmark", "a\n.jsonl"], "error: --benchmark 'a\\n.jsonl': 'a\\n' is no name"),
        (
            ["--benchmark", "no.jsonl"],
            "error: benchmark no: cannot read no.jsonl: there is no such",
        ),
        (["--benchmark", "mine.jsonl"], "there are a, q: name the one to read by question_column"),
        (["--benchmark", "gsm8k", "--benchmark-dir", "."], "has no gsm8k.jsonl"),
        (["--benchmark", "gsm8k"], "--benchmark-dir DIR with gsm8k.jsonl (or .json, .parquet) in"),
        (["--benchmark-dir", "."], "--benchmark-dir and --max-new-tokens need benchmarks"),
        (["--max-new-tokens", "9"], "--benchmark-dir and --max-new-tokens need benchmarks"),
        (["--benchmark", "aime24", "--task", "lab:game"], "give either it or --benchmark"),
        (["--benchmark", "aime24", "--samples", "0"], "error: --samples must be 1 at least"),
        (["--compare", "a", "b", "--samples", "3"], "takes no other option than --run-dir"),
        (["--compare", "a", "b"], "error: a holds no evaluation: make one with forkpoint eval"),
        (["--set", 'evaluation.benchmarks=[{nme="a"}]'], "unknown key evaluation.benchmarks.0.nme"),
        (
            ["--set", 'evaluation.benchmarks=[{name="a"}, {name="a"}]'],
            "two benchmarks are called 'a'",
        ),
    ],
)
def test_benchmarks_are_refused_in_a_line(here: Here, arguments: list[str], fault: str) -> None:
    Path("mine.jsonl").write_text('{"q": "x", "a": 1}\n')
    code, out, err = here("eval", *arguments)
    assert (code, out) == (2, "")
    assert fault in err
    assert len(err.splitlines()) == 1


def test_which_benchmarks_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = '[{name="aime24", temperature=0.5}, {name="amc23"}]'
    config = load_config(None, [f"evaluation.benchmarks={described}"])
    assert [one.name for one in chosen_benchmarks(config, [])] == ["aime24", "amc23"]
    aime, mine, test = chosen_benchmarks(config, ["aime24,some/mine.jsonl", "gsm8k/test.jsonl"])
    assert (aime.temperature, aime.path) == (0.5, None)  # as the recipe describes it
    assert (mine.name, mine.path) == ("mine", "some/mine.jsonl")
    assert (test.name, test.path) == ("gsm8k", "gsm8k/test.jsonl")
    monkeypatch.chdir(tmp_path)
    for path in ("test.jsonl", "./test.jsonl", str(tmp_path / "test.jsonl")):
        (here,) = chosen_benchmarks(config, [path])
        assert (here.name, here.path) == (tmp_path.name, path)
    assert chosen_benchmarks(load_config(None), []) == ()


def test_a_comparison_is_printed_and_stored(here: Here, tmp_path: Path) -> None:
    def measured(right: tuple[bool, ...]) -> Evaluation:
        return Evaluation(
            model="m",
            task="t",
            seed=0,
            temperature=1.0,
            samples=2,
            accuracy=Estimate(value=sum(right) / 2, low=0.0, high=1.0, n=1),
            length_mean=3.0,
            problems=(Answered(id="0", digest="d", right=right),),
        )

    write_result(tmp_path / "a", measured((False, True)))
    write_result(tmp_path / "b", measured((True, True)))
    code, out, err = here("eval", "--compare", "a", "b", "--run-dir", "c")
    assert (code, err) == (0, "")
    stored = find_result(tmp_path / "c", Comparison)
    assert stored is not None
    assert stored.model_dump(mode="json") == json.loads(out)
    assert stored.differences[0].difference.value == 0.5
    write_result(tmp_path / "b", measured((True, True)).model_copy(update={"problems": ()}))
    code, _, err = here("eval", "--compare", "a", "b")
    assert code == 2
    assert "b: the evaluation on t was made by an earlier version" in err
