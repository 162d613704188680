"""Fine-tuning is a fold: a pure, compiled step over an immutable state."""

from mlxfn import blas, jit

# A fast BLAS and a private compile cache work only when they are there before mlx.core loads.
blas.setup()
jit.setup()
