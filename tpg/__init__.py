"""tpg: online reinforcement learning of language models from response-level rewards."""

import os

# Threads that spin while they wait for work starve their neighbours; threads that sleep at once take longer to wake
# than a small kernel to run. So they spin for some microseconds. OpenMP reads this when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# Activations are allocated anew in every pass, and a first touch of 4 KiB at a time costs an update 5 % and more of its
# time. Torch asks for pages of 2 MiB instead, where the system grants them; it reads this at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
