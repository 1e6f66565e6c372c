"""``analyze`` end to end on the laboratory's policy: the store, resuming, and reading it back."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forkpoint.analysis import analyze as analyze_module
from forkpoint.analysis.analyze import AnalysisSettings, analyze
from forkpoint.analysis.summary import SummarySettings
from forkpoint.config import RunConfig, parse_config
from forkpoint.entropy import reference_entropy, reference_logprob
from forkpoint.errors import ConfigError, Interrupted, RunError
from forkpoint.policy.load import load_model
from forkpoint.runs.completions import StoredCompletion, part_files, read_completions
from forkpoint.runs.results import Pattern, find_result
from forkpoint.sampling import Prompter, SamplingParts, build_engine
from forkpoint.tasks import build_task
from forkpoint.types import Completion, Problem, Score


class Log:
    """What an analysis noted."""

    def __init__(self, after: Any = lambda number: None) -> None:
        self.parts: list[tuple[int, int | None, int]] = []
        """(number from 0, of how many, tokens)"""
        self.notes: list[str] = []
        self._after = after

    def __call__(self, text: str) -> None:
        found = re.match(r"part (\d+)(?:/(\d+))?  ([\d,]+) tokens  [\d,]+ tokens/s$", text)
        if found is None:
            self.notes.append(text)
            return
        number, of = int(found[1]) - 1, found[2] and int(found[2])
        self.parts.append((number, of or None, int(found[3].replace(",", ""))))
        self._after(number)


class VerifierHere:
    """A scorer in this process: the real one starts two others, which take seconds to come up."""

    def __init__(self, task: Any) -> None:
        self._verifier = task.verifier

    def score(self, pairs: Sequence[tuple[Problem, Completion]], *_: Any) -> list[Score]:
        marks = [self._verifier(problem.columns, c.text) for problem, c in pairs]
        return [Score(reward=mark, verdict=mark, parts={"task": mark}) for mark in marks]

    def close(self) -> None:
        pass


def build_here(config: RunConfig) -> SamplingParts:
    task, loaded = build_task(config.task), load_model(config.model)
    scorer: Any = VerifierHere(task)
    return SamplingParts(
        loaded=loaded,
        task=task,
        prompter=Prompter(loaded.tokenizer),
        engine=build_engine(loaded, config),
        scorer=scorer,
    )


@pytest.fixture(autouse=True, scope="module")
def _scorer_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyze_module, "build_sampling", build_here)
        yield


def config(**evaluation: int) -> RunConfig:
    # 6 problems of 2 samples, 4 completions at a time: 3 parts of 2 prompts
    return parse_config(
        {
            "evaluation": {"problems": 6, "samples": 2, **evaluation},
            "rollout": {"batch_sequences": 4, "max_new_tokens": 40},
        }
    )


SETTINGS = AnalysisSettings(summary=SummarySettings(min_count=2))


def run(root: Path, settings: AnalysisSettings = SETTINGS, **given: Any) -> Pattern:
    return analyze(given.pop("config", config()), root, settings, **given)


@pytest.fixture(scope="module")
def done(_scorer_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished analysis; tests only read it."""
    root = tmp_path_factory.mktemp("analysis") / "run"
    log = Log()
    analyze(config(), root, SETTINGS, note=log)
    assert [(number, of) for number, of, _ in log.parts] == [(0, 3), (1, 3), (2, 3)]
    assert sum(tokens for *_, tokens in log.parts) == sum(
        len(row.completion) for row in stored(root)
    )
    return root


def stored(root: Path) -> list[StoredCompletion]:
    return list(read_completions(part_files(root / "completions" / "analysis")))


def pattern(root: Path) -> Pattern:
    found = find_result(root, Pattern)
    assert found is not None
    return found


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("part_*.parquet")}


