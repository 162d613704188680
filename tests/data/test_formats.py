"""The row formats: how one is recognised, and that every row is held to it."""

import json

import pytest

from mlxfn.data.formats import Chat, Completion, Ids, Text, parse_rows
from mlxfn.data.record import Record
from mlxfn.errors import ConfigError, DataError
from tests.data.helpers import assistant, user

CHAT = [user("hi"), assistant("hello")]
TOOL = {"type": "function", "function": {"name": "f"}}


def one(value, **options):
    return next(parse_rows([Record(value, "train.jsonl", 7)], **options))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"text": "a"}, Text("train.jsonl:7", "a")),
        ({"prompt": "a", "completion": "b"}, Completion("train.jsonl:7", "a", "b")),
        ({"messages": CHAT}, Chat("train.jsonl:7", tuple(CHAT))),
        ({"messages": CHAT, "tools": [TOOL]}, Chat("train.jsonl:7", tuple(CHAT), (TOOL,))),
        (
            {"messages": CHAT, "tools": json.dumps([TOOL])},
            Chat("train.jsonl:7", tuple(CHAT), (TOOL,)),
        ),
        ({"messages": CHAT, "tools": []}, Chat("train.jsonl:7", tuple(CHAT))),
        ({"messages": None, "text": "a"}, Text("train.jsonl:7", "a")),
        (
            {"prompt": [user("hi")], "completion": [assistant("hello")]},
            Chat("train.jsonl:7", tuple(CHAT), first_target=1),
        ),
        (
            {"prompt": "hi", "completion": [assistant("hello")]},
            Chat("train.jsonl:7", tuple(CHAT), first_target=1),
        ),
    ],
)
def test_a_row_is_recognised_by_its_columns(value, expected):
    """Nobody should have to say what can be seen."""
    assert one(value) == expected


def test_tokenized_rows_keep_their_labels():
    """Labels of tokenized rows follow Hugging Face's convention: not shifted, -100 ignored."""
    row = one({"input_ids": [1, 2, 3], "labels": [-100, -100, 3], "attention_mask": [1, 1, 1]})
    assert isinstance(row, Ids)
    assert (row.ids.tolist(), row.labels.tolist()) == ([1, 2, 3], [-100, -100, 3])
    assert one({"input_ids": [1, 2]}).labels.tolist() == [1, 2]


def test_columns_can_have_other_names():
    """Public data sets name them as they like."""
    columns = {"prompt": "question", "completion": "answer"}
    row = one({"question": "a", "answer": "b", "text": "both"}, columns=columns)
    assert row == Completion("train.jsonl:7", "a", "b")
    # A renamed column says which format is meant where the row could be of two.
    row = one({"prompt": "a", "completion": "b", "body": "c"}, columns={"text": "body"})
    assert row == Text("train.jsonl:7", "c")


def test_an_unknown_column_role_is_refused_with_the_nearest_name():
    """A typo must not be ignored: the renaming would silently do nothing."""
    with pytest.raises(ConfigError, match="'completion'"):
        one({"text": "a"}, columns={"completions": "answer"})


def test_a_row_of_another_format_is_named():
    """Every row is checked, not only the first."""
    records = [Record({"text": "a"}, "f.jsonl", 1), Record({"prompt": "x"}, "f.jsonl", 2)]
    with pytest.raises(DataError) as caught:
        list(parse_rows(records))
    assert caught.value.where == "f.jsonl:2"
    assert "no 'text'" in caught.value.what
    assert "f.jsonl:1" in str(caught.value.expected)


def test_each_file_has_its_own_format():
    """A folder may hold chats beside plain text."""
    records = [Record({"text": "a"}, "a.jsonl", 1), Record({"messages": CHAT}, "b.jsonl", 1)]
    assert [type(row) for row in parse_rows(records)] == [Text, Chat]


def test_a_given_format_is_not_guessed():
    """A row with several columns is what the configuration says."""
    value = {"text": "a", "prompt": "b", "completion": "c"}
    assert isinstance(one(value, fmt="text"), Text)
    assert isinstance(one(value), Completion)
    with pytest.raises(DataError, match="no 'messages'"):
        one(value, fmt="messages")


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"question": "a", "answer": "b"},
        {"text": 3},
        {"prompt": 1, "completion": "a"},
        {"prompt": "a", "completion": {"role": "assistant"}},
        {"messages": []},
        {"messages": "hi"},
        {"messages": ["hi"]},
        {"messages": [{"content": "a"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": CHAT, "tools": "{"},
        {"messages": CHAT, "tools": [3]},
        {"messages": CHAT, "tools": {"name": "f"}},
        {"input_ids": "1 2"},
        {"input_ids": [1.5]},
        {"input_ids": [True]},
        {"input_ids": [[1], [2]]},
        {"input_ids": [[1], [2, 3]]},
        {"input_ids": [1, -1]},
        {"input_ids": [2**31]},
        {"input_ids": [2**70]},
        {"input_ids": [1, 2], "labels": [1]},
        {"input_ids": [1, 2], "labels": [1, -1]},
        {"input_ids": [1, None]},
    ],
    ids=repr,
)
def test_a_row_of_a_wrong_form_is_a_data_error_with_its_place(value):
    """Whatever stands in a column, the answer is one message, never a traceback."""
    with pytest.raises(DataError) as caught:
        one(value)
    assert caught.value.where == "train.jsonl:7"


def test_a_turn_of_tool_calls_needs_no_content():
    """The usual form of a tool call has content null."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert one({"messages": [user("hi"), call]}).messages[1] == call


def test_sharegpt_turns_become_messages():
    """Half of the public conversations are written this way."""
    row = one(
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "hi"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "7"},
                {"from": "gpt", "value": "seven", "weight": 1},
                {"role": "user", "content": "thanks"},
            ],
        }
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert row.messages == (
        {"role": "system", "content": "Be brief."},
        user("hi"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "7"},
        assistant("seven"),
        user("thanks"),
    )


def test_a_system_turn_is_not_put_there_twice():
    """The column and the first turn often say the same."""
    turns = [{"from": "system", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert one({"system": "a", "conversations": turns}).messages[0]["content"] == "a"
    assert len(one({"system": "a", "conversations": turns}).messages) == 2


@pytest.mark.parametrize(
    ("given", "prompt"), [("", "Add."), (None, "Add."), ("1 2", "Add.\n\n1 2")]
)
def test_alpaca_rows_are_prompts_with_completions(given, prompt):
    """The text column that such data sets carry too is the same again, and is not taken."""
    row = one({"instruction": "Add.", "input": given, "output": "3", "text": "Below is ..."})
    assert row == Completion("train.jsonl:7", prompt, "3")


@pytest.mark.parametrize("inner", [True, False])
def test_arguments_of_tool_calls_become_objects(inner):
    """As text they would be quoted twice, and the model would learn to call with a string."""
    call = {"name": "f", "arguments": '{"x": 1}'}
    wrap = (lambda c: {"type": "function", "function": c}) if inner else (lambda c: c)
    message = {"role": "assistant", "content": None, "tool_calls": [wrap(call)]}
    row = one({"messages": [user("hi"), message]})
    assert row.messages[1]["tool_calls"] == [wrap({"name": "f", "arguments": {"x": 1}})]
    assert message["tool_calls"] == [wrap(call)], "the record itself is not changed"
