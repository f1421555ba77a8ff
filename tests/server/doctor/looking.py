"""What the doctor finds, and doing what it says."""

from __future__ import annotations

import re
import shlex

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import run_pb2

ERROR, WARNING = run_pb2.SEVERITY_ERROR, run_pb2.SEVERITY_WARNING


def look(stubs, run_id=""):
    found, token = [], ""
    while True:
        request = op.CheckStoreRequest(run_id=run_id, page_token=token)
        page = stubs.operator.CheckStore(request)
        found += page.findings
        token = page.next_page_token
        if not token:
            return found


def kinds(findings):
    return {finding.kind for finding in findings}


def mend(store, findings):
    """Run the commands that the findings give, as one would in redis-cli or valkey-cli."""
    for finding in findings:
        commands = re.findall(r"`([^`]+)`", finding.remedy)
        assert commands, finding.remedy
        for command in commands:
            words = [word.encode() for word in shlex.split(command)]
            escaped = re.compile(rb"\\x([0-9a-f]{2})")
            store.execute_command(
                *(escaped.sub(lambda m: bytes.fromhex(m[1].decode()), word) for word in words)
            )
