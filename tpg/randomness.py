"""Random numbers that are functions of what they are for.

Nothing here carries a state from one call to the next. A number depends on the seed, the iteration, the purpose and
the identity of the thing it is drawn for; never on the device, the batch or what ran before. So a resumed run draws
what the uninterrupted one would have drawn, and so does a run on another number of devices.
"""

import hashlib
import struct
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What random numbers are drawn for; each has a stream of its own."""

    PROMPT_ORDER = 1
    TRAINING_ROLLOUT = 2
    EVALUATION_ROLLOUT = 3
    CONTINUATION = 4
    MINIBATCHES = 5
    INITIALIZATION = 6
    LOTS = 8


def key(*identity: int) -> int:
    """A 128-bit key from a tuple of integers (each of at most 64 bits, signed)."""
    packed = struct.pack(f"<{len(identity)}q", *identity)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=16).digest(), "little")


def uniforms(keys: list[int], count: int) -> Tensor:
    """`count` numbers in [0, 1) for each key, float64, shape (len(keys), count).

    The t-th number of a key does not depend on `count`.
    """
    rows = [np.random.Philox(key=key).random_raw(count) for key in keys]
    return torch.from_numpy((np.stack(rows) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def permutation(size: int, *identity: int) -> list[int]:
    """A random order of 0..size-1."""
    return torch.argsort(uniforms([key(*identity)], size)[0], stable=True).tolist()


def torch_seed(*identity: int) -> int:
    """A seed for code that knows only `torch.manual_seed`."""
    return key(*identity) & (2**63 - 1)
