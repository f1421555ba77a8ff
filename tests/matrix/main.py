"""Runs the trainer's client with the oldest and the newest of what it may meet.

    make test-matrix                           # every Python from 3.11 to 3.13 that is there
    make test-matrix ARGS='--python 3.13'

In each environment, which has the base install and nothing newer than it says, the client's own
tests run, and a client works through its whole interface with a server of the present code.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.environments import ROOT, TOOLS, Environment
from tests.server.processes import ServerProcess

PYTHONS = ("3.11", "3.12", "3.13")
PROTOBUFS = ("5.29.*", "6.31.*", "6.33.*", "7.*")
GRPCIOS = ("1.67.1", "")
"""The oldest that has the calls of the generated code, and the newest."""

# Those that need no service of their own; the others' fixtures come from the server's packages.
NAMES = (
    "attempts batches buffering connections environment fake fallback faults feed feed_copies "
    "lookahead reports resume retries"
)
TESTS = [f"tests/client/test_{name}.py" for name in NAMES.split()]


def main() -> int:
    """Run them all; 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", action="append", choices=PYTHONS, help="only this one")
    parser.add_argument("--quick", action="store_true", help="the oldest and the newest only")
    options = parser.parse_args()
    found = [name for name in options.python or PYTHONS if runs(f"python{name}")]
    for missing in sorted({*PYTHONS} - {*found}):
        print(f"==> Python {missing}: left out; there is python{missing} on the PATH")
    failed = []
    with served() as address:
        cells = [
            (python, protobuf, grpcio)
            for python in found
            for protobuf in PROTOBUFS
            for grpcio in GRPCIOS
        ]
        if options.quick:
            cells = [cells[0], cells[-1]]
        for number, cell in enumerate(cells, start=1):
            name = describe(*cell)
            print(f"==> {number} of {len(cells)}: {name}", flush=True)
            if not works(cell, address, run_id=f"matrix-{number}"):
                failed.append(name)
    print(f"{len(cells) - len(failed)} of {len(cells)} pass", *failed, sep="\n  failed: ")
    print(json.dumps({"passed": len(cells) - len(failed), "failed": failed}))
    return 1 if failed or not cells else 0


def runs(command: str) -> bool:
    """Whether it is there; some version managers leave a command that only says that it is not."""
    path = shutil.which(command)
    return bool(path) and not subprocess.run([path, "-c", ""], capture_output=True).returncode


def describe(python: str, protobuf: str, grpcio: str) -> str:
    """One cell in words."""
    return f"Python {python}, protobuf {protobuf}, grpcio {grpcio or 'newest'}"


def works(cell: tuple[str, str, str], address: str, *, run_id: str) -> bool:
    """Whether the tests and the walk pass in this environment."""
    python, protobuf, grpcio = cell
    name = f"{python}-protobuf-{protobuf}-grpcio-{grpcio or 'newest'}".replace(".*", "")
    wanted = [f"protobuf=={protobuf}", f"grpcio=={grpcio}" if grpcio else "grpcio"]
    environment = Environment(
        ROOT / ".venv-matrix" / name, [["-e", ".", *wanted, *TOOLS]], f"python{python}"
    )
    environment.prepare()
    # Files of pytest's own would be of another Python's; and the tests' root wants the server.
    pytest = ["-m", "pytest", "-p", "no:cacheprovider", "--confcutdir", "tests/client", *TESTS]
    codes = [
        environment.run(*pytest, check=False),
        environment.run("tests/matrix/walk.py", address, run_id, check=False),
    ]
    return not any(codes)


@contextmanager
def served() -> Iterator[str]:
    """A server of the present code, with a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--listen=127.0.0.1:0", "--metrics=off", f"--data-dir={folder}"]
        server = ServerProcess(*flags)
        try:
            yield server.wait_until_serving().address
        finally:
            server.close()


if __name__ == "__main__":
    sys.exit(main())
