"""Responses token by token: what a run recorded of them, in the terminal and as HTML."""
