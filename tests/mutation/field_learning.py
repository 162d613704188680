"""Bugs of losses, optimizers and schedules that trainers have shipped."""

from __future__ import annotations

from tests.mutation.mutation import FieldBug, change

BUGS: tuple[FieldBug, ...] = (
    FieldBug(
        1,
        "recomputed layers draw new dropout masks, so gradients are wrong",
        "mlx-lm `grad_checkpoint`",
        (
            change(
                "the recompute runs under another key than the forward pass",
                "models/remat.py",
                """        values = dict(zip(slots, arrays[count:], strict=True))
        with swapped(slots, values), keyed(key):
            return forward(*arrays[:count])
""",
                """        nonlocal key
        values = dict(zip(slots, arrays[count:], strict=True))
        with swapped(slots, values), keyed(key):
            out = forward(*arrays[:count])
        key = None if key is None else key + 1
        return out
""",
                "models/test_remat.py::test_gradients_are_the_same_with_and_without",
            ),
        ),
    ),
    FieldBug(
        3,
        "a prompt over the length limit leaves no target: NaN, for the whole validation too",
        "mlx-lm#1355",
        (
            change(
                "a row without a target is kept",
                "data/encode.py",
                "    if not (row.labels != IGNORED).any():",
                "    if not len(row.labels):",
                "data/test_encode.py::test_a_prompt_over_the_limit_is_dropped_and_never_trained_on",
            ),
            change(
                "the mean over no label token is 0 / 0",
                "state.py",
                "return self.total / mx.maximum(self.weight, 1.0)",
                "return self.total / self.weight",
                "test_step.py::test_an_update_without_a_label_changes_nothing",
            ),
            change(
                "validation divides in each batch",
                "evaluate.py",
                "            total += float(loss.total)\n",
                "            total += float(loss.total / loss.weight) * float(loss.weight)\n",
                "field_bugs/test_evaluation.py::test_a_batch_without_a_label_spoils_nothing",
            ),
        ),
    ),
    FieldBug(
        7,
        "accumulation averages means of micro-batches; an unfinished window is lost",
        "mlx-lm; transformers#34198, #35207",
        (
            change(
                "each micro-batch adds its mean with weight 1",
                "transforms/accumulate.py",
                "        return loss.total, loss.weight\n",
                "        return loss.mean(), mx.array(1.0)\n",
                "test_step.py::test_any_split_into_micro_batches_gives_the_same_update",
            ),
            change(
                "the short window at the end of an epoch is not delivered",
                "data/cursor.py",
                "            while position < self.batches_per_epoch:",
                "            while position + k <= self.batches_per_epoch:",
                "data/test_cursor.py::test_an_update_never_crosses_an_epoch",
            ),
        ),
    ),
    FieldBug(
        8,
        "Adam without bias correction",
        "mlx's default; mlx#1640",
        (
            change(
                "mlx's default is kept",
                "transforms/optimizers.py",
                "bias_correction=True",
                "bias_correction=False",
                "transforms/test_transforms.py::test_adamw_corrects_its_bias",
            ),
        ),
    ),
    FieldBug(
        9,
        "the first update of a warmup has the rate 0; the peak comes twice",
        "mlx-lm `build_schedule`",
        (
            change(
                "updates are counted from 0",
                "transforms/optimizers.py",
                'number = state["step"].astype(mx.int32) + 1',
                'number = state["step"].astype(mx.int32)',
                "test_step.py::test_the_rate_reported_is_the_rate_used",
            ),
            change(
                "the decay begins one update late",
                "transforms/schedules.py",
                "mx.clip((step - warmup) / span",
                "mx.clip((step - warmup - 1) / span",
                "transforms/test_schedules.py::test_cosine_follows_the_formula_and_touches_the_peak_once",
            ),
        ),
    ),
    FieldBug(
        13,
        "cross-entropy computed in bf16 and cast afterwards",
        "mlx-lm `default_loss`",
        (
            change(
                "the logits keep their dtype",
                "losses/cross_entropy.py",
                "    logits = logits.astype(mx.float32)\n",
                "",
                "losses/test_cross_entropy.py::test_bf16_logits_are_reduced_in_fp32",
            ),
        ),
    ),
    FieldBug(
        17,
        "chunks lose the targets at their borders, and are added without weights",
        "mlx-lm-lora `seq_split_step`",
        (
            change(
                "the last target of each chunk is lost",
                "losses/chunked.py",
                "        part = targets[start : start + chunk_size]\n",
                "        part = targets[start : start + chunk_size]\n"
                "        part = mx.where(mx.arange(len(part)) == len(part) - 1, IGNORED, part)\n",
                "losses/test_cross_entropy.py::test_chunked_equals_full_in_value_and_gradient",
            ),
            change(
                "the mean of each chunk is added",
                "losses/chunked.py",
                "part, label_smoothing=label_smoothing).total",
                "part, label_smoothing=label_smoothing).mean()",
                "losses/test_cross_entropy.py::test_chunked_equals_full_in_value_and_gradient",
            ),
        ),
    ),
    FieldBug(
        23,
        "one non-finite value turns every parameter into NaN through clipping",
        "mlx `clip_grad_norm`",
        (
            change(
                "the step applies whatever it computed",
                "step.py",
                "tree.where(finite & (loss.weight > 0), trained, before)",
                "tree.where(loss.weight > 0, trained, before)",
                "test_step.py::test_a_nonfinite_update_leaves_the_state_bitwise_as_it_was",
            ),
            change(
                "the guard of one's own steps lets the updates through",
                "transforms/guard.py",
                "tree.where(finite, updates, tree.zeros_like(updates))",
                "updates",
                "transforms/test_transforms.py::"
                "test_one_bad_value_changes_neither_parameters_nor_moments",
            ),
        ),
    ),
    FieldBug(
        31,
        "the gradient norm is reported after clipping",
        "LlamaFactory#3996",
        (
            change(
                "the norm is taken of what the transform returns",
                "step.py",
                "loss.weight, norm, _rate",
                "loss.weight, tree.global_norm(updates), _rate",
                "test_step.py::test_the_reported_norm_is_the_one_before_clipping",
            ),
        ),
    ),
    FieldBug(
        32,
        "perplexity overflows; warmup = total divides by zero; the rate rises after the end",
        "a common sketch of the loop",
        (
            change(
                "exp of any loss",
                "evaluate.py",
                "math.exp(min(self.loss, LARGEST_EXPONENT))",
                "math.exp(self.loss)",
                "field_bugs/test_evaluation.py::test_the_perplexity_never_overflows",
            ),
            change(
                "the length of the decay may be 0",
                "transforms/schedules.py",
                "span = max(total - warmup, 1)",
                "span = total - warmup",
                "transforms/test_schedules.py::test_rates_are_finite_and_between_zero_and_the_peak",
            ),
            change(
                "the cosine goes on after the end",
                "transforms/schedules.py",
                "mx.clip((step - warmup) / span, 0.0, 1.0)",
                "mx.maximum((step - warmup) / span, 0.0)",
                "transforms/test_schedules.py::test_the_rate_is_constant_after_the_last_update",
            ),
        ),
    ),
)
