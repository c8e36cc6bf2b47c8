"""What the files held that terms read, so that a run that is continued is rewarded as before."""

import hashlib
from pathlib import Path

PIECES, PIECE = 16, 2**20
"""How many pieces of a large file are read, and their bytes."""
OF_A_MODEL = {".json", ".safetensors", ".jinja", ".txt", ".model"}
"""Endings of what a Hugging Face model is loaded from; its folder may hold notes and logs besides."""


def digest(place: Path) -> str:
    """SHA-256 of what a file holds, or of the names and contents of the files in a model's folder.

    Of a large file its size and 16 MiB, evenly spaced, stand for all of it: training moves weights everywhere.
    """
    whole = hashlib.sha256()
    if place.is_dir():
        for file in sorted(path for path in place.iterdir() if path.suffix in OF_A_MODEL and path.is_file()):
            whole.update(f"{file.name}\0{digest(file)}\n".encode())
        return whole.hexdigest()
    size = place.stat().st_size
    starts = [0] if size <= PIECES * PIECE else [(size - PIECE) * number // (PIECES - 1) for number in range(PIECES)]
    whole.update(f"{size}\n".encode())
    with place.open("rb") as content:
        for start in starts:
            content.seek(start)
            whole.update(content.read(PIECE if len(starts) > 1 else size))
    return whole.hexdigest()
