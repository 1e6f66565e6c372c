"""From a problem to tokens: plain text, chat, and the prompts that are refused."""

from typing import Any

import pytest

from forkpoint.errors import DataError, ModelError
from forkpoint.lab import LabWorld
from forkpoint.lab.tokenizer import build_tokenizer
from forkpoint.rollouts.prompting import Prompter
from forkpoint.types import Problem
from tests.conftest import NumberTokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}| {% endif %}"
)


def chat(*contents: str) -> Problem:
    """Roles are words that the laboratory's tokenizer knows."""
    messages = tuple({"role": "goal", "content": content} for content in contents)
    return Problem(id="chat/1", prompt=messages)


@pytest.fixture
def tokenizer() -> Any:
    return build_tokenizer(LabWorld())


def test_text_is_tokenized_as_it_is(tokenizer: Any) -> None:
    problem = Problem(id="p", prompt="n3 n5 goal n8 :")
    prompt = Prompter(tokenizer)(problem)
    assert prompt.problem is problem
    assert tokenizer.convert_ids_to_tokens(prompt.token_ids) == ["n3", "n5", "goal", "n8", ":"]


def test_a_chat_goes_through_the_template_and_asks_for_an_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE
    prompt = Prompter(tokenizer)(chat("n3 n5", "n8"))
    words = tokenizer.convert_ids_to_tokens(prompt.token_ids)
    assert words == ["goal", "n3", "n5", "goal", "n8", "|"]


def test_the_template_writes_the_special_tokens_and_no_one_else() -> None:
    class Opening:
        """A tokenizer that puts a first token of its own before every text."""

        chat_template = CHAT_TEMPLATE

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            ids = [len(word) for word in text.split()]
            return {"input_ids": [99, *ids] if add_special_tokens else ids}

        def apply_chat_template(self, messages: list[dict[str, str]], **settings: bool) -> str:
            assert settings == {"tokenize": False, "add_generation_prompt": True}
            return " ".join(m["content"] for m in messages)

    assert Prompter(Opening())(chat("a bb")).token_ids == (1, 2)
    assert Prompter(Opening())(Problem(id="p", prompt="a bb")).token_ids == (99, 1, 2)


@pytest.mark.parametrize("template", [None, "absent"])
def test_a_chat_without_a_template_is_refused(template: str | None) -> None:
    tokenizer = NumberTokenizer()
    if template == "absent":
        tokenizer = object()
    with pytest.raises(ModelError, match=r"set task\.chat = false, or use an instruction-tuned"):
        Prompter(tokenizer)(chat("n3"))


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_refused_by_its_id(text: str) -> None:
    with pytest.raises(DataError, match="'lab/7' has no tokens"):
        Prompter(NumberTokenizer())(Problem(id="lab/7", prompt=text))


def test_a_prompt_must_leave_room_for_an_answer() -> None:
    prompter = Prompter(NumberTokenizer(), max_positions=4)
    assert prompter(Problem(id="short", prompt="n5 n6 n7")).token_ids == (5, 6, 7)
    with pytest.raises(DataError, match="'long' has 4 tokens; the model reads at most 4"):
        prompter(Problem(id="long", prompt="n5 n6 n7 n8"))
    assert len(Prompter(NumberTokenizer())(Problem(id="p", prompt="n5 " * 500)).token_ids) == 500
