"""Every law in one place: plain functions that take a piece of a training step and judge it.

Each returns its figure (how far off it was, 0 for exactly right) or raises :class:`LawError`.
"""

from mlxfn.testing.law import Fact, LawError, close, distance, fact, require, same
from mlxfn.testing.losses import (
    chunked_equals_full,
    loss_adds_up,
    loss_counts_label_tokens,
    loss_ignores_unlabelled_positions,
    loss_is_cross_entropy,
    loss_is_invariant_to_padding,
    loss_is_invariant_to_row_order,
    loss_of_nothing_is_zero,
    losses_agree,
    smoothing_zero_is_cross_entropy,
)
from mlxfn.testing.models import (
    base_is_frozen,
    base_is_untouched,
    dropout_is_a_function_of_its_key,
    gradient_is_right,
    packed_equals_separate,
    recompute_equals_plain,
)
from mlxfn.testing.monitors import (
    monitor_is_a_fold,
    monitor_is_pure,
    monitor_never_swallows_nan,
)
from mlxfn.testing.schedules import (
    schedule_counts,
    schedule_ends,
    schedule_is_bounded,
    schedule_is_continuous,
    schedule_is_traceable,
    schedule_warms_up,
)
from mlxfn.testing.states import encoding_is_lossless
from mlxfn.testing.steps import (
    accumulation_is_independent_of_the_split,
    compiled_equals_eager,
    nonfinite_changes_nothing,
    one_trace_per_shape,
    randomness_comes_from_the_state,
    step_is_pure,
    update_without_labels_changes_nothing,
)
from mlxfn.testing.transforms import (
    chain_is_associative,
    clipping_commutes_with_scaling,
    clipping_is_idempotent,
    clipping_leaves_small_gradients_alone,
    clipping_never_raises_the_norm,
    identity_changes_nothing,
    lifted_optimizer_equals_its_object,
    nonfinite_gradients_change_nothing,
    update_is_pure,
    update_keeps_structure,
)

__all__ = [
    "Fact",
    "LawError",
    "accumulation_is_independent_of_the_split",
    "base_is_frozen",
    "base_is_untouched",
    "chain_is_associative",
    "chunked_equals_full",
    "clipping_commutes_with_scaling",
    "clipping_is_idempotent",
    "clipping_leaves_small_gradients_alone",
    "clipping_never_raises_the_norm",
    "close",
    "compiled_equals_eager",
    "distance",
    "dropout_is_a_function_of_its_key",
    "encoding_is_lossless",
    "fact",
    "gradient_is_right",
    "identity_changes_nothing",
    "lifted_optimizer_equals_its_object",
    "loss_adds_up",
    "loss_counts_label_tokens",
    "loss_ignores_unlabelled_positions",
    "loss_is_cross_entropy",
    "loss_is_invariant_to_padding",
    "loss_is_invariant_to_row_order",
    "loss_of_nothing_is_zero",
    "losses_agree",
    "monitor_is_a_fold",
    "monitor_is_pure",
    "monitor_never_swallows_nan",
    "nonfinite_changes_nothing",
    "nonfinite_gradients_change_nothing",
    "one_trace_per_shape",
    "packed_equals_separate",
    "randomness_comes_from_the_state",
    "recompute_equals_plain",
    "require",
    "same",
    "schedule_counts",
    "schedule_ends",
    "schedule_is_bounded",
    "schedule_is_continuous",
    "schedule_is_traceable",
    "schedule_warms_up",
    "smoothing_zero_is_cross_entropy",
    "step_is_pure",
    "update_is_pure",
    "update_keeps_structure",
    "update_without_labels_changes_nothing",
]
