"""What the commands share: a side's process and its protocol, machines, models, least times."""
