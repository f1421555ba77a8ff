"""Where the `curriculum-probe` command starts."""

from curriculum_api.command import run


def main() -> object:
    """Run the command, or say which extra to install."""
    return run(
        "curriculum_probe.cli",
        "curriculum-probe",
        extra="probe",
        third_party_names={"prometheus_client", "reasoning_gym"},
    )
