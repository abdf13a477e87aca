"""A pickle that a safe loader refuses."""

from pathlib import Path


class Foreign:
    """A pickle that would create a file while it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)
