"""Measurements side by side with other trainers; each module with a `main` is a command."""

import os

# As tpg sets them, for both sides; OpenMP and torch read them when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
