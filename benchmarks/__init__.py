"""Measurements side by side with other trainers; each module with a `main` is a command."""

import os

# As tpg sets them, for both sides; OpenMP reads them when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
