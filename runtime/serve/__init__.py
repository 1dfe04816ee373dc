"""The HTTP door and the worker process behind it; see ``python -m runtime.serve --help``."""
