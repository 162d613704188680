"""Pretrains the tiny Llama with PyTorch and writes a Hugging Face folder.

The model is written out here (RMSNorm, rotary positions, grouped-query attention, SwiGLU,
tied embeddings) with the parameter names of transformers, so that export is a rename-free dump.
"""

import math
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

Array = torch.Tensor
Config = dict[str, Any]


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        d, self.h, self.kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
        self.d = d // self.h
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, self.kv * self.d, bias=False)
        self.v_proj = nn.Linear(d, self.kv * self.d, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Array, cos: Array, sin: Array) -> Array:  # x [B, T, D]
        """Return the mixed values [B, T, D]."""
        b, t, _ = x.shape
        q = rotate(self.q_proj(x).view(b, t, self.h, self.d).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(b, t, self.kv, self.d).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(b, t, self.kv, self.d).transpose(1, 2)
        k, v = (a.repeat_interleave(self.h // self.kv, 1) for a in (k, v))
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Apply rotary positions, first half of x [B, H, T, d] against its second half."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Norm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Array) -> Array:
        """Return x [B, T, D] scaled to unit root mean square."""
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight).to(x.dtype)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        d, f = c["hidden_size"], c["intermediate_size"]
        self.gate_proj = nn.Linear(d, f, bias=False)
        self.up_proj = nn.Linear(d, f, bias=False)
        self.down_proj = nn.Linear(f, d, bias=False)

    def forward(self, x: Array) -> Array:
        """Return the update of the residual stream [B, T, D]."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(c), Mlp(c)
        self.input_layernorm = Norm(c["hidden_size"])
        self.post_attention_layernorm = Norm(c["hidden_size"])

    def forward(self, x: Array, cos: Array, sin: Array) -> Array:
        """Return the residual stream [B, T, D] after the layer."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The whole model."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"])
        for name, p in self.named_parameters():
            if p.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(
                    p, std=0.04 / math.sqrt(2 * c["num_hidden_layers"]) if last else 0.04
                )

    def forward(self, ids: Array) -> Array:
        """Return logits [B, T, V] of ids int64 [B, T]."""
        half = self.c["hidden_size"] // self.c["num_attention_heads"] // 2
        rates = 10000.0 ** (-torch.arange(half, device=ids.device) / half)
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * rates
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return functional.linear(self.norm(x), self.embed_tokens.weight)


def config(vocab_size: int, *, hidden: int, layers: int, heads: int, kv: int, ff: int) -> Config:
    """Return the `config.json` of the folder."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab_size,
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "intermediate_size": ff, "max_position_embeddings": 512,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 5, "torch_dtype": "float16",
    }  # fmt: skip


class Loss(nn.Module):
    """Mean negative log-likelihood of the next token of windows int64 [B, T + 1]."""

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Array) -> Array:
        """Return the loss of all windows."""
        logits = self.model(ids[:, :-1]).float().flatten(0, 1)
        return functional.cross_entropy(logits, ids[:, 1:].flatten())


class Windows:
    """Random windows int64 [B, T]: half of them text, half chat from the start of an exchange."""

    def __init__(self, data: dict[str, np.ndarray], rows: int, length: int, device: str) -> None:
        self.text = torch.from_numpy(data["text"].astype(np.int32)).to(device)
        self.chat = torch.from_numpy(data["chat"].astype(np.int32)).to(device)
        starts = data["starts"][data["starts"] < len(data["chat"]) - length]
        self.starts = torch.from_numpy(starts).to(device)
        self.span = torch.arange(length, device=device)
        self.rows, self.device = rows // 2, device

    def draw(self) -> Array:
        """Return the next batch."""
        size = (self.rows, 1)
        at = torch.randint(len(self.text) - len(self.span), size, device=self.device)
        text = self.text[at + self.span]
        text[:, 0] = 0  # every window of text opens with <|begin|>
        chosen = torch.randint(len(self.starts), size, device=self.device)
        return torch.cat((text, self.chat[self.starts[chosen] + self.span])).long()


def optimizer(model: nn.Module, peak: float, device: str) -> torch.optim.AdamW:
    """Return AdamW that decays matrices only."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.dim() != 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=device == "cuda")


def pretrain(
    c: Config,
    data: dict[str, np.ndarray],
    *,
    seconds: float,
    device: str,
    peak: float = 3e-3,
    rows: int = 128,
) -> Llama:
    """Train with a cosine that follows the clock, so that the time given is the time taken."""
    torch.manual_seed(0)
    model = Llama(c).to(device)
    windows = Windows(data, rows, 257, device)
    opt = optimizer(model, peak, device)
    cuda = device == "cuda"
    loss_fn = torch.compile(Loss(model), mode="reduce-overhead") if cuda else Loss(model)
    update, share, started = 0, 0.0, time.time()
    while share < 1:
        cosine = 0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2
        for group in opt.param_groups:
            group["lr"] = peak * min(1, (update + 1) / 300) * cosine
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            ids = windows.draw()
            if cuda:
                torch.compiler.cudagraph_mark_step_begin()
            loss = loss_fn(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if update == 10:
            started = time.time()  # compiling does not count
        share = (time.time() - started) / seconds if update > 10 else 0.0
        if update % 1000 == 0:
            print(f"update {update} share {share:.3f} loss {loss.item():.3f}", flush=True)
        update += 1
    print(f"{update} updates of {rows * 256} tokens, loss {loss.item():.3f}", flush=True)
    return model
