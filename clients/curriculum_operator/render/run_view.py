"""Runs as a list and one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from curriculum_api.v1.run_pb2 import Channel, Run
from curriculum_operator.render.words import NOTHING, clean, created, short


def runs_view(runs: Sequence[Run]) -> RenderableType:
    if not runs:
        return Text("No runs yet: curriculum runs create RUN", "yellow")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bright_black")
    table.add_column("run", overflow="fold")
    for title in ("prompts", "step", "timeline"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("strategy", no_wrap=True)
    table.add_column("created", no_wrap=True)
    for run in runs:
        table.add_row(
            Text(clean(run.run_id), "bold"),
            short(run.prompt_count),
            f"{run.policy_step:,}",
            f"{run.timeline}",
            Text(clean(run.config.selection.strategy or NOTHING)),
            created(run),
        )
    return table


def run_view(run: Run) -> RenderableType:
    title = Text.assemble(
        (clean(run.run_id), "bold"),
        f"   {run.prompt_count:,} prompts · step {run.policy_step:,} · timeline {run.timeline}",
    )
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("created", created(run))
    if run.HasField("policy"):
        table.add_row("policy", Text(clean(f"step {run.policy.policy_step:,}  {run.policy.uri}")))
    for number, checkpoint in enumerate(run.checkpoints):
        label = "" if number else "checkpoints"
        table.add_row(label, Text(clean(f"{checkpoint.name} at step {checkpoint.policy_step:,}")))
    for key, value in settings(run.config):
        table.add_row(Text(clean(key)), Text(clean(value)))
    return Group(title, Text(), table)


def settings(message: Message, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every field that is set, as it would be assigned on the command line."""
    for field, value in message.ListFields():
        key = f"{prefix}{field.name}"
        if isinstance(value, Duration):
            yield key, f"{value.ToTimedelta().total_seconds():g}s"
        elif isinstance(value, Mapping):
            for name in sorted(value):
                yield f"{key}.{name}", f"{value[name]:g}"
        elif isinstance(value, Message):
            yield from settings(value, f"{key}.")
        elif isinstance(value, float):
            yield key, f"{value:g}"
        elif isinstance(value, bool):
            yield key, f"{value}".lower()
        elif isinstance(value, int | str):
            yield key, f"{value}"
        elif field.message_type is None:
            yield key, json.dumps(list(value), ensure_ascii=False)
        else:
            yield key, ", ".join(_channel(channel) for channel in value)


def _channel(channel: Channel) -> str:
    return f"{channel.name}:{channel.min_value:g}:{channel.max_value:g}"
