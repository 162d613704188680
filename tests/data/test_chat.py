"""Loss masks from the rendered template: exactly the turns that are asked for."""

import pytest

from mlxfn.data.encode import encode
from mlxfn.data.formats import Chat
from mlxfn.errors import DataError
from tests.data.helpers import assistant, learned, user
from tests.support.tokenizers import CHATML, chatml, shared, wrapped

TURNS = (user("What is two?"), assistant("The answer is 4"), user("Hello"), assistant("I am fine"))


def learned_of(style, messages, loss_on, **options):
    tokenizer = wrapped(style)
    row = encode(Chat("train.jsonl:3", tuple(messages), **options), tokenizer, loss_on=loss_on)
    return learned(row, tokenizer)


@pytest.mark.parametrize(
    ("style", "end"),
    [("chatml", "<|im_end|>\n"), ("llama", "<|eot_id|>"), ("generation", "<|im_end|>")],
)
def test_exactly_the_assistant_turns_are_learned_with_their_ends(style, end):
    """One token too many teaches the user's part, one too few never teaches to stop."""
    assert learned_of(style, TURNS, "completion") == [f"I am fine{end}"]
    assert learned_of(style, TURNS, "assistant") == [f"The answer is 4{end}", f"I am fine{end}"]
    assert learned_of(style, TURNS[:3], "completion") == [f"The answer is 4{end}"]


@pytest.mark.parametrize("style", ["chatml", "llama", "thinking", "generation"])
def test_all_learns_everything_the_template_writes(style):
    """Up to the first token, which nothing predicts."""
    tokenizer = wrapped(style)
    row = encode(Chat("x:1", TURNS), tokenizer, loss_on="all")
    text = tokenizer.apply_chat_template(list(TURNS), tokenize=False)
    assert tokenizer.decode([*row.tokens[:1], *row.labels]) == text
    assert (row.labels != -100).all()


@pytest.mark.parametrize("style", ["chatml", "generation"])
def test_only_the_completion_of_a_prompt_with_turns_is_learned(style):
    """The assistant turns of the prompt are examples that were given, not targets."""
    got = learned_of(style, TURNS, "completion", first_target=1)
    assert [part.strip() for part in got] == ["The answer is 4<|im_end|>", "I am fine<|im_end|>"]
    got = learned_of(style, TURNS, "completion", first_target=2)
    assert [part.strip() for part in got] == ["I am fine<|im_end|>"]


def test_tools_are_rendered_and_calls_are_learned():
    """A model that is to call tools learns the call, not the schema."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    chat = Chat("x:1", (user("hi"), call), tools=({"name": "f"},))
    tokenizer = wrapped("chatml")
    row = encode(chat, tokenizer)
    assert tokenizer.decode(row.tokens).startswith('<|im_start|>system\nTools: [{"name": "f"}]')
    assert learned(row, tokenizer) == ['<tool_call>[{"name": "f"}]</tool_call><|im_end|>\n']


def test_reasoning_that_only_the_last_turn_shows_does_not_shift_the_mask():
    """Qwen3's template drops earlier reasoning, so a turn alone is no prefix of the whole."""
    turns = (
        user("2?"),
        assistant("<think>\nhm\n</think>\n\nfour"),
        user("Hello"),
        assistant("fine"),
    )
    expected = ["four<|im_end|>\n", "<think>\n\n</think>\n\nfine<|im_end|>\n"]
    assert learned_of("thinking", turns, "assistant") == expected


def test_a_turn_begins_before_a_thinking_tag_that_only_the_prompt_has():
    """DeepSeek-R1 and QwQ open <think> to generate, and write an answer without it."""
    expected = ["The answer is 4<|im_end|>\n", "I am fine<|im_end|>\n"]
    assert learned_of("forced_thinking", TURNS, "assistant") == expected
    assert learned_of("forced_thinking", TURNS, "completion") == expected[1:]


def test_a_thinking_tag_that_the_turn_has_too_is_not_learned():
    """The prompt ends after it: the model is given the tag and learns what follows."""
    turns = (user("2?"), assistant("<think>\nhm\n</think>\n\nfour"))
    expected = ["hm\n</think>\n\nfour<|im_end|>\n"]
    assert learned_of("forced_thinking", turns, "completion") == expected


def test_a_block_of_reasoning_that_the_prompt_closes_is_left_out_of_earlier_turns():
    """Qwen3 without thinking: the prompt holds an empty block, an earlier turn holds none."""
    template = CHATML.replace(
        "{{- '<|im_start|>assistant\\n' }}",
        "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}",
    )
    assert template != CHATML
    tokenizer = chatml(template)
    row = encode(Chat("x:1", TURNS), tokenizer, loss_on="assistant")
    assert learned(row, tokenizer) == ["The answer is 4<|im_end|>\n", "I am fine<|im_end|>\n"]


