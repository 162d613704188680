"""Damaged and forged checkpoints without end, for the decoder to refuse."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import sys
import time
from collections import Counter
from typing import Any

from mlxfn.checkpoint import npz
from mlxfn.checkpoint.codec import decode, encode, inspect, snapshot
from mlxfn.checkpoint.npz import Spec
from mlxfn.errors import CheckpointError
from tests.support.states import small_state

TEMPLATE = small_state()
GOOD = encode(snapshot(TEMPLATE), {"note": "fuzz"})
_CONTENTS = inspect(GOOD)
_ODD = [0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 1.5, 1e308, True, None, "", "../x", [], {}, [[]],
        "float32", "object", {"a": 1}, [0], "\0", "\ud800", "params.w"]  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return a file with up to eight of its stretches changed, moved, left out or doubled."""
    body = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        start = rng.randrange(len(body) + 1)
        end = min(len(body), start + rng.choice([1, 2, 4, 8, 64, 512]))
        kind = rng.randrange(5)
        if kind == 0:
            body[start:end] = rng.randbytes(end - start)
        elif kind == 1:
            del body[start:end]
        elif kind == 2:
            body[start:start] = body[start:end]
        elif kind == 3:
            body[start:end] = rng.choice([b"\0", b"\xff"]) * (end - start)
        elif start < len(body):
            body[start] ^= 1 << rng.randrange(8)
    return bytes(body)


def forge(rng: random.Random) -> bytes:
    """Return a file with the right digest and layout whose manifest has odd values in it."""
    manifest = json.loads(json.dumps(_CONTENTS.manifest))
    for _ in range(rng.randint(1, 3)):
        _spoil(manifest, rng)
    raw = json.dumps(manifest, separators=(",", ":")).encode()
    arrays: list[tuple[Spec, memoryview]] = [(s, c) for s, _, c in _CONTENTS.arrays.values()]
    if rng.random() < 0.1:
        rng.shuffle(arrays)
    return b"".join(npz.write(raw, arrays))


def _spoil(node: Any, rng: random.Random) -> None:
    """Replace, remove or add one value somewhere in a JSON value."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    if not keys:
        return
    key = rng.choice(keys)
    if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
        _spoil(node[key], rng)
    elif rng.random() < 0.2:
        del node[key]
    elif rng.random() < 0.2 and isinstance(node, dict):
        node[rng.choice(["x", "", "../x", "step"])] = copy.deepcopy(rng.choice(_ODD))
    else:
        node[key] = copy.deepcopy(rng.choice(_ODD))


def seal(body: bytes) -> bytes:
    """Put the right digest at the end of a file."""
    return body[:-64] + hashlib.sha256(body[:-64]).hexdigest().encode()


def fuzz(count: int, *, seed: int) -> dict[str, Any]:
    """Decode so many hostile files; whatever else than a refusal comes out of it is raised.

    Returns:
        How many were refused, how many of them behind the digest, and the longest time of one.
    """
    rng, tally, longest = random.Random(seed), Counter[str](), 0.0
    for _ in range(count):
        kind = rng.randrange(4)
        data = forge(rng) if kind == 0 else mutate(GOOD, rng)
        data = seal(data) if kind in {1, 2} else data
        begun = time.perf_counter()
        try:
            state, manifest = decode(data, TEMPLATE)
        except CheckpointError as error:
            tally["refused"] += 1
            tally["refused behind the digest"] += "checksum" not in error.what
        else:
            # A manifest may say other things of the run and be whole: what a forger may write
            # are values of the right kind, and they come back as they were written.
            again = encode(snapshot(state), manifest["meta"])
            if again != data:
                raise AssertionError("what was read is not what was in the file")
            tally["the same"] += 1
        longest = max(longest, time.perf_counter() - begun)
    return {**tally, "longest_s": longest}


if __name__ == "__main__":
    print(json.dumps({"campaign": "fuzz", **fuzz(int(sys.argv[1]), seed=int(sys.argv[2]))}))
