"""Other people's files of completions, told apart by their columns and read into our tokens."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forkpoint.analysis.sources import Columns, CompletionFile
from forkpoint.errors import DataError
from forkpoint.policy.load import LoadedModel
from forkpoint.runs.completions import StoredCompletion, write_completions
from tests.conftest import EOS, VOCABULARY, NumberTokenizer, tiny_model
from tests.stored import make_completion

MODEL = tiny_model()


class Tokenizer(NumberTokenizer):
    """``n5`` is token 5; a chat is its contents, each after the token of its role."""

    bos_token_id: int | None = None
    chat_template: Any = "roles"
    roles: ClassVar = {"system": "n50", "user": "n51", "assistant": "n52"}

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        ids = super().__call__(text)["input_ids"]
        start = [self.bos_token_id] if add_special_tokens and self.bos_token_id else []
        return {"input_ids": [*start, *ids]}

    def apply_chat_template(self, messages: Sequence[dict[str, str]], **_: Any) -> str:
        words = [f"{self.roles[m['role']]} {m['content']}" for m in messages]
        return " ".join([*words, "n52"])


def load(tokenizer: Any = None) -> LoadedModel:
    return LoadedModel(model=MODEL, tokenizer=tokenizer or Tokenizer(), eos_ids=(EOS,))


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, *, tokenizer: Any = None, **columns: str) -> list[StoredCompletion]:
    return list(CompletionFile(path, Columns(**columns), load(tokenizer)))


def facts(rows: list[StoredCompletion]) -> list[tuple[Any, ...]]:
    return [
        (
            r.prompt_id,
            r.sample,
            r.prompt_token_ids,
            tuple(r.completion.token_ids.tolist()),
            r.score.verdict,
        )
        for r in rows
    ]


# ---- kinds of files ------------------------------------------------------------------------------


def test_prompt_and_completion(tmp_path: Path) -> None:
    rows = [
        {"prompt": "n5 n6", "completion": "n7 n8 n9", "reward": 1},
        {"prompt": "n4", "completion": "n7", "reward": None},
        {"prompt": "n5 n6", "completion": "n9", "reward": 0.5, "finish_reason": "length"},
    ]
    found = read(write_lines(tmp_path / "a.jsonl", rows))
    assert facts(found) == [
        ("prompt_0", 0, (5, 6), (7, 8, 9), 1.0),
        ("prompt_1", 0, (4,), (7,), None),
        ("prompt_0", 1, (5, 6), (9,), 0.5),
    ]
    assert [(r.prompt, r.completion.text, len(r.completion)) for r in found][:1] == [
        ("n5 n6", "n7 n8 n9", 3)
    ]
    assert [r.completion.finish_reason for r in found] == ["unknown", "unknown", "length"]


def test_trl_completion_logs(tmp_path: Path) -> None:
    # a parquet file: chat messages, a column per reward function, then columns of the user's
    table = {
        "step": [3, 3],
        "prompt": [[{"role": "user", "content": "n5"}], [{"role": "user", "content": "n6"}]],
        "completion": [
            [{"role": "assistant", "content": "n7 n8"}],
            [{"role": "assistant", "content": "n9"}],
        ],
        "accuracy_reward": [1.0, None],
        "format_reward": [0.0, 1.0],
        "difficulty": [7, 8],
        "advantage": [0.7, -0.7],
    }
    path = tmp_path / "completions_00003.parquet"
    pq.write_table(pa.table(table), path)
    assert facts(read(path)) == [
        ("prompt_0", 0, (51, 5, 52), (7, 8), 1.0),
        ("prompt_1", 0, (51, 6, 52), (9,), None),
    ]
    assert [r.score.verdict for r in read(path, reward="format_reward")] == [0.0, 1.0]
    assert read(path)[0].prompt == "n51 n5 n52"


def test_a_row_like_trls_without_a_reward_has_none(tmp_path: Path) -> None:
    row = {"advantage": 0.7, "prompt": "n5", "completion": "n7 n8"}
    assert [r.score.verdict for r in read(write_lines(tmp_path / "a.jsonl", [row]))] == [None]


def test_verl_dumps(tmp_path: Path) -> None:
    rows = [
        {"input": "n5", "output": "n7", "gts": "12", "score": -1.0, "step": 2},
        {"input": "n5", "output": "n8", "gts": "12", "score": 1.0, "step": 2},
    ]
    found = read(write_lines(tmp_path / "2.jsonl", rows))
    assert facts(found) == [
        ("prompt_0", 0, (5,), (7,), -1.0),
        ("prompt_0", 1, (5,), (8,), 1.0),
    ]


def test_prime_rl_results(tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "n7"}
    row = {
        "example_id": 17,
        "prompt": [{"role": "system", "content": "n3"}, {"role": "user", "content": "n5"}],
        "completion": [message],
        "reward": 0.0,
        "is_truncated": True,
        "metrics": {"solved": 0.0},
    }
    found = read(write_lines(tmp_path / "results.jsonl", [row, {**row, "is_truncated": False}]))
    assert facts(found) == [
        ("17", 0, (50, 3, 51, 5, 52), (7,), 0.0),
        ("17", 1, (50, 3, 51, 5, 52), (7,), 0.0),
    ]
    assert [r.completion.finish_reason for r in found] == ["length", "stop"]


CHAT = json.dumps([{"role": "user", "content": "n5"}])


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        ([["n5", {"until": ["n1"]}]], (5,)),
        ({"gen_args_0": {"arg_0": "n5", "arg_1": {}}}, (5,)),
        ({"gen_args_0": {"arg_0": CHAT, "arg_1": {}}}, (51, 5, 52)),
        ({"gen_args_0": {"arg_0": [CHAT], "arg_1": {}}}, (51, 5, 52)),
    ],
)
def test_lm_eval_samples(tmp_path: Path, arguments: Any, prompt: tuple[int, ...]) -> None:
    # each answer is written once per filter: strict marks the first wrong, flexible right
    row = {
        "doc_id": 4,
        "doc": {"question": "n5"},
        "arguments": arguments,
        "resps": [["n7 n8", "n9"]],
        "filtered_resps": ["n8"],
        "filter": "strict",
        "metrics": ["exact_match"],
        "exact_match": 0.0,
    }
    rows = [row, {**row, "filter": "flexible", "exact_match": 1.0}, {**row, "doc_id": 5}]
    assert facts(read(write_lines(tmp_path / "samples_x.jsonl", rows))) == [
        ("4", 0, prompt, (7, 8), 0.0),
        ("4", 1, prompt, (9,), 0.0),
        ("5", 0, prompt, (7, 8), 0.0),
        ("5", 1, prompt, (9,), 0.0),
    ]


def test_text_alone(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "n7 n8 n9"}, {"text": "n7"}])
    # something must predict the first token: a start token, or else it is the prompt itself
    assert facts(read(path)) == [
        ("prompt_0", 0, (7,), (8, 9), None),
        ("prompt_0", 1, (7,), (), None),
    ]
    started = Tokenizer()
    started.bos_token_id = 2
    assert facts(read(path, tokenizer=started))[0] == ("prompt_0", 0, (2,), (7, 8, 9), None)


def test_prompts_get_the_special_tokens_of_their_tokenizer(tmp_path: Path) -> None:
    started = Tokenizer()
    started.bos_token_id = 2
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "n5", "completion": "n7"}])
    assert facts(read(path, tokenizer=started)) == [("prompt_0", 0, (2, 5), (7,), None)]


def test_named_columns(tmp_path: Path) -> None:
    rows = [{"question": "n5", "answer": "n7", "mark": 2.0, "prompt": "n9"}]
    path = write_lines(tmp_path / "a.jsonl", rows)
    named = {"prompt": "question", "completion": "answer", "reward": "mark"}
    assert facts(read(path, **named)) == [("prompt_0", 0, (5,), (7,), 2.0)]
    # without a prompt: the text alone
    assert facts(read(path, completion="answer")) == [("prompt_0", 0, (7,), (), None)]


def rollout(*, ids: Sequence[int] = (7, 8, EOS), **fields: Any) -> StoredCompletion:
    given: dict[str, Any] = {
        "prompt_id": "sum/3",
        "prompt": "n2 n5",
        "prompt_token_ids": (2, 5),
        "text": "n7 n8",
        "reward": 0.7,
        "verdict": 1.0,
        **fields,
    }
    return make_completion(texts=[f"n{i}" for i in ids], ids=ids, **given)


def test_our_own_rollouts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train = folder / "completions" / "train"
    write_completions(train / "step_00001.parquet", [rollout(), rollout(sample=1)])
    (folder / "config.json").write_text("{}")
    later = rollout(step=2, prompt_id="sum/4", text="n7", ids=(7,), verdict=None)
    write_completions(train / "step_00002.parquet", [rollout(step=2, verdict=0.0), later])
    started = Tokenizer()
    started.bos_token_id = 2  # it stands in the stored prompt already
    found = read(folder, tokenizer=started)
    assert facts(found) == [
        ("sum/3", 0, (2, 5), (7, 8, EOS), 1.0),  # the verifier's mark, not the penalised sum
        ("sum/3", 1, (2, 5), (7, 8, EOS), 1.0),
        ("sum/3", 2, (2, 5), (7, 8, EOS), 0.0),  # a later step's sample of the same prompt
        ("sum/4", 0, (2, 5), (7,), None),
    ]
    assert {r.completion.finish_reason for r in found} == {"stop"}


def test_stored_prompt_ids_are_used(tmp_path: Path) -> None:
    row = {
        "prompt_id": "a",
        "prompt": "anything",
        "text": "n7",
        "finish_reason": "stop",
        "prompt_token_ids": [3, 4],
        "token_ids": [7],
        "pieces": None,
        "verdict": None,
    }
    assert facts(read(write_lines(tmp_path / "a.jsonl", [row]))) == [("a", 0, (3, 4), (7,), None)]


def test_a_list_of_rows_and_a_mark_at_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "n7 n8"}, {"text": "n9 n8"}]))
    assert [r.completion.text for r in read(path)] == ["n7 n8", "n9 n8"]
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": "n7 n8"}).encode() + b"\n\n")
    assert [r.completion.text for r in read(path)] == ["n7 n8"]
    for before in (b"\xef\xbb\xbf", b"\n", b"\xef\xbb\xbf \n\n "):
        path.write_bytes(before + json.dumps([{"text": "n7 n8"}], indent=1).encode())
        assert [r.completion.text for r in read(path)] == ["n7 n8"]


def test_a_folder_is_read_by_number(tmp_path: Path) -> None:
    for number in (10, 9, 2):
        write_lines(tmp_path / f"{number}.jsonl", [{"text": f"n{number} n3"}])
    (tmp_path / "notes.txt").write_text("not read")
    assert [r.completion.text for r in read(tmp_path)] == ["n2 n3", "n9 n3", "n10 n3"]


# ---- completions that are left out ---------------------------------------------------------------


def test_completions_without_text_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "n5", "completion": "n7"},
        {"prompt": "n5", "completion": None},
        {"prompt": "n5", "completion": ""},
    ]
    path = write_lines(tmp_path / "a.jsonl", rows)
    source = CompletionFile(path, Columns(), load())
    assert [r.completion.text for r in source] == ["n7"]
    assert source.without_text == [f"{path}, row 2", f"{path}, row 3"]
    assert len(list(source)) == 1
    assert len(source.without_text) == 2  # of the last reading, not of all


@pytest.mark.parametrize("parquet", [False, True])
def test_rewards_of_nan_are_none_and_counted(tmp_path: Path, parquet: bool) -> None:
    rows = [{"prompt": "n5", "completion": "n7", "reward": x} for x in (1.0, math.nan, None, 0.5)]
    path = tmp_path / ("a.parquet" if parquet else "a.jsonl")
    if parquet:
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_lines(path, rows)  # as Python's json spells it: NaN
    source = CompletionFile(path, Columns(), load())
    for _ in range(2):  # of the last reading, not of all
        assert [r.score.verdict for r in source] == [1.0, None, None, 0.5]
        assert source.notes() == [
            f"rewards that are NaN, read as none: 1 (the first: {path}, row 2)"
        ]


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "n5", "completion": "n7", "reward": 1.0},
        {"input": "n5", "output": "n7", "score": 1.0},
        {"text": "n5 n7", "reward": 1.0},
    ],
)
def test_infinite_rewards_are_refused_by_name(
    tmp_path: Path, row: dict[str, Any], value: float
) -> None:
    name = next(name for name in row if name in ("reward", "score"))
    path = write_lines(tmp_path / "a.jsonl", [row, {**row, name: value}])
    with pytest.raises(DataError, match=rf"a.jsonl, row 2: the reward is {value}; it must be"):
        read(path)


def test_infinite_rewards_of_our_own_files_are_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "step_00001.parquet"
    write_completions(path, [rollout(reward=math.inf, verdict=math.inf)])
    with pytest.raises(DataError, match="row 1: the reward is inf"):
        read(path)


def test_an_answer_that_ended_at_once_has_a_token(tmp_path: Path) -> None:
    path = tmp_path / "step_00001.parquet"
    write_completions(path, [rollout(text="", ids=(EOS,))])
    assert facts(read(path)) == [("sum/3", 0, (2, 5), (EOS,), 1.0)]


def test_no_text_at_all_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "n5", "completion": ""}] * 3)
    with pytest.raises(DataError, match=r"a.jsonl, row 1: no completion has any text"):
        read(path)


# ---- what cannot be read -------------------------------------------------------------------------

PROMPTED = {"prompt": "n5", "completion": "n7"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "n5", "solution": "n7"}, r"row 2 has no column 'completion'; it has"),
        ({**PROMPTED, "completion": 7}, r"row 2: column 'completion' holds 7, not text"),
        ({**PROMPTED, "reward": 10**400}, r"row 2: column 'reward' holds a number beyond 1e308"),
        ({**PROMPTED, "reward": "good"}, r"row 2: column 'reward' holds 'good', not a number"),
        ({**PROMPTED, "completion": "x"}, r"row 2: the tokenizer cannot read the text"),
        ({**PROMPTED, "completion": "\ud83d n7"}, r"row 2: column 'completion' is not UTF-8 text"),
        ({**PROMPTED, "prompt": [{"content": "n5"}]}, r"row 2: .* no chat message"),
        ({**PROMPTED, "completion": "n7 " * 150}, r"row 2: .* 151 tokens; .* reads at most 128"),
        (
            {**PROMPTED, "completion": [{"role": "assistant", "content": "n7"}] * 2},
            r"row 2: the completion has 2 messages",
        ),
        (
            {
                **PROMPTED,
                "completion": [
                    {"role": "assistant", "content": "n7", "reasoning_content": "n3"},
                ],
            },
            r"row 2: a message keeps its reasoning apart",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write_lines(tmp_path / "a.jsonl", [PROMPTED, row]))
    assert "\n" not in str(caught.value)


def test_unknown_columns_are_listed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"question": "n5", "solution": "n7"}])
    with pytest.raises(
        DataError, match=r"columns question, solution; name them by --prompt-column"
    ):
        read(path)
    with pytest.raises(DataError, match=r"row 1 has no column 'answer'; it has question, solution"):
        read(path, completion="answer")


def test_likelihoods_are_no_completions(tmp_path: Path) -> None:
    row = {"doc_id": 0, "arguments": [["n5", " n7"]], "resps": [[[-1.5, False]]]}
    with pytest.raises(DataError, match=r"row 1: resps holds .* only compares likelihoods"):
        read(write_lines(tmp_path / "a.jsonl", [row]))
    row = {"doc_id": 0, "arguments": {}, "resps": [["n7"]]}
    with pytest.raises(DataError, match=r"row 1: arguments holds no context"):
        read(write_lines(tmp_path / "a.jsonl", [row]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"ids": (7, 9)},
            r"does not match the stored ids: they decode to 'n7 n9', .*'n7 n8'",
        ),
        (
            {"ids": (7, VOCABULARY)},
            rf"{VOCABULARY} is none of the model's {VOCABULARY} tokens",
        ),
        ({"ids": (7, -1)}, r"-1 is none of the model's"),
    ],
)
def test_ids_of_another_tokenizer_are_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = tmp_path / "step_00001.parquet"
    write_completions(path, [rollout(), rollout(**fields)])
    with pytest.raises(DataError, match=rf"row 2: .*{message}"):
        read(path)


def test_ids_may_spell_out_special_tokens(tmp_path: Path) -> None:
    path = tmp_path / "step_00001.parquet"
    write_completions(path, [rollout(text=f"n7 n8 n{EOS}")])
    assert facts(read(path))[0][3] == (7, 8, EOS)


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    base = Tokenizer()
    base.chat_template = None
    row = {"prompt": [{"role": "user", "content": "n5"}], "completion": "n7"}
    path = write_lines(tmp_path / "a.jsonl", [row])
    with pytest.raises(Exception, match="the tokenizer has none"):
        read(path, tokenizer=base)


def test_rows_of_the_same_prompt_stay_one_prompt_through_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["n5"] * 200, "completion": ["n7"] * 200}), path)
    found = read(path)
    assert [r.sample for r in found] == list(range(200))
    last = replace(found[-1], sample=0)
    assert (found[0].prompt_token_ids, found[0].completion) == (
        last.prompt_token_ids,
        last.completion,
    )


def test_a_reason_to_finish_that_nobody_knows_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_completions(path, [rollout()])
    (row,) = pq.read_table(path).to_pylist()
    (tmp_path / "b.jsonl").write_text(json.dumps({**row, "finish_reason": "zzz"}) + "\n")
    with pytest.raises(DataError, match=r"row 1: column 'finish_reason' holds 'zzz', not one of"):
        read(tmp_path / "b.jsonl")
