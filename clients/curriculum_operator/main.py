"""Where the `curriculum` command starts."""

from curriculum_api.command import run


def main() -> object:
    """Run the command, or say which extra to install."""
    return run(
        "curriculum_operator.cli",
        "curriculum",
        extra="operator",
        third_party_names={"click", "rich"},
    )
