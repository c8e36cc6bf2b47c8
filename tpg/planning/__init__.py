"""What a run will need, before it begins: memory by phase, tokens a second, and what to change if it does not fit."""
