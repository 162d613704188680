"""Laws of gradient transforms: composition, clipping, lifting, purity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlxfn import tree
from mlxfn.testing.law import LawError, close, copied, require, same
from mlxfn.transforms.base import Transform, apply_updates, chain, identity
from mlxfn.transforms.flat import Layout
from mlxfn.tree import Grads, Params, Tree

EPSILON = 1e-6
"""What clipping adds to the norm before it divides, as PyTorch does."""


def trained(tx: Transform, params: Params, grads: Sequence[Grads]) -> tuple[Params, Tree]:
    """Return the parameters and the state after a sequence of gradients.

    Example:
        >>> from mlxfn.transforms import sgd
        >>> trained(sgd(0.5), {"w": mx.array([1.0])}, [{"w": mx.array([1.0])}] * 2)[0]
        {'w': array([0], dtype=float32)}
    """
    state = tx.init(params)
    for each in grads:
        updates, state = tx.update(each, state, params)
        params = apply_updates(params, updates)
    return params, state


def chain_is_associative(
    a: Transform, b: Transform, c: Transform, params: Params, grads: Sequence[Grads]
) -> float:
    """Grouping the stages of a chain changes nothing, bit for bit.

    Args:
        a: The first stage.
        b: The second.
        c: The third.
        params: Parameters before the first update.
        grads: The gradients of some updates.

    Raises:
        LawError: Some grouping gives other parameters.

    Example:
        >>> from mlxfn.transforms import clip_by_global_norm, scale_by, sgd
        >>> params = {"w": mx.array([1.0, 2.0])}
        >>> chain_is_associative(clip_by_global_norm(1.0), scale_by(0.3), sgd(0.1), params, [params])
        0.0
    """
    flat, _ = trained(chain(a, b, c), params, grads)
    left, _ = trained(chain(chain(a, b), c), params, grads)
    right, _ = trained(chain(a, chain(b, c)), params, grads)
    same("chain(chain(a, b), c) is not chain(a, b, c)", left, flat)
    return same("chain(a, chain(b, c)) is not chain(a, b, c)", right, flat)


def identity_changes_nothing(tx: Transform, params: Params, grads: Sequence[Grads]) -> float:
    """The empty chain, before or behind a transform, leaves it as it is.

    Raises:
        LawError: It does not.

    Example:
        >>> from mlxfn.transforms import sgd
        >>> identity_changes_nothing(sgd(0.1), {"w": mx.ones(1)}, [{"w": mx.ones(1)}])
        0.0
    """
    plain, _ = trained(tx, params, grads)
    before, _ = trained(chain(identity(), tx), params, grads)
    behind, _ = trained(chain(tx, chain()), params, grads)
    same("the identity in front changes a transform", before, plain)
    return same("the identity behind changes a transform", behind, plain)


def update_is_pure(tx: Transform, params: Params, grads: Sequence[Grads]) -> float:
    """An update changes nothing it was given, and gives the same twice.

    Raises:
        LawError: An input changed, or two calls differ.

    Example:
        >>> from mlxfn.transforms import adamw
        >>> update_is_pure(adamw(0.1), {"w": mx.ones(1)}, [{"w": mx.ones(1)}])
        0.0
    """
    params, state = trained(tx, params, grads[:-1])
    given = {"grads": grads[-1], "state": state, "params": params}
    before = copied(given)
    once = tx.update(grads[-1], state, params)
    twice = tx.update(grads[-1], state, params)
    same("an update changed what it was given", given, before)
    return same("two updates with the same arguments differ", list(once), list(twice))


def update_keeps_structure(tx: Transform, params: Params, grads: Sequence[Grads]) -> float:
    """Updates have the parameters' names and shapes, and the state keeps its own, with its dtypes.

    A compiled step selects between the state before and after, and a checkpoint is restored into
    the state that ``init`` gives: both need this.

    Raises:
        LawError: A name, shape or dtype differs.

    Example:
        >>> from mlxfn.transforms import muon
        >>> update_keeps_structure(muon(0.1), {"w": mx.ones((2, 2))}, [{"w": mx.ones((2, 2))}])
        0.0
    """
    state = tx.init(params)
    for each in grads:
        updates, after = tx.update(each, state, params)
        _same_structure("updates do not fit the parameters", updates, params)
        _same_structure("the state changes its structure", after, state)
        params, state = apply_updates(params, updates), after
    return 0.0


def _same_structure(what: str, ours: Tree, theirs: Tree) -> None:
    try:
        tree.restore(theirs, tree.flatten(ours))
    except ValueError as problem:
        raise LawError(what, difference=str(problem)) from problem


def elementwise_means_flat(tx: Transform, params: Params, grads: Sequence[Grads]) -> float:
    """What says that it is elementwise does the same to all parameters laid out as one vector.

    On a GPU the step relies on it. A transform that does not say so passes.

    Raises:
        LawError: It looks at shapes or paths, or treats arrays one by one.

    Example:
        >>> from mlxfn.transforms import adamw
        >>> params = {"a": mx.ones((2, 2)), "b": mx.zeros(3)}
        >>> elementwise_means_flat(adamw(0.1), params, [params]) < 1e-6
        True
    """
    layout = Layout.of(params)
    if not tx.elementwise or len(layout.shapes) < 2:
        return 0.0
    plain, state = trained(tx, params, grads)
    flat, packed = trained(tx, layout.pack(params), [layout.pack(each) for each in grads])
    what = "on one vector, an elementwise transform gives another"
    of_state = layout.pack_state(state, like=packed)
    return max(
        close(f"{what} result", layout.unpack(flat, like=params), plain, 1e-5),
        close(f"{what} state", packed, of_state, 1e-5),
    )


def clipping_never_raises_the_norm(clip: Transform, limit: float, grads: Grads) -> float:
    """The norm after clipping is neither above the limit nor above what it was.

    Args:
        clip: The transform.
        limit: Its limit.
        grads: Gradients of any finite size.

    Returns:
        By how much of itself the norm rose, 0 where it fell.

    Raises:
        LawError: The norm is larger than allowed.

    Example:
        >>> from mlxfn.transforms import clip_by_global_norm
        >>> clipping_never_raises_the_norm(clip_by_global_norm(1.0), 1.0, {"w": mx.array([3.0])})
        0.0
    """
    clipped, _ = clip.update(grads, clip.init(grads), grads)
    before, after = float(tree.global_norm(grads)), float(tree.global_norm(clipped))
    allowed = min(before, limit)
    rise = max(after - allowed, 0.0) / max(allowed, 1e-30)
    holds = rise <= 1e-5  # NaN compares as false
    require(
        holds, "clipping left the norm above its limit", before=before, after=after, limit=limit
    )
    return rise


def clipping_leaves_small_gradients_alone(clip: Transform, limit: float, grads: Grads) -> float:
    """Gradients below the limit pass bit for bit; nothing is ever scaled up to it.

    Args:
        clip: The transform.
        limit: Its limit.
        grads: Gradients; above the limit the law has nothing to say.

    Raises:
        LawError: A gradient below the limit was changed.

    Example:
        >>> from mlxfn.transforms import clip_by_global_norm
        >>> small = {"w": mx.array([0.1])}
        >>> clipping_leaves_small_gradients_alone(clip_by_global_norm(1.0), 1.0, small)
        0.0
    """
    if float(tree.global_norm(grads)) + 2 * EPSILON > limit:
        return 0.0
    clipped, _ = clip.update(grads, clip.init(grads), grads)
    return same("clipping changed a gradient below the limit", clipped, grads)


def clipping_is_idempotent(clip: Transform, limit: float, grads: Grads) -> float:
    """Clipping what was clipped changes nothing, up to rounding.

    Args:
        clip: The transform.
        limit: Its limit.
        grads: Gradients of any finite size.

    Raises:
        LawError: The second time changed something.

    Example:
        >>> from mlxfn.transforms import clip_by_global_norm
        >>> clipping_is_idempotent(clip_by_global_norm(1.0), 1.0, {"w": mx.array([3.0])}) < 1e-5
        True
    """
    once, _ = clip.update(grads, clip.init(grads), grads)
    twice, _ = clip.update(once, clip.init(once), once)
    return close("clipping twice is not clipping once", twice, once, 1e-5 + 2 * EPSILON / limit)


def clipping_commutes_with_scaling(
    make: Callable[[float], Transform], limit: float, grads: Grads, factor: float
) -> float:
    """Scaling gradients and limit scales the result; gradients over the limit keep their direction.

    So the result depends on the unit of the loss in no way but the one that the limit has too.

    Args:
        make: Limit -> the clipping transform.
        limit: The limit.
        grads: Gradients.
        factor: A number > 0.

    Raises:
        LawError: The result is another one.

    Example:
        >>> from mlxfn.transforms import clip_by_global_norm
        >>> grads = {"w": mx.array([3.0, 4.0])}
        >>> clipping_commutes_with_scaling(clip_by_global_norm, 1.0, grads, 2.0) < 1e-5
        True
    """
    norm = float(tree.global_norm(grads))
    # The constant in the denominator does not scale, so it is seen in very small gradients.
    slack = 1e-5 + 2 * EPSILON / max(min(norm, norm * factor), EPSILON)
    by = mx.array(factor)
    scaled = tree.scale(grads, by)
    ours, _ = make(limit * factor).update(scaled, {}, scaled)
    theirs, _ = make(limit).update(grads, {}, grads)
    apart = close(
        "clip(c * limit) of c * g is not c * clip(limit) of g", ours, tree.scale(theirs, by), slack
    )
    if min(norm, norm * factor) > limit:
        again, _ = make(limit).update(scaled, {}, scaled)
        what = "two gradients of one direction, both over the limit, are clipped differently"
        return max(apart, close(what, again, theirs, slack))
    return apart


def lifted_optimizer_equals_its_object(
    tx: Transform,
    make: Callable[[], Any],
    params: Params,
    grads: Sequence[Grads],
    *,
    tolerance: float = 2e-6,
) -> float:
    """A lifted optimizer does over a sequence what the mlx optimizer does to its own state.

    Args:
        tx: The transform.
        make: Builds the mlx optimizer with the same settings, its learning rate included.
        params: Parameters before the first update.
        grads: The gradients of the updates.
        tolerance: Largest difference, as a share of the largest parameter: the object adds its
            step to the parameters directly, the transform as a rounded difference.

    Raises:
        LawError: Parameters or moments differ.

    Example:
        >>> import mlx.optimizers as optim
        >>> from mlxfn.transforms import sgd
        >>> params = {"w": mx.array([1.0])}
        >>> lifted_optimizer_equals_its_object(sgd(0.5), lambda: optim.SGD(0.5), params, [params])
        0.0
    """
    ours, state = trained(tx, params, grads)
    optimizer = make()
    theirs = tree.tree_map(mx.array, params)
    for each in grads:
        theirs = optimizer.apply_gradients(tree.tree_map(mx.array, each), theirs)
    apart = close("the lifted optimizer trains otherwise", ours, theirs, tolerance)
    # Weight decay and second moments of the parameters' own size would carry that rounding on.
    return max(apart, close("its moments differ", state, optimizer.state, 10 * tolerance))


def nonfinite_gradients_change_nothing(
    tx: Transform, params: Params, grads: Sequence[Grads], bad: float
) -> float:
    """A NaN or infinity in any one leaf gives zero updates and keeps the state, bit for bit.

    Args:
        tx: A transform that guards itself, such as ``skip_nonfinite(...)``.
        params: Parameters.
        grads: Gradients of some updates; the last is spoiled in one leaf after the other.
        bad: NaN, infinity or minus infinity.

    Raises:
        LawError: An update or the state changed.

    Example:
        >>> from mlxfn.transforms import adamw, skip_nonfinite
        >>> tx, params = skip_nonfinite(adamw(0.1)), {"w": mx.array([1.0])}
        >>> nonfinite_gradients_change_nothing(tx, params, [params], float("inf"))
        0.0
    """
    params, state = trained(tx, params, grads[:-1])
    flat = tree.flatten(grads[-1])
    for name, leaf in flat.items():
        first = mx.arange(leaf.size).reshape(leaf.shape) == 0
        spoiled = tree.restore(grads[-1], {**flat, name: mx.where(first, bad, leaf)})
        updates, after = tx.update(spoiled, state, params)
        unchanged = apply_updates(params, updates)
        same(f"{bad} in the gradient of {name} changed the parameters", unchanged, params)
        same(f"{bad} in the gradient of {name} changed the state", after, state)
    return 0.0
