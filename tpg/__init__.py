"""tpg: online reinforcement learning of language models from response-level rewards."""

import os

# Threads that spin while they wait for work starve their neighbours; threads that sleep at once take longer to wake
# than a small kernel to run. So they spin for some microseconds. OpenMP reads this when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__version__ = "0.1.0"
