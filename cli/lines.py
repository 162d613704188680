"""A run in plain text: one line for each event, the same in every pipe and log file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any

from attrs import define

from mlxfn import events
from mlxfn_cli.args import embedded
from mlxfn_cli.words import command, count, duration, memory, one_line, percent, plural, rate

WIDE = 100
"""Characters of a prompt or an answer on one line."""


@define
class Plan:
    """What lines say about the length of the run; known from its start."""

    updates: int = 0


def describe(run: dict[str, Any]) -> dict[str, str]:
    """Return the parts of a run in words, from the description its start carries.

    Args:
        run: ``Start.run``, or what a dry run returns.

    Example:
        >>> describe({"output_dir": "runs/x"})
        {'writes to': 'runs/x'}
    """
    writers: dict[str, tuple[str, Callable[[Any], str]]] = {
        "model": ("model", _model),
        "adapter": ("adapter", _adapter),
        "data": ("data", _data),
        "plan": ("plan", _plan),
        "memory": ("memory", _memory),
        "blas": ("device", str),
        "output_dir": ("writes to", str),
    }
    texts = {name: write(run[key]) for key, (name, write) in writers.items() if run.get(key)}
    return {name: text for name, text in texts.items() if text}


def _model(model: dict[str, Any]) -> str:
    kind = f"{model['bits']}-bit" if model.get("bits") else str(model.get("dtype", ""))
    parts = [model.get("type"), plural(model.get("parameters", 0), "parameter"), kind]
    return f"{_model_name(model['path'])} ({', '.join(str(part) for part in parts if part)})"


def _model_name(path: str) -> str:
    ours = embedded().parent / "default" / "model"
    return "the one that ships with mlxfn" if Path(path) == ours else path


def _adapter(adapter: dict[str, Any]) -> str:
    size = f"{count(adapter['parameters'])} trainable ({percent(adapter['share'])})"
    if adapter["kind"] == "full":
        return f"full: {size}"
    names = {"lora": "LoRA", "dora": "DoRA"}
    targets = ", ".join(adapter["target_modules"])
    shape = f"rank {adapter['rank']}, alpha {adapter['alpha']:g}"
    return f"{names.get(adapter['kind'], adapter['kind'])} {shape} on {targets}: {size}"


def _data(data: dict[str, Any]) -> str:
    return "\n".join(f"{name}: {_split(report)}" for name, report in data.items())


def _split(report: dict[str, Any]) -> str:
    text = f"{plural(report['kept'], 'row')}, {count(report['tokens'])} tokens"
    text += f" ({count(report['label_tokens'])} learned)"
    extra = {
        "truncated": report["truncated"],
        "dropped as too long": report["dropped_overlong"],
        "dropped without a target": report["dropped_no_target"],
    }
    return text + "".join(f", {count(number)} {why}" for why, number in extra.items() if number)


def _plan(plan: dict[str, Any]) -> str:
    packed = plan.get("shapes", {}).get("packs") is not None
    size = f"{plan['batch_size']} × {plan['accumulation']} {'packs' if packed else 'rows'}"
    return (
        f"{plural(plan['updates'], 'update')} of {size} in {plural(plan['epochs'], 'epoch')}, "
        f"{plan['warmup']} of them warmup"
    )


def _memory(estimate: dict[str, Any]) -> str:
    """Return the whole, and the parts that make it up, the largest first."""
    parts = {name[:-3]: size for name, size in estimate.items() if name.endswith("_gb")}
    total, budget = parts.pop("total", 0.0), parts.pop("budget", math.nan)
    if not total:
        return ""
    largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
    named = ", ".join(f"{name} {memory(value)}" for name, value in largest)
    text = f"about {memory(total)} at the peak ({named}, ...)"
    text += "" if math.isnan(budget) else f" of {memory(budget)} allowed"
    recomputed = estimate.get("remat", "none")
    return text if recomputed in {"none", 0} else f"{text}; layers recomputed: {recomputed}"


@singledispatch
def line(event: events.Event, plan: Plan) -> str:
    """Return one line that tells an event.

    Args:
        event: Any event of a run.
        plan: What is known about the run; a start event fills it in.

    Example:
        >>> evaluation = events.Eval(
        ...     update=50, epoch=0, time=0.0, loss=2.5, perplexity=12.18, tokens=900, rows=40,
        ...     time_s=0.4, best=True,
        ... )
        >>> line(evaluation, Plan(updates=150))
        'eval    update 50/150  loss 2.5000  perplexity 12.18  rows 40  best'
    """
    del plan
    return type(event).__name__.lower()


@line.register
def _(event: events.Start, plan: Plan) -> str:
    plan.updates = event.run.get("plan", {}).get("updates", 0)
    word = f"resume  at update {event.update}  " if event.resumed else "start   "
    parts = describe(event.run).items()
    return word + "; ".join(f"{name}: {text}".replace("\n", ", ") for name, text in parts)


@line.register
def _(event: events.Step, plan: Plan) -> str:
    return (
        f"update  {_at(event, plan)}  epoch {event.epoch + 1}  loss {event.loss:.4f}  "
        f"lr {rate(event.lr)}  norm {event.grad_norm:.3f}  "
        f"tok/s {event.real_tokens_per_s:.0f} ({event.tokens_per_s:.0f} learned)  "
        f"memory {memory(event.peak_memory_gb)}"
    )


@line.register
def _(event: events.Eval, plan: Plan) -> str:
    text = f"eval    update {_at(event, plan)}  loss {event.loss:.4f}  "
    text += f"perplexity {event.perplexity:.2f}  rows {event.rows}"
    return text + ("  best" if event.best else "")


@line.register
def _(event: events.Epoch, plan: Plan) -> str:
    del plan
    valid = "" if event.valid_loss is None else f"  valid {event.valid_loss:.4f}"
    return (
        f"epoch   {event.epoch}  train {event.train_loss:.4f}{valid}  in {duration(event.time_s)}"
    )


@line.register
def _(event: events.Save, plan: Plan) -> str:
    return f"save    update {_at(event, plan)}  {event.path}" + ("  best" if event.best else "")


@line.register
def _(event: events.Verdict, plan: Plan) -> str:
    return f"warning update {_at(event, plan)}  {event.kind}: {one_line(event.message)}"


@line.register
def _(event: events.Sample, plan: Plan) -> str:
    del plan
    return (
        f"sample  {event.when}  {one_line(event.prompt, WIDE)!r} -> {one_line(event.text, WIDE)!r}"
    )


@line.register
def _(event: events.End, plan: Plan) -> str:
    result = event.result
    text = f"end     {event.reason}  update {_at(event, plan)}"
    if result.get("first_valid_loss") is not None and result.get("best_loss") is not None:
        text += f"  valid {result['first_valid_loss']:.4f} -> {result['best_loss']:.4f}"
    text += f"  in {duration(result.get('total_time_s', 0.0))}  {result.get('run_dir', '')}"
    return text.rstrip()


def _at(event: events.Event, plan: Plan) -> str:
    return f"{event.update}/{plan.updates}" if plan.updates else str(event.update)


def resume_command(run_dir: str) -> str:
    """Return the command that continues the run in a directory.

    Example:
        >>> resume_command("runs/default")
        'mlxfn train runs/default/config.toml --resume'
    """
    return command("mlxfn", "train", f"{run_dir}/config.toml", "--resume")


def next_commands(result: Mapping[str, Any], model: str, prompt: str) -> list[str]:
    """Return what to try after a run.

    Args:
        result: The report of the run.
        model: Folder or hub name of the base model, for mlx-lm.
        prompt: A prompt that suits the data.

    Example:
        >>> next_commands({"run_dir": "runs/x", "final_path": None}, "m", "Hi")
        ['mlxfn generate runs/x --compare --prompt Hi', 'mlxfn eval runs/x']
    """
    run = result["run_dir"]
    commands = [
        command("mlxfn", "generate", run, "--compare", "--prompt", prompt),
        command("mlxfn", "eval", run),
    ]
    adapters = result.get("best_path") or result.get("final_path")
    if adapters and model:
        generate = ("mlx_lm.generate", "--model", model, "--adapter-path", adapters)
        commands.append(command(*generate, "--prompt", prompt))
    return commands
