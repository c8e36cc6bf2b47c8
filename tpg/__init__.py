"""tpg: online reinforcement learning of language models from response-level rewards."""

import os

# Worker threads that spin between small kernels starve their neighbours; OpenMP reads this when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
