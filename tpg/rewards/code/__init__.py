"""Python that a policy wrote, run against a dataset's tests in a process that can do no harm."""
