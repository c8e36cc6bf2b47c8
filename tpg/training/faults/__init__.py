"""What goes wrong in a run and does not end it, or ends it in one line."""
