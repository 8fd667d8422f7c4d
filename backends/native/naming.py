"""How the native target's output is known."""

from __future__ import annotations

FILE = "model.qd"
"""The one file that the backend writes; it becomes the output itself."""
MAGIC = b"qdeploy\n"
"""What it begins with, by which it is known (the row of the backend says the same)."""
