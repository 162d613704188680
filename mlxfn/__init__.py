"""Fine-tuning is a fold: a pure, compiled step over an immutable state."""

from mlxfn import blas, jit, scheduling

# These work only when they are there before mlx.core loads, or before it first evaluates.
blas.setup()
jit.setup()
scheduling.setup()

from mlxfn.config import Config  # noqa: E402
from mlxfn.configfile import load as load_config  # noqa: E402
from mlxfn.data.cursor import Loader, to_device  # noqa: E402
from mlxfn.data.encode import EncodeOptions  # noqa: E402
from mlxfn.data.prepare import encode_splits  # noqa: E402
from mlxfn.evaluate import Evaluation, make_evaluate  # noqa: E402
from mlxfn.losses import (  # noqa: E402
    causal_lm_loss,
    chunked_causal_lm_loss,
    chunked_cross_entropy,
    cross_entropy,
)
from mlxfn.models.adapter import Adapter  # noqa: E402
from mlxfn.models.export import export_fused, export_mlx_lm  # noqa: E402
from mlxfn.models.generate import generate  # noqa: E402
from mlxfn.models.load import load_model  # noqa: E402
from mlxfn.models.lora import dora, full, lora  # noqa: E402
from mlxfn.models.model import Model  # noqa: E402
from mlxfn.models.peft import export_peft  # noqa: E402
from mlxfn.run import train  # noqa: E402
from mlxfn.state import IGNORED, Batch, RunState, StepMetrics, TrainState, Weighted  # noqa: E402
from mlxfn.step import Step, init_state, make_step  # noqa: E402
from mlxfn.transforms import (  # noqa: E402
    Transform,
    accumulate,
    adafactor,
    adam,
    adamw,
    adjustable_rate,
    apply_updates,
    chain,
    clip_by_global_norm,
    constant,
    identity,
    lift,
    lion,
    muon,
    partition,
    scale_by,
    sgd,
    skip_nonfinite,
    warmup_constant,
    warmup_cosine,
    warmup_linear,
)

__all__ = [
    "IGNORED",
    "Adapter",
    "Batch",
    "Config",
    "EncodeOptions",
    "Evaluation",
    "Loader",
    "Model",
    "RunState",
    "Step",
    "StepMetrics",
    "TrainState",
    "Transform",
    "Weighted",
    "accumulate",
    "adafactor",
    "adam",
    "adamw",
    "adjustable_rate",
    "apply_updates",
    "causal_lm_loss",
    "chain",
    "chunked_causal_lm_loss",
    "chunked_cross_entropy",
    "clip_by_global_norm",
    "constant",
    "cross_entropy",
    "dora",
    "encode_splits",
    "export_fused",
    "export_mlx_lm",
    "export_peft",
    "full",
    "generate",
    "identity",
    "init_state",
    "lift",
    "lion",
    "load_config",
    "load_model",
    "lora",
    "make_evaluate",
    "make_step",
    "muon",
    "partition",
    "scale_by",
    "sgd",
    "skip_nonfinite",
    "to_device",
    "train",
    "warmup_constant",
    "warmup_cosine",
    "warmup_linear",
]
