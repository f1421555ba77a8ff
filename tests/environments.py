"""Environments of their own for tests whose packages cannot live with the development's."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout")
PIP_OPTIONS = ("--disable-pip-version-check", "--no-input")

NOT_INHERITED = ("PYTHONPATH", "GRPC_ENABLE_FORK_SUPPORT")
"""What is set for this process; the latter by the server's package, where it is imported."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment that is made when it is first wanted, and anew when it changes.

    Args:
        folder: Where it is.
        installs: What pip installs, one call after the other.
        interpreter: The Python that it is made with.
    """

    folder: Path
    installs: Sequence[Sequence[str]]
    interpreter: str = sys.executable

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def prepare(self) -> None:
        """Make it, unless it is there.

        Raises:
            subprocess.CalledProcessError: A package cannot be installed; pip has said why.
        """
        content = [
            self.interpreter,
            *map(list, self.installs),
            (ROOT / "pyproject.toml").read_text(),
        ]
        digest = hashlib.sha256(repr(content).encode()).hexdigest()
        stamp = self.folder / ".installed"
        if stamp.exists() and stamp.read_text() == digest:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        print(f"==> {self.folder.relative_to(ROOT)}: a new environment", flush=True)
        subprocess.run([self.interpreter, "-m", "venv", self.folder], check=True)
        for arguments in self.installs:
            self.run("-m", "pip", *PIP_OPTIONS, "install", "-qq", *arguments)
        stamp.write_text(digest)

    def run(self, *arguments: str | Path, check: bool = True) -> int:
        """Run its Python in the project's folder, with nothing of the caller's; the exit code."""
        environment = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
        command = [self.python, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, check=check).returncode


def torch_first(index: str = "") -> list[str]:
    """What installs the PyTorch of constraints.txt: first, or pip may choose another build."""
    [pin] = [
        line
        for line in (ROOT / "constraints.txt").read_text().split()
        if line.startswith("torch==")
    ]
    return [pin, *(["--extra-index-url", index] if index else [])]
