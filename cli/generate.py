"""``mlxfn generate``: what the model of a run answers, beside what its base answers."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxfn_cli import args, render


def generate(
    run: args.Run,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to ask.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws.")] = 0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show the answer of the untrained base beside it.")
    ] = False,
    checkpoint: args.Checkpoint = args.Which.best,
    json: args.Json = False,
) -> None:
    """Let the model of a run answer a prompt.

    Example: mlxfn generate runs/default --prompt "Punctuate: how do you do" --compare
    """
    from mlxfn.models.generate import generate as answer
    from mlxfn.reopen import reopen

    finished = reopen(run, checkpoint=checkpoint.value)
    sides = {"base": None, "tuned": finished.adapter} if compare else {"tuned": finished.adapter}
    texts = {
        name: answer(
            finished.model,
            adapter,
            finished.params if adapter else None,
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        for name, adapter in sides.items()
    }
    if json:
        render.json_value({"prompt": prompt, **texts})
    else:
        render.answers(texts)
