"""The parts of `benchmarks.learning`: the way to a reward, here and in TRL."""
