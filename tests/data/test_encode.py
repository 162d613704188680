"""From examples to aligned ids and labels: special tokens, borders, limits."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.tuner.datasets import ChatDataset, CompletionsDataset, TextDataset

from mlxfn.data.encode import Codec, EncodeOptions, encode, encode_many
from mlxfn.data.formats import Chat, Completion, Ids, Text
from mlxfn.errors import DataError
from tests.data.helpers import assistant, learned, user, whole_ids
from tests.support.tokenizers import MAKERS, shared, wrapped, write_tokenizer

TEMPLATES = ["chatml", "llama", "thinking"]
words = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=30)


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_prompt_and_completion_give_the_tokens_and_targets_of_mlx_lm(style, loss_on):
    """What is trained here is what mlx-lm trains, and generates with."""
    tokenizer = wrapped(style)
    theirs = CompletionsDataset([], tokenizer, "prompt", "completion", loss_on == "completion")
    ids, offset = theirs.process({"prompt": "What is two?", "completion": "The answer is 4"})
    row = encode(Completion("x:1", "What is two?", "The answer is 4"), tokenizer, loss_on=loss_on)
    assert whole_ids(row) == ids
    assert np.flatnonzero(row.labels != -100).tolist() == list(
        range(max(offset, 1) - 1, len(ids) - 1)
    )


@pytest.mark.parametrize("style", TEMPLATES)
def test_a_conversation_gives_the_tokens_and_targets_of_mlx_lm(style):
    """The same for messages."""
    tokenizer = wrapped(style)
    turns = [user("What is two?"), assistant("The answer is 4"), user("Hello"), assistant("fine")]
    ids, offset = ChatDataset([], tokenizer, mask_prompt=True).process({"messages": turns})
    row = encode(Chat("x:1", tuple(turns)), tokenizer)
    assert whole_ids(row) == ids
    assert int((row.labels == -100).sum()) == offset - 1


@pytest.mark.parametrize("style", sorted(MAKERS))
@pytest.mark.parametrize("text", ["Hello there!", "a", "two plus two\n"])
def test_text_gives_the_tokens_of_mlx_lm_and_learns_them_all(style, text):
    """A document with its BOS, if the tokenizer has one, and its EOS."""
    tokenizer = wrapped(style)
    ids, _ = TextDataset([], tokenizer).process({"text": text})
    if len(ids) == 1:
        return
    row = encode(Text("x:1", text), tokenizer)
    assert whole_ids(row) == ids
    assert row.labels.tolist() == ids[1:]


@given(prompt=words, completion=words, style=st.sampled_from(["plain", "llama", "chatml"]))
def test_labels_are_the_next_tokens_and_only_the_completion_is_learned(prompt, completion, style):
    """The law of alignment, for any text: what is learned reads as the completion."""
    assume(prompt or style != "plain")  # without a BOS nothing predicts the first token
    tokenizer = shared(style)
    row = encode(Completion("x:1", prompt, completion), tokenizer, max_seq_length=10_000)
    is_target = row.labels != -100
    assert (row.labels[:-1] == row.tokens[1:])[is_target[:-1]].all()
    expected = completion.strip() if style == "llama" else completion
    ends = {"plain": "<|im_end|>", "llama": "<|eot_id|>", "chatml": "<|im_end|>\n"}
    assert learned(row, tokenizer) == [expected + ends[style]]


@pytest.mark.parametrize(
    ("prompt", "completion"), [("What is t", "wo is"), ("Wha", "t is"), ("two ", "is")]
)
def test_no_token_straddles_prompt_and_completion(prompt, completion):
    """Joined text would merge both into one token, which generation never meets."""
    tokenizer = shared("plain")
    alone = tokenizer.encode(prompt)
    assert tokenizer.encode(prompt + completion)[: len(alone)] != alone  # what this is about
    row = encode(Completion("x:1", prompt, completion), tokenizer)
    assert whole_ids(row)[: len(alone)] == alone
    assert learned(row, tokenizer) == [completion + "<|im_end|>"]


def test_a_tokenizer_that_cannot_split_there_is_refused():
    """One that puts a space before every text would change the text at the border."""
    tokenizer = wrapped("sentencepiece")
    assert learned(encode(Completion("x:1", "two is", " two"), tokenizer), tokenizer) == ["two</s>"]
    with pytest.raises(DataError, match="straddles") as caught:
        encode(Completion("train.jsonl:9", "What is t", "wo"), tokenizer)
    assert caught.value.where == "train.jsonl:9"


@pytest.mark.parametrize("text", ["Hello", "<s>Hello", "<s><s>Hello"])
def test_there_is_exactly_one_bos(text):
    """Two of them, one from the data or the template and one from the tokenizer, are a known bug."""
    tokenizer = wrapped("llama")
    sentencepiece = wrapped("sentencepiece")
    for row, bos in (
        (encode(Text("x:1", text), tokenizer), tokenizer.bos_token_id),
        (encode(Completion("x:1", text, " fine"), sentencepiece), sentencepiece.bos_token_id),
        (encode(Completion("x:1", "Hello", "fine"), tokenizer), tokenizer.bos_token_id),
    ):
        assert row.tokens[0] == bos
        assert (row.tokens == bos).sum() == 1


def test_the_end_is_learned_although_padding_might_have_the_same_id():
    """Masking by the padding id would hide every end: a model that never stops."""
    for style in ("chatml", "llama", "plain", "sentencepiece"):
        tokenizer = wrapped(style)
        for example in (Text("x:1", "Hello"), Completion("x:1", "Hello", " there")):
            row = encode(example, tokenizer)
            assert tokenizer.eos_token_id in row.labels[-2:], (style, example)


def test_an_empty_completion_ends_at_once_and_an_empty_text_is_dropped():
    """To say nothing can be learned; nothing cannot."""
    tokenizer = shared("plain")
    assert learned(encode(Completion("x:1", "Hello", ""), tokenizer), tokenizer) == ["<|im_end|>"]
    assert encode(Text("x:1", ""), tokenizer) is None


def test_labels_of_tokenized_rows_are_shifted_once():
    """They come unshifted; the loss does not shift."""
    row = encode(Ids("x:1", np.array([1, 2, 3, 4]), np.array([-100, -100, 3, 4])), shared("plain"))
    assert (row.tokens.tolist(), row.labels.tolist()) == ([1, 2, 3], [-100, 3, 4])


@given(length=st.integers(0, 12), limit=st.integers(1, 12))
def test_a_row_never_exceeds_the_limit(length, limit):
    """max_seq_length counts ids, so positions are one fewer."""
    ids = np.arange(length, dtype=np.int32)
    example = Ids("x:1", ids, ids)
    cut = encode(example, shared("plain"), max_seq_length=limit)
    kept = min(length, limit)
    assert (cut is None) == (kept < 2)
    if cut is not None:
        assert cut.tokens.tolist() == list(range(kept - 1))
        assert cut.labels.tolist() == list(range(1, kept))
    dropped = encode(example, shared("plain"), max_seq_length=limit, overlong="drop")
    assert (dropped is None) == (length > limit or length < 2)


def test_overlong_can_be_an_error():
    """For data that must not be cut."""
    ids = np.arange(5, dtype=np.int32)
    with pytest.raises(DataError, match="longer than max_seq_length") as caught:
        encode(Ids("x:7", ids, ids), shared("plain"), max_seq_length=4, overlong="error")
    assert (caught.value.where, caught.value.got) == ("x:7", "5 tokens")


def test_a_prompt_over_the_limit_is_dropped_and_never_trained_on():
    """Its loss would be 0 / 0: one such batch used to turn a whole run into NaN."""
    codec, options = Codec.of(wrapped("chatml")), EncodeOptions(max_seq_length=40)
    rows = [Completion("x:1", "two " * 80, "4"), Completion("x:2", "2?", "4 " * 40)]
    fates = [(o.fate, o.row is None) for o in encode_many(rows, codec, options)]
    assert fates == [("no_target", True), ("truncated", False)]


def test_an_id_outside_the_vocabulary_is_named_with_its_row():
    """MLX would read outside its arrays."""
    options = EncodeOptions(vocab_size=10)
    for ids, labels in (([1, 10], [1, 2]), ([1, 2], [1, 10])):
        example = Ids("x:4", np.array(ids), np.array(labels))
        with pytest.raises(DataError, match="outside the model's vocabulary") as caught:
            list(encode_many([example], Codec.of(shared("plain")), options))
        assert caught.value.where == "x:4"


@given(st.lists(st.tuples(words, words), min_size=1, max_size=6))
def test_encoding_many_rows_is_encoding_each(pairs):
    """Rows are tokenized together for speed; none may see another."""
    codec = Codec.of(wrapped("chatml"))
    examples = [Completion(f"x:{i}", *pair) for i, pair in enumerate(pairs)]
    together = encode_many(examples, codec, EncodeOptions())
    for example, outcome in zip(examples, together, strict=True):
        alone = encode(example, wrapped("chatml"))
        assert outcome.row is not None
        assert np.array_equal(alone.tokens, outcome.row.tokens)
        assert np.array_equal(alone.labels, outcome.row.labels)


def test_the_wrapper_of_mlx_lm_and_its_tokenizer_encode_alike():
    """Models are loaded with the wrapper; a user's own script may not have one."""
    for style in ("chatml", "llama", "plain", "generation"):
        examples = [Text("x:1", "Hello"), Completion("x:1", "Hello", " there")]
        for example in examples:
            one, two = encode(example, wrapped(style)), encode(example, shared(style))
            assert np.array_equal(one.tokens, two.tokens)
            assert np.array_equal(one.labels, two.labels)


def test_codec_finds_what_a_tokenizer_puts_in_front():
    """Found by encoding, as settings of tokenizers say one thing and do another."""
    bos = shared("llama").bos_token_id
    assert Codec.of(wrapped("llama")).front == (bos,)
    assert Codec.of(wrapped("chatml")).front == ()


def test_a_saved_tokenizer_that_mlx_lm_loads_encodes_alike(tmp_path):
    """Run time sees tokenizers through mlx-lm's loader alone."""
    write_tokenizer(tmp_path)
    loaded = load_tokenizer(tmp_path)
    turns = (user("What is two?"), assistant("The answer is 4"), user("Hello"), assistant("fine"))
    for loss_on in ("completion", "assistant", "all"):
        one = encode(Chat("x:1", turns), loaded, loss_on=loss_on)
        two = encode(Chat("x:1", turns), wrapped("chatml"), loss_on=loss_on)
        assert np.array_equal(one.tokens, two.tokens)
        assert np.array_equal(one.labels, two.labels)
