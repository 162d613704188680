"""Set up what every test relies on: one BLAS, no network, and laws that repeat themselves in CI."""

from __future__ import annotations

import os
import signal

# Whoever starts the tests in the background may have told them to ignore Ctrl-C, and so every
# process that they start; a run leaves a signal that is ignored alone, as it should.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test may reach for the hub: a name that is not on this machine fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest

import mlxfn  # before mlx, which tests import themselves: it loads the fast BLAS

# A first example pays for compilation, so there is no deadline; in CI the same examples run
# every time, so that a red run means a change and not a draw.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True, scope="module")
def _kernels_for_all():
    """Share compiled kernels with the other workers and with processes that tests start."""
    yield
    mlxfn.jit.publish()
