"""Where the `curriculum-probe` command starts: runs it, or says which extra to install."""

import sys
from collections.abc import Callable

# What the extra installs, as import names; anything else that is missing is a fault of ours.
_INSTALLED_BY_EXTRA = frozenset({"reasoning_gym"})


def main() -> object:
    """Run the command. Its modules are imported late, so that a missing extra can be named."""
    try:
        from curriculum_probe import cli

        run: Callable[[], object] = cli.main
        return run()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _INSTALLED_BY_EXTRA:
            raise
        sys.exit(f"curriculum-probe needs {missing}: pip install 'edge-curriculum[probe]'")
