"""The bias and variance of what a config trains: exactly in small worlds, and by measurement on the policy."""
