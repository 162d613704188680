"""Small changes of the batches and the cursor: operators, constants, borders, dropped terms."""

from __future__ import annotations

from tests.mutation.mutation import Mutation, change

BATCH = "data/test_collate.py"
STREAM = "data/test_cursor.py"
OPTIONS = "data/test_cursor_options.py"

COLLATE: tuple[Mutation, ...] = (
    change(
        "padding is labelled with 0",
        "data/collate.py",
        "np.full(shape, IGNORED, np.int32)",
        "np.full(shape, 0, np.int32)",
        f"{BATCH}::test_padding_is_never_a_target",
    ),
    change(
        "the first document has the number of padding",
        "data/collate.py",
        "enumerate(documents, start=1)",
        "enumerate(documents, start=0)",
        f"{BATCH}::test_packed_documents_are_numbered_and_contiguous",
    ),
    change(
        "documents of a row lie over each other",
        "data/collate.py",
        "            start = end\n",
        "",
        f"{BATCH}::test_packed_documents_are_numbered_and_contiguous",
    ),
    change(
        "a row that just fits is refused",
        "data/collate.py",
        "if end > length:",
        "if end >= length:",
        f"{BATCH}::test_padding_is_never_a_target",
    ),
    change(
        "a full batch is refused",
        "data/collate.py",
        "if len(rows) > batch_size:",
        "if len(rows) >= batch_size:",
        f"{BATCH}::test_padding_is_never_a_target",
    ),
    change(
        "labels are the tokens",
        "data/collate.py",
        "labels[index, start:end] = row.labels",
        "labels[index, start:end] = row.tokens",
        f"{BATCH}::test_packed_documents_are_numbered_and_contiguous",
    ),
    change(
        "batches are int64",
        "data/collate.py",
        "tokens, segments = np.zeros(shape, np.int32), ",
        "tokens, segments = np.zeros(shape, np.int64), ",
        f"{BATCH}::test_batches_are_int32_of_one_shape",
    ),
    change(
        "the id V passes",
        "data/collate.py",
        "(ids >= vocab_size)",
        "(ids > vocab_size)",
        f"{BATCH}::test_ids_the_model_does_not_have_never_reach_it",
    ),
    change(
        "negative ids pass",
        "data/collate.py",
        "((ids < 0) & (ids != allowed)) | (ids >= vocab_size)",
        "ids >= vocab_size",
        f"{BATCH}::test_ids_the_model_does_not_have_never_reach_it",
    ),
    change(
        "-100 passes as a token",
        "data/collate.py",
        '("token", batch.tokens, 0)',
        '("token", batch.tokens, IGNORED)',
        f"{BATCH}::test_ids_the_model_does_not_have_never_reach_it",
    ),
)

