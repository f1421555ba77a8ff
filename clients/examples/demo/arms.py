"""Trains the arms side by side: one process each, since one core is what a tiny model can use."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import cast

import quiet
import torch
from train import History, Plan, train_arm


def train_arms(
    plan: Plan, run_ids: Sequence[str], on_step: Callable[[str, History], None]
) -> dict[str, History]:
    """The history of each run, after telling `on_step` of each while it grew."""
    context = multiprocessing.get_context("spawn")  # a fork would copy gRPC's and torch's threads
    processes, pipes = [], dict[Connection, str]()
    for run_id in run_ids:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_train, args=(plan, run_id, sender), daemon=True)
        process.start()
        sender.close()  # so that the receiver sees the end when the process has ended
        processes.append(process)
        pipes[receiver] = run_id
    histories: dict[str, History] = {}
    while pipes:
        for ready in wait(list(pipes)):
            receiver = cast(Connection, ready)
            try:
                history: History = receiver.recv()
            except EOFError:
                del pipes[receiver]
                continue
            run_id = pipes[receiver]
            on_step(run_id, history)
            if history.is_complete:
                histories[run_id] = history
    for process in processes:
        process.join()
    if missing := set(run_ids) - set(histories):
        raise RuntimeError(f"training of {', '.join(sorted(missing))} failed; see above")
    return {run_id: histories[run_id] for run_id in run_ids}


def _train(plan: Plan, run_id: str, sender: Connection) -> None:
    quiet.hush()
    torch.set_num_threads(1)
    try:
        sender.send(train_arm(plan, run_id, sender.send))
    finally:
        sender.close()
