"""Problems from files: every row and column, in a new order every epoch, and errors in words."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkpoint.config import parse_config
from forkpoint.config.stages import DataTaskConfig
from forkpoint.errors import ConfigError, DataError
from forkpoint.tasks import build_task
from forkpoint.tasks import data as module
from forkpoint.tasks.data import DataTask, held_out_source, read_rows
from forkpoint.types import Problem

ROWS: list[dict[str, Any]] = [
    {"prompt": "1 + 1", "answer": 2, "source": {"book": "A", "pages": [3, 4]}},
    {"prompt": "größer als π?", "answer": 4, "source": {"book": "B", "pages": []}},
    {"prompt": "zwei\nZeilen\u2028", "answer": None, "source": {"book": "C", "pages": [5]}},
]


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def data(path: Path | str, **settings: Any) -> DataTask:
    config = {"chat": False, **settings, "type": "data", "path": str(path)}
    return DataTask(DataTaskConfig.model_validate(config))


def one_epoch(task: DataTask, rows: int, epoch: int = 0) -> list[Problem]:
    return [task.problem(serial) for serial in range(epoch * rows, (epoch + 1) * rows)]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_rows_come_back_with_every_column(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        write_lines(path, *ROWS)
    problems = sorted(one_epoch(data(path), 3), key=lambda p: p.id)
    for index, (problem, row) in enumerate(zip(problems, ROWS, strict=True)):
        assert problem.id == str(index)
        assert problem.prompt == row["prompt"]
        assert dict(problem.columns) == {"answer": row["answer"], "source": row["source"]}
    assert data(path).columns == {"prompt", "answer", "source"}


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 12), seed=st.integers(0, 1000))
def test_epochs_are_permutations(
    rows: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    task = data(write_lines(path, *({"prompt": f"q{i}"} for i in range(rows))), seed=seed)
    for epoch in range(3):
        ids = [int(problem.id) for problem in one_epoch(task, rows, epoch)]
        assert sorted(ids) == list(range(rows))


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", *({"prompt": f"q{i}"} for i in range(20)))
    orders = [
        [p.id for p in one_epoch(data(path, seed=seed), 20, epoch)]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(set(map(tuple, orders))) == 3
    assert orders[0] == [p.id for p in one_epoch(data(path, seed=0), 20)]


def test_ids_of_the_users_own(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "a", "name": 17})
    problem = data(path, id_column="name").problem(0)
    assert problem.id == "17"
    assert problem.columns == {"name": 17}


@pytest.mark.parametrize("key", ["prompt_column", "id_column"])
def test_missing_column_names_the_nearest(key: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "a", "question": "b"})
    with pytest.raises(DataError) as caught:
        data(path, **{key: "questoin"})
    assert str(caught.value) == (
        f"{path} has no column 'questoin' (task.{key}); it has prompt, question; "
        "did you mean 'question'?"
    )


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_missing_file_names_the_nearest(suffix: str, tmp_path: Path) -> None:
    near = tmp_path / f"train.{suffix}"
    near.touch()
    with pytest.raises(DataError, match=f"there is no such file; did you mean {near}\\?$"):
        data(tmp_path / f"trian.{suffix}")
    with pytest.raises(DataError, match=r"there is no such file$"):
        data(tmp_path / "nowhere" / f"x.{suffix}")


def test_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "rows.jsonl", {"prompt": "a"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data("~/rows.jsonl").problem(0).prompt == "a"


def test_broken_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b"\n')
    with pytest.raises(DataError, match=f"{path}, row 3 is not JSON: "):
        data(path)
    path.write_text('{"prompt": "a"}\n' + "[" * 200_000)
    with pytest.raises(DataError, match=f"{path}, row 2 is not JSON: "):
        data(path)


@pytest.mark.parametrize("line", [[{"prompt": "a"}] * 1000, "text", 3, None])
def test_line_that_is_no_object(line: Any, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "a"}, line)
    with pytest.raises(DataError, match="row 2 is not an object with columns but ") as caught:
        data(path)
    assert len(str(caught.value)) < 300  # a whole file on one line is not printed


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"prompt": "größer"}'.encode("latin-1"))
    with pytest.raises(DataError, match=f"{path}, row 1 is not UTF-8 text: "):
        data(path)


def test_byte_order_mark_is_not_data(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "größer"}\r\n', encoding="utf-8-sig")
    assert data(path).problem(0).prompt == "größer"


def test_empty_files(tmp_path: Path) -> None:
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text("\n \n")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), table)
    for path in (lines, table):
        with pytest.raises(DataError, match=f"{path} has no rows"):
            data(path)


def test_file_that_is_no_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=f"{path} cannot be read as parquet: "):
        data(path)


@pytest.mark.parametrize("name", ["rows.csv", "./rows", "/rows.txt", "~/rows"])
def test_other_formats_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").touch()
    with pytest.raises(
        DataError, match=r"expected a \.jsonl or \.parquet file, or the id of a hub"
    ):
        data(name)


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        "",
        3,
        [],
        ["text"],
        {"role": "user", "content": "a"},
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        [{"role": "user", "content": "a"}, "text"],
    ],
)
def test_prompt_of_the_wrong_type_is_named_by_its_row(prompt: Any, tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", {"prompt": "a"})
    path = write_lines(tmp_path / "held_out.jsonl", {"prompt": "a"}, {"prompt": prompt})
    task = data(train, eval_path=str(path))
    with pytest.raises(DataError) as caught:
        task.held_out(2, seed=0)
    assert str(caught.value).startswith(f"{path}, row 1: column 'prompt' holds {prompt!r}; expec")


def test_later_row_without_a_prompt(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "a"}, {"answer": "b"})
    with pytest.raises(DataError, match="row 1: column 'prompt' holds None; expected text"):
        one_epoch(data(path), 2)


def test_chats_are_passed_on(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1"}]
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": [{**m, "name": "x"} for m in messages]})
    task = data(path, template="never {prompt}", chat=True)
    assert task.problem(0).prompt == tuple(messages)


def test_template_and_instruction(tmp_path: Path) -> None:
    # a prompt that looks like a place of the template is text like any other
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "{instruction} \\1 {prompt}"})
    filled = {"template": "Q: {prompt}\n{instruction}\nA: {x}", "instruction": "Think {prompt}."}
    text = "Q: {instruction} \\1 {prompt}\nThink {prompt}.\nA: {x}"
    assert data(path, **filled).problem(0).prompt == text
    chat = data(path, **filled, chat=True)
    assert chat.problem(0).prompt == ({"role": "user", "content": text},)


def test_template_that_drops_what_it_is_for(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "a"})
    with pytest.raises(ConfigError, match=r"task.template = 'Q: ' has no place for the {prompt}"):
        data(path, template="Q: ")
    with pytest.raises(ConfigError, match=r"no place for the {instruction}, which is 'Think.'"):
        data(path, template="{prompt}", instruction="Think.")


def test_broken_surrogates_are_replaced(tmp_path: Path) -> None:
    # JSON can spell half of a surrogate pair, which no tokenizer takes
    path = tmp_path / "rows.jsonl"
    message = '{"role": "user", "content": "\\ude00 \\ud83d\\ude00"}'
    path.write_text('{"prompt": "a\\ud83d b"}\n{"prompt": [' + message + "]}")
    prompts = {p.id: p.prompt for p in one_epoch(data(path), 2)}
    assert prompts == {"0": "a\ufffd b", "1": ({"role": "user", "content": "\ufffd \U0001f600"},)}


def test_held_out_problems_are_the_first_of_their_file(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", {"prompt": "train", "answer": 0})
    path = write_lines(
        tmp_path / "eval.jsonl", *({"prompt": f"q{i}", "answer": i} for i in range(4))
    )
    task = data(train, eval_path=str(path))
    found = task.held_out(3, seed=9)
    assert [(p.id, p.prompt, p.columns["answer"]) for p in found] == [
        ("0", "q0", 0),
        ("1", "q1", 1),
        ("2", "q2", 2),
    ]
    assert len(task.held_out(100, seed=9)) == 4


def test_no_held_out_problems(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", {"prompt": "a"})
    with pytest.raises(
        DataError, match=r"name some with task.eval_path, or set evaluation.every = 0"
    ):
        data(path).held_out(1, seed=0)
    other = write_lines(tmp_path / "eval.jsonl", {"question": "a"})
    with pytest.raises(DataError, match=f"{other} has no column 'prompt' \\(task.prompt_column\\)"):
        data(path, eval_path=str(other)).held_out(1, seed=0)


def test_the_training_file_cannot_be_held_out(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "a"}, {"prompt": "b"})
    (tmp_path / "link.jsonl").symlink_to(path)
    (tmp_path / "hard.jsonl").hardlink_to(path)
    for name in ("rows", "link", "hard"):
        with pytest.raises(ConfigError, match=r"are the same file, .*cannot be held out"):
            data(path, eval_path=str(tmp_path / f"{name}.jsonl"))
    copy = write_lines(tmp_path / "copy.jsonl", {"prompt": "b"}, {"prompt": "b", "x": 1})
    with pytest.raises(DataError, match=r"every prompt of task.eval_path = .* is one of task.path"):
        data(path, eval_path=str(copy))


@pytest.mark.parametrize(
    ("ids", "fault"),
    [(["7", "8", 7], "rows 0 and 2: column 'id', task.id_column, holds 7 in both"),
     (["7", None, "9"], "row 1: column 'id', task.id_column, is empty")],
)  # fmt: skip
def test_held_out_problems_need_ids_of_their_own(
    ids: list[Any], fault: str, tmp_path: Path
) -> None:
    train = write_lines(tmp_path / "train.jsonl", {"prompt": "a", "id": 1})
    rows = ({"prompt": f"b{n}", "id": one} for n, one in enumerate(ids))
    path = write_lines(tmp_path / "eval.jsonl", *rows)
    with pytest.raises(DataError, match=fault):
        data(train, eval_path=str(path), id_column="id")


def test_prompts_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a"}]
    train = write_lines(tmp_path / "train.jsonl", {"prompt": "a"}, {"prompt": chat, "id": 1})
    path = write_lines(tmp_path / "eval.jsonl", *({"prompt": p} for p in ("b", chat, chat, "A")))
    assert data(train, eval_path=str(path)).notes == (
        "1 of 3 held-out prompts are trained on as well: the accuracy on them is not of unseen "
        "problems",
    )
    apart = write_lines(tmp_path / "apart.jsonl", {"prompt": "b"})
    assert data(train, eval_path=str(apart)).notes == data(train).notes == ()


HUB = {"path": "a/b", "eval_path": "a/b"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (HUB, ("a/b", None, "test")),
        ({**HUB, "subset": "main"}, ("a/b", "main", "test")),
        ({**HUB, "subset": "main", "eval_subset": "hard"}, ("a/b", "hard", "test")),
        ({**HUB, "eval_split": "validation"}, ("a/b", None, "validation")),
        (
            {**HUB, "split": "train[:90%]", "eval_split": "train[90%:]"},
            ("a/b", None, "train[90%:]"),
        ),
        ({**HUB, "eval_path": "c/d", "subset": "main"}, ("c/d", None, "test")),
        ({**HUB, "eval_path": "c/d", "eval_split": "train"}, ("c/d", None, "train")),
        ({"path": "a/b"}, None),
    ],
)
def test_held_out_rows_of_the_hub(settings: dict[str, str], expected: tuple[Any, ...]) -> None:
    assert held_out_source(DataTaskConfig.model_validate({"type": "data", **settings})) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {**HUB, "eval_split": "train"},
            "the same rows, split 'train' of a/b: .*eval_split",
        ),
        ({**HUB, "split": "test"}, "are the same rows, split 'test'"),
        ({**HUB, "subset": "x", "eval_subset": "x", "eval_split": "train"}, "are the same rows"),
        ({"path": "a/b", "eval_split": "test"}, "are read with task.eval_path"),
    ],
)
def test_held_out_rows_that_cannot_be(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        held_out_source(DataTaskConfig.model_validate({"type": "data", **settings}))


def test_held_out_rows_are_read_from_their_own_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, subset: str | None, split: str) -> Any:
        return datasets.Dataset.from_list([{"prompt": f"{name} {subset} {split}"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = data("openai/gsm8k", subset="main", eval_path="openai/gsm8k")
    assert task.problem(0).prompt == "openai/gsm8k main train"
    assert task.held_out(1, seed=0)[0].prompt == "openai/gsm8k main test"


def test_an_epoch_is_shuffled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, original = [], module.stream

    def counting(*arguments: Any) -> Any:
        drawn.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(module, "stream", counting)
    task = data(write_lines(tmp_path / "rows.jsonl", *({"prompt": f"q{i}"} for i in range(9))))
    ordered = [task.problem(serial).prompt for serial in (*range(27), *range(27))]
    assert ordered[:27] == ordered[27:]
    assert len(drawn) == 6  # three epochs, twice


def test_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"'openai/gsm8k' .*: pip install 'forkpoint\[hub\]'"):
        data("openai/gsm8k")


def test_hub_rows_and_its_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, subset: str | None, split: str) -> Any:
        asked.append((name, subset, split))
        if subset == "absent":
            raise RuntimeError("no such subset")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_rows("openai/gsm8k", "main", "train") == ROWS
    assert asked == [("openai/gsm8k", "main", "train")]
    with pytest.raises(
        DataError, match="'openai/gsm8k': the hub data set cannot be loaded: no such"
    ):
        read_rows("openai/gsm8k", "absent", "train")


def test_a_recipe_names_the_task(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "a"})
    config = parse_config({"task": {"type": "data", "path": str(path)}}).task
    assert isinstance(build_task(config), DataTask)