def test_what_is_stored_is_what_the_model_says(done: Path) -> None:
    loaded = load_model(config().model)
    rows = stored(done)
    assert len(rows) == 12
    assert len({(r.prompt_id, r.sample) for r in rows}) == 12
    for row in rows:
        found, prompt = row.completion, list(row.prompt_token_ids)
        token_ids = found.token_ids.tolist()
        with torch.no_grad():
            logits_LV = loaded.model(torch.tensor([[*prompt, *token_ids]])).logits[0]
        logits_TV = logits_LV[len(prompt) - 1 : -1]
        logprobs_T = reference_logprob(logits_TV, torch.tensor(token_ids))
        assert found.entropies is not None
        np.testing.assert_allclose(found.entropies, reference_entropy(logits_TV), atol=2e-5)
        np.testing.assert_allclose(found.logprobs, logprobs_T, atol=2e-5)
        assert found.top_ids is not None
        assert found.top_ids[:, 0].tolist() == logits_TV.argmax(-1).tolist()
        assert found.top_ids.shape == (len(found), 5)
        assert "".join(row.pieces or ()) == loaded.tokenizer.decode(token_ids)
        assert row.prompt == loaded.tokenizer.decode(prompt)
        assert found.finish_reason == ("length" if len(found) == 40 else "stop")
        assert row.score.verdict == row.score.parts["task"]


def test_what_else_is_left_behind(done: Path) -> None:
    assert json.loads((done / "config.json").read_text()) == config().model_dump(mode="json")
    assert "versions" in json.loads((done / "env.json").read_text())
    described = json.loads((done / "completions/analysis/settings.json").read_text())
    assert (described["source"], described["top_k"]) == ("sampled", 5)
    assert described["config"] == config().model_dump(mode="json")


def test_the_summary_knows_the_laboratory(done: Path) -> None:
    found = pattern(done)
    assert (found.completions, found.prompts, found.task) == (12, 6, "lab:game")
    assert found.tokens == sum(len(row.completion) for row in stored(done))
    # the shipped policy: forks are found, entropies are near the truth
    assert found.lab is not None
    assert found.lab.average_precision is not None
    assert found.lab.average_precision > max(0.9, 3 * found.lab.fork_share)
    assert found.lab.entropy_error is not None
    assert found.lab.entropy_error < 0.1
    assert 0.199 < found.kept_fraction < 0.21


# ---- going on ------------------------------------------------------------------------------------


