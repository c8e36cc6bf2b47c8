"""How processes share a run: who they are, divided models, gradients and optimizer state."""
