"""What the README shows is what runs."""

import re
from pathlib import Path

from curriculum_api.v1 import operator_service_pb2 as op

README = Path(__file__).parents[1] / "README.md"


def test_the_trainer_loop_of_the_readme_runs_and_its_outcomes_are_counted(server, new_run, capsys):
    (loop,) = re.findall(r"<!-- executed .*?```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(loop.strip().splitlines()) <= 17
    run_id = new_run(1000)
    loop = loop.replace("localhost:50051", server.address).replace('"math"', repr(run_id))
    exec(compile(loop, str(README), "exec"), {"__name__": "readme"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"step {n}" for n in range(10)]
    stats = server.stubs.operator.GetStats(op.GetStatsRequest(run_id=run_id)).stats
    assert stats.policy_step == 9
    assert stats.group_count == 10 * 32
    assert stats.attempt_count >= 8 * stats.group_count
    # Every attempt passes with probability 1/2: a group is all alike with probability 2/256.
    assert stats.mixed_group_count > 300
