"""Here so that pytest puts this folder on `sys.path`: every test may import `builders`."""
