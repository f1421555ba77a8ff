"""How a command starts: it runs, or says which extra to install."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Set


def run(module: str, command: str, *, extra: str, third_party_names: Set[str]) -> object:
    """Run the module's `main`. The module is imported late, so that a missing extra can be named.

    Args:
        third_party_names: What the extra installs, as import names; anything else that is missing
            is a fault of ours.
    """
    try:
        return importlib.import_module(module).main()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in third_party_names:
            raise
        sys.exit(f"{command} needs {missing}: pip install 'edge-curriculum[{extra}]'")