def test_reasoning_that_the_template_drops_from_earlier_turns_is_not_searched_for():
    """R1's template: <think> opened to generate, and reasoning kept out of the history."""
    template = (
        "{%- for m in messages %}{%- set c = m.content %}"
        "{%- if m.role == 'assistant' and '</think>' in c and not loop.last %}"
        "{%- set c = c.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{{- '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
    )
    tokenizer = chatml(template)
    thought = assistant("<think>\nhm\n</think>\n\nfour")
    row = encode(Chat("x:1", (user("2?"), thought, user("3?"), thought)), tokenizer,
                 loss_on="assistant")  # fmt: skip
    expected = ["four<|im_end|>\n", "hm\n</think>\n\nfour<|im_end|>\n"]
    assert learned(row, tokenizer) == expected


def test_a_prompt_that_is_no_prefix_of_the_whole_is_refused():
    """The length of a separately rendered prompt would cut the answer at the wrong token."""
    template = CHATML.replace(
        "{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\nSure: ' }}"
    )
    assert template != CHATML
    tokenizer = chatml(template)
    with pytest.raises(DataError, match="differently when more follows") as caught:
        encode(Chat("train.jsonl:3", TURNS[:2]), tokenizer)
    assert caught.value.where == "train.jsonl:3, message 1"
    whole = tokenizer.apply_chat_template(list(TURNS[:2]), tokenize=False)
    prompt = tokenizer.apply_chat_template(
        list(TURNS[:1]), tokenize=False, add_generation_prompt=True
    )
    ours, theirs = (tokenizer.encode(text) for text in (whole, prompt))
    index = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    assert f"token {index} is {ours[index]} " in str(caught.value.got)
    assert str(caught.value.expected).startswith(f"{theirs[index]} ")


def test_a_text_that_ends_with_an_eos_of_its_own_marks_earlier_turns_too():
    """Phi-3's template closes the whole text, not each turn, with EOS."""
    template = CHATML.replace(
        "{%- if add_generation_prompt %}",
        "{%- if not add_generation_prompt %}<|endoftext|>{% else %}",
    )
    tokenizer = chatml(template)
    tokenizer.eos_token = "<|endoftext|>"  # noqa: S105 - a token of text
    row = encode(Chat("x:1", TURNS), tokenizer, loss_on="assistant")
    expected = ["The answer is 4<|im_end|>\n", "I am fine<|im_end|>\n<|endoftext|>"]
    assert learned(row, tokenizer) == expected


def test_an_end_is_added_where_the_template_writes_none():
    """GLM ends a turn by the next one's header: the last turn would never learn to stop."""
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content }}{%- endfor %}"
    )
    template += "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    tokenizer = chatml(template)
    row = encode(Chat("x:1", TURNS), tokenizer)
    assert learned(row, tokenizer) == ["I am fine<|im_end|>"]


def test_a_template_that_asks_the_clock_renders_one_date():
    """The same rows must give the same tokens tomorrow, or a run cannot be resumed."""
    template = (
        "{%- if date_string is not defined %}{%- set date_string = strftime_now('%d %b %Y %f') %}"
        "{%- endif %}{{- date_string }}" + CHATML
    )
    row = encode(Chat("x:1", TURNS), chatml(template))
    assert shared("chatml").decode(row.tokens).startswith("26 Jul 2024<|im_start|>")


@pytest.mark.parametrize(
    ("messages", "style", "what"),
    [
        (TURNS, "plain", "no chat template"),
        (
            ({"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"x": 1}]}),
            "chatml",
            "refuses the conversation",
        ),
        (TURNS[1:], "chatml", "begins with an assistant turn"),
    ],
)
def test_a_conversation_that_cannot_be_rendered_is_named(messages, style, what):
    """Templates raise whatever they like; the user sees the row."""
    with pytest.raises(DataError, match=what) as caught:
        encode(Chat("train.jsonl:3", tuple(messages)), wrapped(style), loss_on="assistant")
    assert str(caught.value.where).startswith("train.jsonl:3")


def test_a_conversation_without_an_assistant_has_nothing_to_learn():
    """It is dropped, as any row without a target."""
    for style in ("chatml", "generation"):
        assert encode(Chat("x:1", TURNS[:1]), wrapped(style), loss_on="assistant") is None
