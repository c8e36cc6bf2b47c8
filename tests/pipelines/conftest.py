"""These tests use what those of training do."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "training"))
