"""A reward function: it is called with what its parameters name, and returns a number."""


def brevity(response: str, answer: str) -> float:
    """Less for every character that a right response has beside the answer; 0 without the answer."""
    return 1.0 / (1 + len(response) - len(answer)) if answer in response else 0.0
