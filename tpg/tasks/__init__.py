"""Tasks: prompts, answer keys and how they are rendered for a policy."""
