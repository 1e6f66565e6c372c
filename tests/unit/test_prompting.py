"""From a problem to tokens: plain text, chat, and the prompts that are refused."""

from typing import Any

import pytest
import transformers

from forkpoint.errors import ConfigError, DataError, ModelError
from forkpoint.lab import GameWorld
from forkpoint.lab.base_policy import build_tokenizer
from forkpoint.policy.body import context_length
from forkpoint.sampling.prompting import Prompter
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
    return build_tokenizer(GameWorld())


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


@pytest.mark.parametrize("new", [1, 3])
def test_a_prompt_must_leave_room_for_an_answer(new: int) -> None:
    prompter = Prompter(NumberTokenizer(), max_positions=3 + new, max_new_tokens=new)
    assert prompter(Problem(id="short", prompt="n5 n6 n7")).token_ids == (5, 6, 7)
    with pytest.raises(DataError) as caught:
        prompter(Problem(id="long", prompt="n5 n6 n7 n8"))
    assert str(caught.value) == (
        f"the prompt of problem 'long' has 4 tokens, and an answer may have {new}; the model reads "
        f"at most {3 + new} together: lower rollout.max_new_tokens, or leave the problem out"
    )
    assert len(Prompter(NumberTokenizer())(Problem(id="p", prompt="n5 " * 500)).token_ids) == 500


def test_an_answer_that_leaves_no_room_for_any_prompt() -> None:
    with pytest.raises(ConfigError, match=r"max_new_tokens = 4 leaves no room .* at most 4 tokens"):
        Prompter(NumberTokenizer(), max_positions=4, max_new_tokens=4)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.GPT2Config(n_positions=64), 64),
        (transformers.OPTConfig(max_position_embeddings=96), 96),
        (transformers.Qwen3Config(max_position_embeddings=128), 128),
        (transformers.BloomConfig(), None),
        (
            transformers.Qwen3Config(
                max_position_embeddings=128,
                rope_parameters={
                    "rope_type": "yarn",
                    "rope_theta": 1e6,
                    "factor": 4.0,
                    "original_max_position_embeddings": 128,
                },
            ),
            512,
        ),
        (
            transformers.LlamaConfig(
                max_position_embeddings=1024,
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 1e6,
                    "factor": 4.0,
                    "original_max_position_embeddings": 128,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                },
            ),
            1024,
        ),
    ],
    ids=["learned", "learned with an offset", "rotary", "none", "yarn", "llama3"],
)
def test_what_a_model_reads(config: Any, expected: int | None) -> None:
    class Model:
        def __init__(self, config: Any) -> None:
            self.config = config

    assert context_length(Model(config)) == expected


@pytest.mark.parametrize("text", ["n3 unheard n5", "n3 \x1b]0;owned\x07"])
def test_text_that_the_tokenizer_cannot_encode(tokenizer: Any, text: str) -> None:
    with pytest.raises(DataError) as caught:
        Prompter(tokenizer)(Problem(id="row\x1b7", prompt=text))
    message = str(caught.value)
    assert message.startswith("the prompt of problem 'row\\x1b7' cannot be encoded by the model's")
    assert message.endswith(f"Missing [UNK] token from the vocabulary; it is {text!r}")
    assert message.isprintable()
    tokenizer.chat_template = CHAT_TEMPLATE
    with pytest.raises(DataError, match="'chat/1' cannot be encoded"):
        Prompter(tokenizer)(chat(text))


def test_a_chat_that_the_template_refuses_is_named(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"'chat/1' cannot be encoded .*: roles must alternate; it"):
        Prompter(tokenizer)(chat("n3"))


def test_a_long_text_is_shortened(tokenizer: Any) -> None:
    with pytest.raises(DataError) as caught:
        Prompter(tokenizer)(Problem(id="p", prompt="unheard " * 1000))
    assert len(str(caught.value)) < 400