def test_an_interrupted_analysis_goes_on_and_ends_the_same(done: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    stopped = []
    log = Log(after=lambda number: stopped.append(number))
    with pytest.raises(Interrupted):
        analyze(config(), root, SETTINGS, note=log, should_stop=lambda: bool(stopped))
    assert [path.name for path in part_files(root / "completions/analysis")] == [
        "part_00000.parquet"
    ]
    assert find_result(root, Pattern) is None
    first = files(root)
    log = Log()
    again = analyze(config(), root, SETTINGS, note=log)
    assert [number for number, *_ in log.parts] == [1, 2]
    assert files(root).items() >= first.items()
    assert files(root) == files(done)
    assert again == pattern(done)


@pytest.mark.parametrize("deleted", ["part", "folder"])
def test_what_was_deleted_is_made_again(done: Path, tmp_path: Path, deleted: str) -> None:
    root = tmp_path / "run"
    shutil.copytree(done, root)
    folder = root / "completions/analysis"
    if deleted == "part":
        (folder / "part_00002.parquet").unlink()
    else:
        shutil.rmtree(folder)
    log = Log()
    assert analyze(config(), root, SETTINGS, note=log) == pattern(done)
    assert [number for number, *_ in log.parts] == ([2] if deleted == "part" else [0, 1, 2])
    assert files(root) == files(done)


@pytest.mark.parametrize("calls", [1, 20, 60])
def test_a_stop_in_the_middle_leaves_whole_parts_only(tmp_path: Path, calls: int) -> None:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > calls

    with pytest.raises(Interrupted):
        run(tmp_path, should_stop=should_stop)
    assert len(stored(tmp_path)) == 4 * len(part_files(tmp_path / "completions/analysis"))
    assert not list(tmp_path.rglob("*.partial"))


def test_a_finished_analysis_is_summed_up_anew_without_the_model(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    for path in done.rglob("*"):
        if path.is_file():
            copy = root / path.relative_to(done)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(analyze_module, "build_sampling", None)
    half = replace(SETTINGS, summary=SummarySettings(keep_fraction=0.5, min_count=10**6))
    found = run(root, half)
    assert (found.keep_fraction, found.words_listed) == (0.5, 0)
    assert found.entropy_threshold >= found.percentiles[50]
    assert files(root) == files(done)


def test_other_settings_are_refused_and_nothing_is_lost(done: Path) -> None:
    before = files(done)
    with pytest.raises(RunError, match=r"config.evaluation.samples: 2 -> 3"):
        run(done, config=config(samples=3))
    with pytest.raises(RunError, match=r"top_k: 5 -> 2"):
        run(done, replace(SETTINGS, top_k=2))
    assert files(done) == before


def test_settings_of_a_start_that_failed_are_forgotten(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no such folder"):
        run(tmp_path, config=parse_config({"model": {"path": "./nowhere"}}))
    empty = tmp_path / "a.jsonl"
    empty.write_text('{"prompt": "n3 n5 n2 goal n16 :", "completion": "nonsense"}\n')
    with pytest.raises(Exception, match="cannot read the text"):
        run(tmp_path, AnalysisSettings(rollouts=empty))
    assert run(tmp_path, config=config(problems=1)).prompts == 1
    assert json.loads((tmp_path / "config.json").read_text())["model"]["path"] == "lab:game"


def test_a_trained_run_keeps_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"name": "mine"}')
    run(tmp_path, config=config(problems=1))
    assert (tmp_path / "config.json").read_text() == '{"name": "mine"}'


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (AnalysisSettings(summary=SummarySettings(keep_fraction=0.0)), "--keep-fraction 0 is not"),
        (
            AnalysisSettings(summary=SummarySettings(keep_fraction=1.5)),
            "--keep-fraction 1.5 is not",
        ),
        (AnalysisSettings(summary=SummarySettings(min_count=-1)), "0 at least"),
        (AnalysisSettings(top_k=-1), "0 at least"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: AnalysisSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


# ---- from files ----------------------------------------------------------------------------------


def test_its_own_completions_give_the_same_numbers(done: Path, tmp_path: Path) -> None:
    # sampled and read completions go through the same scoring
    folder = done / "completions" / "analysis"
    again = run(tmp_path, AnalysisSettings(rollouts=folder, summary=SETTINGS.summary))
    sampled = pattern(done)
    for name in ("tokens", "completions", "prompts", "accuracy", "words_listed", "task"):
        assert getattr(again, name) == getattr(sampled, name)
    for name in ("mean_entropy", "entropy_threshold"):
        assert getattr(again, name) == pytest.approx(getattr(sampled, name), abs=1e-5)
    assert again.source == str(folder.resolve())


def test_completions_of_the_run_itself_are_named_from_it(done: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    path.write_bytes((done / "completions/analysis/part_00000.parquet").read_bytes())
    assert run(tmp_path, AnalysisSettings(rollouts=path)).source == "mine.parquet"


def test_a_file_is_cut_into_parts_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analyze_module, "PART_COMPLETIONS", 2)
    path = tmp_path / "a.jsonl"
    prompt = "n3 n5 n2 goal n16 :"
    rows = [{"prompt": prompt, "completion": f"pick n{n} and"} for n in (2, 3, 5, 2, 3)]
    rows.insert(1, {"prompt": prompt, "completion": ""})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    root, settings = tmp_path / "run", AnalysisSettings(rollouts=path)
    written = []
    log = Log(after=written.append)
    with pytest.raises(Interrupted):
        analyze(config(), root, settings, note=log, should_stop=lambda: bool(written))
    log = Log()
    found = analyze(config(), root, settings, note=log)
    assert [number for number, *_ in log.parts] == [1, 2]
    assert log.notes == [f"completions without text, left out: 1 (the first: {path}, row 2)"]
    assert (found.completions, found.prompts, found.tokens) == (5, 1, 15)
    texts = [f"pick n{n} and" for n in (2, 3, 5, 2, 3)]
    assert [row.completion.text for row in stored(root)] == texts
    assert [row.sample for row in stored(root)] == [0, 1, 2, 3, 4]


def test_a_file_that_changed_is_another_source(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = json.dumps({"prompt": "n3 n5 n2 goal n16 :", "completion": "pick n3"}) + "\n"
    path.write_text(row)
    root = tmp_path / "run"
    run(root, AnalysisSettings(rollouts=path))
    path.write_text(row * 2)
    with pytest.raises(RunError, match=f"source_bytes: {len(row)} -> {2 * len(row)}"):
        run(root, AnalysisSettings(rollouts=path))
