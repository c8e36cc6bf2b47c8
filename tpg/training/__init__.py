"""Training: the Lightning module, its experience, and what a run leaves behind."""