CURSOR: tuple[Mutation, ...] = (
    change(
        "a window is one short",
        "data/cursor.py",
        "end = min(position + k, self.batches_per_epoch)",
        "end = min(position + max(k - 1, 1), self.batches_per_epoch)",
        f"{STREAM}::test_an_update_never_crosses_an_epoch",
    ),
    change(
        "an epoch's end is a position of that epoch",
        "data/cursor.py",
        "cursor = (epoch + 1, 0) if over else (epoch, after)",
        "cursor = (epoch, after)",
        f"{STREAM}::test_the_cursor_after_the_last_update_of_an_epoch_is_the_start_of_the_next",
    ),
    change(
        "the cursor stands before its window",
        "data/cursor.py",
        "if over else (epoch, after)",
        "if over else (epoch, position)",
        f"{STREAM}::test_the_stream_continues_alike_from_every_cursor",
    ),
    change(
        "only the first epoch is delivered",
        "data/cursor.py",
        "            epoch, position = epoch + 1, 0\n",
        "            epoch, position = epoch + 1, position\n",
        f"{STREAM}::test_an_update_never_crosses_an_epoch",
    ),
    change(
        "one epoch too many",
        "data/cursor.py",
        "epoch < last_epoch:",
        "epoch <= last_epoch:",
        f"{STREAM}::test_an_update_never_crosses_an_epoch",
    ),
    change(
        "every window is the first one again",
        "data/cursor.py",
        "batches = self.window(epoch, position, k)",
        "batches = self.window(epoch, 0, min(k, self.batches_per_epoch - position))",
        f"{OPTIONS}::test_the_windows_of_an_epoch_are_its_batches_in_order",
    ),
    change(
        "a batch is as long as its shortest row",
        "data/cursor.py",
        "longest = max(sum(",
        "longest = min(sum(",
        f"{STREAM}::test_an_epoch_holds_every_row_once",
    ),
    change(
        "every batch has the greatest length",
        "data/cursor.py",
        "length = int(bucket_for(longest, self._buckets))",
        "length = int(self._buckets[-1])",
        f"{OPTIONS}::test_batches_are_padded_as_the_report_says",
    ),
    change(
        "ids are not checked when a batch is made",
        "data/cursor.py",
        '        check_ids(batch, self.vocab_size, where=f"batch {position} of epoch {epoch}")\n',
        "",
        f"{STREAM}::test_ids_are_checked_again_when_a_batch_is_made",
    ),
    change(
        "ids are not checked when the rows come",
        "data/cursor.py",
        "        _check_all_ids(rows, vocab_size)\n",
        "",
        f"{STREAM}::test_a_bad_id_is_found_before_the_first_update_with_its_row",
    ),
    change(
        "the highest id may be V",
        "data/cursor.py",
        "highest < vocab_size:",
        "highest <= vocab_size:",
        f"{STREAM}::test_a_bad_id_is_found_before_the_first_update_with_its_row",
    ),
    change(
        "labels over V pass when the rows come",
        "data/cursor.py",
        " | (row.labels >= vocab_size)",
        "",
        f"{STREAM}::test_a_bad_id_is_found_before_the_first_update_with_its_row",
    ),
    change(
        "negative labels pass when the rows come",
        "data/cursor.py",
        "        bad |= (row.labels < 0) & (row.labels != IGNORED)\n",
        "",
        f"{STREAM}::test_a_bad_id_is_found_before_the_first_update_with_its_row",
    ),
    change(
        "an empty split has an epoch of nothing",
        "data/cursor.py",
        "        if not len(rows):\n",
        "        if False:\n",
        f"{STREAM}::test_no_rows_are_no_loader",
    ),
    change(
        "positions outside an epoch are taken modulo its length",
        "data/cursor.py",
        """        if not 0 <= position < self.batches_per_epoch:
            raise IndexError(f"an epoch has {self.batches_per_epoch} batches, not {position + 1}")
""",
        "        position %= self.batches_per_epoch\n",
        f"{STREAM}::test_there_is_no_batch_outside_an_epoch",
    ),
    change(
        "every run has the order of seed 0",
        "data/cursor.py",
        "Order(int(counts.sum()), self.batch_size, self.seed,",
        "Order(int(counts.sum()), self.batch_size, 0,",
        f"{OPTIONS}::test_the_order_is_that_of_the_seed_and_of_nothing_else",
    ),
    change(
        "shuffle is always on",
        "data/cursor.py",
        "self._by_length() if self.shuffle else None",
        "self._by_length()",
        f"{STREAM}::test_rows_of_a_batch_are_named_for_messages",
    ),
    change(
        "the places are those of the first batch",
        "data/cursor.py",
        "for w in self.places(epoch, at)]",
        "for w in self.places(epoch, 0)]",
        f"{STREAM}::test_rows_of_a_batch_are_named_for_messages",
    ),
    change(
        "padding is measured for batches of one row",
        "data/cursor.py",
        "int(np.dot(uses, self._buckets)) * self.batch_size",
        "int(np.dot(uses, self._buckets))",
        f"{STREAM}::test_the_report_counts_what_an_epoch_delivers",
    ),
    change(
        "a pack is its first document",
        "data/cursor.py",
        "else self.packs[int(unit)]",
        "else self.packs[int(unit)][:1]",
        f"{STREAM}::test_an_epoch_holds_every_row_once",
    ),
    change(
        "the epoch of an evaluation lacks its last batch",
        "data/cursor.py",
        "for position in range(self.batches_per_epoch):",
        "for position in range(self.batches_per_epoch - 1):",
        f"{STREAM}::test_an_epoch_holds_every_row_once",
    ),
    change(
        "long epochs get no more lengths than short ones",
        "data/cursor.py",
        "min(16, max(8, units",
        "min(8, max(8, units",
        f"{OPTIONS}::test_a_long_epoch_pays_for_more_lengths",
    ),
)
