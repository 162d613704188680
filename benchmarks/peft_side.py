"""PyTorch's side of ``against_peft.py``: transformers and PEFT on the same rows, in their own Python.

It is started with the interpreter of ``--python`` and imports nothing of mlxfn. The folder it is
given holds the model, the batches, the adapter's initial values and the settings; it answers with
one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main(room: Path) -> dict[str, Any]:
    """Train on the batches in a folder and say what it took."""
    begin = time.perf_counter()
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = json.loads((room / "settings.json").read_text())
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(room / "model", dtype=torch.float32)
    rank = settings["rank"]
    lora = LoraConfig(r=rank, lora_alpha=settings["scale"] * rank, lora_dropout=0.0,
                      target_modules=settings["targets"])  # fmt: skip
    model = get_peft_model(model, lora)
    start_alike(model, np.load(room / "start.npz"), torch)
    trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=settings["rate"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
    )
    batches = np.load(room / "batches.npz")
    losses, times, cpu_times = [], [], []
    ready = time.perf_counter() - begin
    for number in range(settings["updates"]):
        start, cpu_start = time.perf_counter(), time.process_time()
        tokens = torch.from_numpy(batches[f"tokens{number}"]).long()
        labels = torch.from_numpy(batches[f"labels{number}"]).long()
        mask = torch.from_numpy(batches[f"segments{number}"]).long().clamp(max=1)
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    return {"losses": losses, "times": times, "cpu_times": cpu_times, "ready_s": ready}


def start_alike(model: Any, start: Any, torch: Any) -> None:
    """Give every adapter layer the values that mlxfn's starts with; its B is zero on both sides."""
    found = 0
    for name, leaf in model.named_parameters():
        if ".lora_A." not in name:
            continue
        path = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
        with torch.no_grad():
            leaf.copy_(torch.from_numpy(start[f"{path}.lora_a"].T.copy()))
        found += 1
    if found != len([name for name in start.files if name.endswith(".lora_a")]):
        sys.exit("the two adapters do not have the same layers")


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
