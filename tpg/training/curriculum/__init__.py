"""Which prompts an iteration draws, and which of their groups it learns from."""
