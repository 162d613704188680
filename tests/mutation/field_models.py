"""Bugs of data, models and adapters that trainers have shipped."""

from __future__ import annotations

from tests.mutation.mutation import FieldBug, change

BUGS: tuple[FieldBug, ...] = (
    FieldBug(
        2,
        "one padding position per row counts as a target",
        "mlx-lm `default_loss` (mlx-lm#1697)",
        (
            change(
                "the position after a row's last gets a label",
                "data/collate.py",
                "            start = end\n",
                "            labels[index, end : end + 1] = 0\n            start = end\n",
                "data/test_collate.py::test_padding_is_never_a_target",
            ),
        ),
    ),
    FieldBug(
        4,
        "sorting by length sorts by the number of keys in a row",
        "mlx-lm#596",
        (
            change(
                "rows are sorted by a number that is the same for all",
                "data/rows.py",
                "np.argsort(self.lengths, kind",
                "np.argsort(np.full(len(self), 2), kind",
                "data/test_cursor_options.py::test_batches_are_padded_as_the_report_says",
            ),
        ),
    ),
    FieldBug(
        5,
        "the tail is dropped in training and evaluation; a data set smaller than a batch is refused",
        "mlx-lm `iterate_batches`",
        (
            change(
                "an epoch has only whole batches",
                "data/order.py",
                "return -(-rows // batch_size)",
                "return rows // batch_size",
                "data/test_cursor.py::test_an_epoch_holds_every_row_once",
            ),
            change(
                "a split smaller than a batch has none",
                "data/order.py",
                "return -(-rows // batch_size)",
                "return -(-rows // batch_size) if rows >= batch_size else 0",
                "data/test_cursor.py::test_a_data_set_smaller_than_a_batch_is_one_padded_batch",
            ),
        ),
    ),
    FieldBug(
        10,
        "adapters of 3-, 5- and 6-bit layers infer a wrong input size",
        "mlx-lm `dora.py`",
        (
            change(
                "the input size is the packed width times 32 // bits",
                "models/quantized.py",
                'layer["scales"].shape[-1] * layer.group_size',
                'layer["weight"].shape[-1] * (32 // layer.bits)',
                "models/test_lora.py::test_a_quantized_base_is_adapted",
            ),
        ),
    ),
    FieldBug(
        12,
        '"full" fine-tuning leaves embeddings, final norm and head frozen',
        "mlx-lm",
        (
            change(
                "only the decoder layers are trained",
                "models/lora.py",
                """    clone = clone_module(model.module).unfreeze()
    layers = decoder_layers(clone)
""",
                """    clone = clone_module(model.module).freeze()
    layers = decoder_layers(clone)
    for layer in layers:
        layer.module.unfreeze()
""",
                "models/test_lora.py::test_full_trains_embeddings_norms_and_head",
            ),
        ),
    ),
    FieldBug(
        14,
        "recompute patches `__call__` of the class, for every model and once more each time",
        "mlx-lm `grad_checkpoint`",
        (
            change(
                "the class is patched",
                "models/remat.py",
                "    layer.__class__ = _recomputing(type(layer))\n",
                """    cls, original = type(layer), type(layer).__call__

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if current_scope() is None:
            return original(self, *args, **kwargs)
        return _checkpointed(self, functools.partial(original, self), args, kwargs)

    cls.__call__ = call
""",
                "models/test_remat.py::test_no_class_is_patched_and_no_other_layer_changes",
            ),
        ),
    ),
    FieldBug(
        15,
        "recompute set on an instance's `__call__`, where Python does not look: no effect",
        "mlx-forge",
        (
            change(
                "the instance is patched",
                "models/remat.py",
                "    layer.__class__ = _recomputing(type(layer))\n",
                "    call = _recomputing(type(layer)).__call__\n"
                "    layer.__call__ = functools.partial(call, layer)\n",
                "models/test_remat.py::test_the_layer_runs_again_in_the_backward_pass",
            ),
        ),
    ),
    FieldBug(
        16,
        "packing masks the loss and lets attention cross documents",
        "mlx-forge; trl#1230, torchtune#892",
        (
            change(
                "the mask is causal and nothing else (an adapter for packed rows then refuses itself)",
                "models/packing.py",
                "self._masks[window_size] = near & same",
                "self._masks[window_size] = near & (same | True)",
                "models/test_packing.py::test_packed_documents_get_the_logits_they_get_alone",
            ),
            change(
                "the sliding window forgets the documents",
                "models/packing.py",
                "self._masks[window_size] = near & same",
                "self._masks[window_size] = near & (same | (window_size is not None))",
                "models/test_packing.py::test_a_sliding_window_counts_within_documents",
            ),
        ),
    ),
    FieldBug(
        18,
        "an iterator rebuilt for every step: rows are sampled with replacement",
        "mlx-lm-lora",
        (
            change(
                "rows are drawn, not permuted",
                "data/order.py",
                "        return start + shuffled(places - start, count, keys)\n",
                "        random = np.random.default_rng([self.seed, epoch, bucket])\n"
                "        return start + random.integers(0, count, len(places))\n",
                "data/test_order.py::test_every_row_stands_in_exactly_one_batch",
            ),
        ),
    ),
    FieldBug(
        19,
        "a mask from a prompt rendered alone that is no prefix of the whole",
        "mlx-lm#1355",
        (
            change(
                "that the prompt is a prefix is assumed",
                "data/chat.py",
                "    if not text.startswith(before):\n        raise _not_a_prefix(chat, turn, before, text, tokenizer)\n",
                "",
                "data/test_chat.py::test_a_prompt_that_is_no_prefix_of_the_whole_is_refused",
            ),
        ),
    ),
    FieldBug(
        24,
        "saving over the file that lazily loaded arrays still read",
        "unsloth",
        (
            change(
                "adapters are loaded lazily",
                "models/safetensors.py",
                "    mx.eval(arrays)\n",
                "",
                "models/test_safetensors.py::test_the_file_may_be_replaced_after_reading",
            ),
        ),
    ),
    FieldBug(
        25,
        "two beginnings of sequence; padding with the end's id hides the real end",
        "trl#1400",
        (
            change(
                "what the text begins with is not looked at",
                "data/encode.py",
                "    return ids[extra:], is_target[extra:]\n",
                "    return ids, is_target\n",
                "data/test_encode.py::test_there_is_exactly_one_bos",
            ),
            change(
                "the end's id is never a target",
                "data/encode.py",
                "labels = np.where(is_target, ids, IGNORED)",
                "labels = np.where(is_target & (ids != codec.eos), ids, IGNORED)",
                "data/test_encode.py::test_the_end_is_learned_although_padding_might_have_the_same_id",
            ),
        ),
    ),
    FieldBug(
        26,
        "the base is not frozen, and everything is trained",
        "users of mlx-lm",
        (
            change(
                "that the base comes frozen is assumed",
                "models/lora.py",
                "    clone = clone_module(model.module).freeze()\n",
                "    clone = clone_module(model.module)\n",
                "models/test_lora.py::test_only_the_adapter_is_trainable",
            ),
        ),
    ),
    FieldBug(
        28,
        "micro-batches left over from an epoch leak into the next one's first update",
        "a common sketch of the loop",
        (
            change(
                "a window is filled from the next epoch",
                "data/cursor.py",
                """                batches = self.window(epoch, position, k)
                after = position + len(batches)
                row_ids = [w for at in range(position, after) for w in self.places(epoch, at)]
                over = after == self.batches_per_epoch
                cursor = (epoch + 1, 0) if over else (epoch, after)
""",
                """                n = self.batches_per_epoch
                ats = [(epoch + at // n, at % n) for at in range(position, position + k)]
                batches = [self.batch(*at) for at in ats]
                after = position + len(batches)
                row_ids = [w for at in ats for w in self.places(*at)]
                cursor = (epoch + after // n, after % n)
""",
                "data/test_cursor.py::test_an_update_never_crosses_an_epoch",
            ),
        ),
    ),
)
