"""Tests each adapter with its trainer, in an environment of its own.

    make test-adapters                          # all of them
    make test-adapters ARGS='verl atropos'      # some

An environment is a file in `requirements`: pip's, with lines that pip takes for comments.
`# tests: FILE…` names the tests; `# then: ARGUMENTS` is one more call of `pip install`, in which
`{site}` is the environment's folder of packages.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from tests.environments import ROOT, TOOLS, Environment, torch_first

FOLDER = Path(__file__).parent
REQUIREMENTS = FOLDER / "requirements"


@dataclass(frozen=True)
class Trainer:
    """One environment, by the name of its file."""

    name: str

    def said(self, key: str) -> list[str]:
        """The rest of each line that begins with this key."""
        lines = (REQUIREMENTS / f"{self.name}.txt").read_text().splitlines()
        return [line.removeprefix(f"# {key}:") for line in lines if line.startswith(f"# {key}:")]

    @property
    def tests(self) -> list[Path]:
        """The files that are run there."""
        return [FOLDER / name for line in self.said("tests") for name in line.split()]

    def passes(self, arguments: list[str]) -> bool:
        """Whether they pass; makes the environment if it is new."""
        file = REQUIREMENTS / f"{self.name}.txt"
        folder = ROOT / ".venv-adapters" / self.name
        site = sysconfig.get_path("purelib", vars={"base": str(folder)})
        installs = [
            torch_first(os.environ.get("TORCH_INDEX", "")),
            ["-r", str(file.relative_to(ROOT)), "-e", ".[server]", *TOOLS],
            *(shlex.split(line.format(site=site)) for line in self.said("then")),
        ]
        environment = Environment(folder, installs)
        environment.prepare()
        # Trainers' own warnings are not ours to make errors of.
        options = ["-p", "no:cacheprovider", "-W", "default", "--timeout", "600"]
        return not environment.run("-m", "pytest", *options, *self.tests, *arguments, check=False)


def main() -> int:
    """Test them; 1 if one failed."""
    names = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog="What follows `--` is pytest's."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    chosen = parser.parse_args(arguments[:cut]).names or names
    if unknown := sorted({*chosen} - {*names}):
        parser.error(f"{', '.join(unknown)}: must be of {', '.join(names)}")
    results = {}
    for name in chosen:
        started_s = time.monotonic()
        print(f"==> {name}", flush=True)
        results[name] = Trainer(name).passes(arguments[cut + 1 :])
        word = "passed" if results[name] else "FAILED"
        print(f"==> {name}: {word} in {time.monotonic() - started_s:.0f} s", flush=True)
    print(json.dumps(results))
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
