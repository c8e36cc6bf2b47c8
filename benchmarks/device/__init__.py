"""The parts of `benchmarks.gpu`: an iteration on a GPU, and whether it computes the same."""
