"""The parts of `benchmarks.gpu_checks`: whether a GPU generates, weighs and trains as float32 on the CPU does."""
