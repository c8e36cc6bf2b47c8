"""The parts of `benchmarks.step`: one iteration, here and in TRL."""
