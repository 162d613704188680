"""``mlxfn plan``: will it fit, how long does an update take, and what would be faster or smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import asdict

from mlxfn_cli import args, render
from mlxfn_cli.words import duration, memory

if TYPE_CHECKING:
    from mlxfn.planning import Choice


def plan(
    config: args.ConfigFile = None,
    model: args.Model = None,
    data: args.Data = None,
    settings: args.Settings = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", help="Memory it may take, in GB.", show_default=False),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Load the weights and run one longest update.")
    ] = False,
    json: args.Json = False,
) -> int:
    """Predict memory and time of an update, and find the fastest way to run it that fits.

    The weights need not be there: config.json is enough. With --measure the chosen way is run
    once on rows of the longest length, and told beside the prediction. Exits with 6 when nothing
    fits.

    Example: mlxfn plan my.toml --budget 8
    """
    from mlxfn.assemble import locate
    from mlxfn.models.load import load_skeleton
    from mlxfn.planning import survey

    set_budget = [] if budget is None else [f"memory.budget_gb={budget}"]
    loaded = args.load_config(
        config, model=model, data=data, settings=[*(settings or []), *set_budget]
    ).config

    def base(bits: int | None) -> Any:
        return load_skeleton(
            locate(loaded.model.path, "model"),
            revision=loaded.model.revision,
            dtype=loaded.model.dtype,
            quantize_bits=loaded.model.quantize_bits or bits,
            quantize_group_size=loaded.model.quantize_group_size,
        )

    found = survey(loaded, base)
    measured = None
    if measure and found.best is not None:
        from mlxfn.measure import measure_update

        measured = measure_update(loaded, found.best)
    if json:
        render.json_value({**found.to_dict(), "measured": measured})
    else:
        _show(found.best, found.budget, found.others, measured)
    return 0 if found.best is not None else 6


def _show(
    best: Choice | None, budget: float, others: list[Choice], measured: dict[str, float] | None
) -> None:
    if best is None:
        render.text(f"nothing fits {memory(budget / 1e9)}; the smallest are:")
        render.table(_HEADS, [_row(choice) for choice in others])
        return
    parts = asdict(best.table).items()
    render.table(["memory", "GB"], [[name, f"{size / 1e9:.3f}"] for name, size in parts])
    facts = {
        "peak": f"{memory(best.peak(budget) / 1e9)} of {memory(budget / 1e9)} allowed",
        "update": duration(best.seconds),
        "settings": " ".join(f"--set {line}" for line in settings_of(best)),
    }
    if measured:
        facts["measured"] = (
            f"{memory(measured['peak_gb'])} and {duration(measured['seconds'])} for an update"
        )
    render.facts(facts)
    render.text("")
    render.table(_HEADS, [_row(choice) for choice in others])


_HEADS = ["micro-batch", "bits", "remat", "lean", "peak GB", "s per update"]


def _row(choice: Choice) -> list[str]:
    how = choice.execution
    size = f"{choice.batch_size} x {choice.accumulation}"
    bits = str(choice.bits or "as it is")
    needs = f"{choice.needs() / 1e9:.2f}"
    return [size, bits, str(how.remat), how.lean, needs, f"{choice.seconds:.3g}"]


def settings_of(choice: Choice) -> list[str]:
    """Return the settings that make a run what a choice is, as ``--set`` takes them."""
    lines = [
        f"data.batch_size={choice.batch_size}",
        f"train.gradient_accumulation_steps={choice.accumulation}",
        f"train.remat={choice.execution.remat}",
        f"train.lean={choice.execution.lean}",
    ]
    return lines + ([f"model.quantize_bits={choice.bits}"] if choice.bits else [])
