"""Models that come with the package, each a folder that `JAIR.save_pretrained` wrote, with its card."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent


def model_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder itself; or, where there is none, that of the model of this name in the package."""
    path = Path(folder)
    shipped = FOLDER / path.name
    named = path == Path(path.name) and (shipped / "config.json").exists()
    return shipped if named and not path.exists() else path
