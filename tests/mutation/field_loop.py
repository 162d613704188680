"""Bugs of loops, evaluations and checkpoints that trainers have shipped."""

from __future__ import annotations

from tests.mutation.mutation import FieldBug, change

BUGS: tuple[FieldBug, ...] = (
    FieldBug(
        6,
        "evaluation draws from the training stream, and sees other rows each time",
        "mlx-lm",
        (
            change(
                "an evaluation moves the key that training draws from",
                "run.py",
                "    number, loss = updates_applied(state), result.loss\n",
                "    moved = attrs.evolve(state.train, key=state.train.key + 1)\n"
                "    state = attrs.evolve(state, train=moved)\n"
                "    number, loss = updates_applied(state), result.loss\n",
                "run/test_train.py::"
                "test_training_is_bit_identical_with_and_without_evaluations_logs_and_saves",
            ),
            change(
                "dropout is on in evaluation",
                "evaluate.py",
                "return loss_fn(params, batch, None)",
                "return loss_fn(params, batch, mx.random.key(0))",
                "field_bugs/test_evaluation.py::test_nothing_is_dropped_out_and_nothing_is_drawn",
            ),
            change(
                "validation is a sample of the batches",
                "run.py",
                "stop.until(valid.epoch()))",
                "stop.until(list(valid.epoch(state.position))[: 1 + state.position]))",
                "run/test_train.py::test_evaluation_does_not_depend_on_the_batch_size",
            ),
        ),
    ),
    FieldBug(
        11,
        "settings that nothing reads; values of a file that lose to defaults of the command line",
        "mlx-lm `clear_cache_threshold`; mlx-tune accumulation, warmup, keep-last-n",
        (
            change(
                "rslora is accepted and not used",
                "assemble.py",
                "        rslora=settings.rslora,\n",
                "",
                "field_bugs/test_settings.py::test_every_setting_is_read",
            ),
            change(
                "the warmup is a tenth of the run, whatever the file says",
                "assemble.py",
                "        return schedule.warmup_steps\n",
                "        return min(100, updates // 10)\n",
                "field_bugs/test_settings.py::test_the_warmup_of_the_file_is_the_warmup_of_the_run",
            ),
            change(
                "the loop takes one micro-batch for each update",
                "run.py",
                "    k = job.config.train.gradient_accumulation_steps\n",
                "    k = 1\n",
                "run/test_train.py::test_an_epoch_ends_with_a_short_window_that_is_applied",
            ),
            change(
                "all checkpoints are kept",
                "run.py",
                "keep_last_n=config.checkpoint.keep_last_n)",
                "keep_last_n=1000)",
                "run/test_train.py::test_the_best_checkpoint_is_there_with_the_newest",
            ),
            change(
                "the command line's default directory wins over the file's",
                "cli/args.py",
                '"output_dir": output}',
                '"output_dir": output or "runs/mlxfn"}',
                "field_bugs/test_settings.py::test_every_value_of_a_file_wins_over_every_default",
            ),
        ),
    ),
    FieldBug(
        20,
        "resuming with another epoch's order; a second resume starts the stream anew",
        "accelerate#4071, #2016",
        (
            change(
                "every epoch has the order of the first",
                "data/cursor.py",
                "return self._order.batch(epoch, position)",
                "return self._order.batch(0, position)",
                "data/test_cursor.py::test_each_epoch_is_drawn_anew_and_resumed_with_its_own_order",
            ),
            change(
                "a resumed epoch begins at its first batch",
                "run.py",
                "    cursor = (state.epoch, state.position)\n",
                "    cursor = (state.epoch, 0)\n",
                "run/test_train.py::test_a_run_stopped_by_a_signal_goes_on_bit_for_bit",
            ),
            change(
                "the position is counted from the last resume",
                "data/cursor.py",
                """        while last_epoch is None or epoch < last_epoch:
            while position < self.batches_per_epoch:
                batches = self.window(epoch, position, k)
                after = position + len(batches)
                row_ids = [w for at in range(position, after) for w in self.places(epoch, at)]
                over = after == self.batches_per_epoch
                cursor = (epoch + 1, 0) if over else (epoch, after)
                yield Window(*cursor, batches, row_ids)
                position = after
            epoch, position = epoch + 1, 0
""",
                """        start = position
        while last_epoch is None or epoch < last_epoch:
            while position < self.batches_per_epoch:
                batches = self.window(epoch, position, k)
                after = position + len(batches)
                row_ids = [w for at in range(position, after) for w in self.places(epoch, at)]
                over = after == self.batches_per_epoch
                cursor = (epoch + 1, 0) if over else (epoch, after - start)
                yield Window(*cursor, batches, row_ids)
                position = after
            epoch, position, start = epoch + 1, 0, 0
""",
                "field_bugs/test_loop.py::test_a_run_stopped_twice_goes_on_bit_for_bit",
            ),
        ),
    ),
    FieldBug(
        21,
        "a partial checkpoint is chosen as the latest",
        "transformers#27820, #40790",
        (
            change(
                "the newest is taken, whole or not",
                "checkpoint/store.py",
                "                    damaged.append(Damaged(path, error.what))\n",
                "                    raise\n",
                "checkpoint/test_store.py::test_damaged_checkpoints_are_named_and_skipped",
            ),
            change(
                "the checksum is not looked at",
                "checkpoint/codec.py",
                "    npz.check_digest(data)\n",
                "",
                "checkpoint/test_store.py::test_damaged_checkpoints_are_named_and_skipped",
            ),
            change(
                "a checkpoint is written under its own name",
                "files.py",
                """    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    fd = system.create(temporary)
    try:
        _fill(""",
                """    temporary = path
    path.unlink(missing_ok=True)
    fd = system.create(temporary)
    try:
        _fill(""",
                "checkpoint/test_store.py::test_a_kill_at_any_point_leaves_the_old_or_the_new",
            ),
        ),
    ),
    FieldBug(
        22,
        "the evaluation loss depends on the batch size",
        "transformers#39241",
        (
            change(
                "the means of batches are averaged",
                "evaluate.py",
                """            total += float(loss.total)
            weight += float(loss.weight)
""",
                """            total += float(loss.mean())
            weight += 1.0
""",
                "field_bugs/test_evaluation.py::test_the_loss_does_not_depend_on_the_batch_size",
            ),
        ),
    ),
    FieldBug(
        27,
        "logging, evaluation and saving fire once per micro-batch, and at step 0",
        "a common sketch of the loop: `global_step % n == 0`",
        (
            change(
                "logs are counted in micro-batches",
                "run.py",
                "number % config.log.logging_steps == 0",
                "state.position % config.log.logging_steps == 0",
                "field_bugs/test_loop.py::"
                "test_every_nth_is_counted_in_updates_and_not_in_micro_batches",
            ),
            change(
                "evaluations are counted in micro-batches",
                "run.py",
                "applied and every and number % every == 0",
                "applied and every and state.position % every == 0",
                "field_bugs/test_loop.py::"
                "test_every_nth_is_counted_in_updates_and_not_in_micro_batches",
            ),
            change(
                "checkpoints are counted in micro-batches",
                "run.py",
                "updates_applied(state) % every == 0",
                "state.position % every == 0",
                "field_bugs/test_loop.py::"
                "test_every_nth_is_counted_in_updates_and_not_in_micro_batches",
            ),
            change(
                "0 % n is 0: what fires does not ask whether an update was applied",
                "run.py",
                "    applied = bool(metrics.finite)\n",
                "    applied = True\n",
                "field_bugs/test_loop.py::test_an_update_that_was_left_out_fires_nothing",
            ),
        ),
    ),
    FieldBug(
        29,
        "validation weighted by the tokens of the attention mask, not by label tokens",
        "a common sketch of the loop",
        (
            change(
                "every position of a document counts",
                "evaluate.py",
                "            weight += float(loss.weight)\n",
                "            weight += float(mx.sum(batch.segments > 0))\n",
                "field_bugs/test_evaluation.py::"
                "test_the_weight_is_label_tokens_and_not_the_tokens_that_attention_sees",
            ),
        ),
    ),
    FieldBug(
        30,
        "the best checkpoint is removed by the clean-up, or points at a deleted file",
        "common",
        (
            change(
                "the clean-up protects the newest alone",
                "checkpoint/store.py",
                'protected = {host.step, host.run["best_step"]}',
                "protected = {host.step}",
                "checkpoint/test_store.py::test_the_newest_n_and_the_best_stay",
            ),
        ),
    ),
)
