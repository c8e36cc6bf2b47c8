"""What comes before reinforcement learning: supervised training, and reward models from preferences."""
