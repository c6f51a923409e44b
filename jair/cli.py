"""The command `jair`; its parts are in `jair.commands`, which needs the extra "models"."""

from __future__ import annotations

import sys

from jair.encoders import optional_import


def main() -> None:
    """Run a command; what a user can put right is one line, not a traceback."""
    try:
        for name in ("typer", "transformers"):
            optional_import(name)
        from jair.commands import app

        app()
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"jair: {error}", file=sys.stderr)
        sys.exit(1)
