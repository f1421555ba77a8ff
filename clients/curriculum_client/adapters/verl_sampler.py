"""Trains with verl 0.7 on what the curriculum picks from the dataset that verl has anyway.

    export CURRICULUM_RUN=math CURRICULUM_SERVER=localhost:50051
    python -m verl.trainer.main_ppo ... \\
        data.sampler.class_path=pkg://curriculum_client.adapters.verl_sampler \\
        data.sampler.class_name=CurriculumSampler \\
        data.dataloader_num_workers=0

The run's prompts are rows of data.train_files, by the id that each row has in extra_info.index, or
wherever `+data.sampler.id_field=` says. Once, with an operator's token if the service has tokens:

    add_prompts(datasets.load_dataset("parquet", data_files="train.parquet", split="train"))

Where every row has its id in a column of its own, say "id", this is the same:

    curriculum prompts add math train.parquet --text-field prompt --domain-field data_source \\
        --id-field id

verl gives every prompt rollout.n attempts, so create the run with that group_size and with
reach_attempt_factor 1. Where its objective names channels, the reward function returns them beside
its score and `+data.sampler.channels=[explanation]` names them.

verl saves a step's checkpoint before the sampler hears of its rewards: a training that is resumed
goes on after that step, whose attempts do not count.

Tried with verl 0.7.1 on Python 3.11, the last that has such samplers; for newer ones see
`curriculum_client.adapters.verl`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import grpc
from verl import DataProto
from verl.experimental.dataset.sampler import AbstractCurriculumSampler

from curriculum_api.channel import bearer, open_channel
from curriculum_api.status import error_from_rpc
from curriculum_api.v1.operator_service_pb2 import AddPromptsRequest
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_api.v1.prompt_pb2 import Prompt
from curriculum_client import Feed, InvalidRequestError, ServedPrompt
from curriculum_client._settings import from_environment
from curriculum_client.adapters import _marks, _process

ID_FIELD = "extra_info.index"
"""Where verl's own preprocessing numbers the rows of a file."""

PROMPTS_PER_CALL = 1000


class CurriculumSampler(AbstractCurriculumSampler):  # type: ignore[misc]
    """The rows of the prompts that the curriculum serves, in epochs as long as the dataset.

    Raises:
        InvalidRequestError: Rows have no ids or share one, or a prompt is served that no row has.
    """

    def __init__(self, data_source: Sized, data_config: Any) -> None:
        self._id_field: str = data_config.sampler.get("id_field", ID_FIELD)
        self._channels: list[str] = list(data_config.sampler.get("channels", ()))
        self._rows = _rows_by_id(data_source, self._id_field)
        batch_size: int = data_config.get("gen_batch_size", data_config.train_batch_size)
        # verl drops the rest of an epoch, which would be leased for nothing.
        self._length = len(data_source) // batch_size * batch_size
        self._yielded_count = 0
        self._leases: dict[str, str] = {}
        # verl wants the next batch as soon as it has reported one.
        self._feed = Feed(_process.client(), batch_size, prefetch=False)
        self._prompts = iter(self._feed)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        while self._yielded_count < self._length:
            served = next(self._prompts)
            self._yielded_count += 1
            self._leases[served.prompt_id] = served.lease
            yield self._row(served)
        self._yielded_count = 0

    def update(self, batch: DataProto) -> None:
        """Report a step's attempts; verl calls this at the end of each step."""
        columns = batch.non_tensor_batch
        ids = [_read(columns, self._id_field, row) for row in range(len(batch))]
        self._feed.report(
            [self._leases.get(prompt_id) for prompt_id in ids],
            batch.batch["token_level_scores"].sum(-1),
            token_counts=batch.batch["response_mask"].sum(-1),
            channels={name: columns[name] for name in self._channels},
        )
        for prompt_id in ids:
            self._leases.pop(prompt_id, None)
        self._feed.policy_step += 1

    def state_dict(self) -> dict[str, Any]:
        """Marks the curriculum, and where to go on; verl keeps it in the checkpoint's data.pt."""
        step = self._feed.policy_step + 1  # this step's weights are saved already
        _marks.add(self._feed.client, step)
        state = self._feed.state_dict(rewind=False)
        return {**state, "policy_step": step, "yielded_count": self._yielded_count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called, with the curriculum as it was there."""
        self._feed.load_state_dict(state)
        self._feed.client.rollback(_marks.name(state["policy_step"]))
        self._yielded_count = state["yielded_count"]
        self._leases.clear()

    def _row(self, served: ServedPrompt) -> int:
        row = self._rows.get(served.prompt_id)
        if row is None:
            raise InvalidRequestError(
                f"data.train_files: no row has {self._id_field}={served.prompt_id!r}, which was "
                "served; the run must hold only rows that verl keeps, see "
                "data.filter_overlong_prompts and data.train_max_samples"
            )
        return row


def add_prompts(rows: Iterable[Mapping[str, Any]], *, id_field: str = ID_FIELD) -> int:
    """Add a dataset's rows to the pool of CURRICULUM_RUN; how many are new to it.

    Repeating it adds only what is missing.

    Args:
        rows: As verl's files have them, with data_source and prompt.
        id_field: Where a row has its id, "column" or "column.key".

    Raises:
        InvalidRequestError: A row has no such field.
        AlreadyExistsError: The pool holds another prompt of the same id.
    """
    named = from_environment(os.environ)
    with open_channel(named["target"], named["tls"]) as channel:
        stub, added_count = OperatorServiceStub(channel), 0
        prompts = (_prompt(row, id_field) for row in rows)
        while chunk := list(itertools.islice(prompts, PROMPTS_PER_CALL)):
            request = AddPromptsRequest(run_id=named["run_id"], prompts=chunk)
            try:
                response = stub.AddPrompts(request, metadata=bearer(named["token"]))
            except grpc.RpcError as error:
                raise error_from_rpc(error) from None
            added_count += response.added_count
    return added_count


def _prompt(row: Mapping[str, Any], id_field: str) -> Prompt:
    text = "\n\n".join(message["content"] for message in row["prompt"])
    return Prompt(
        prompt_id=_read({name: [value] for name, value in row.items()}, id_field, 0),
        domain=row["data_source"],
        text=text,
    )


def _rows_by_id(dataset: Any, id_field: str) -> dict[str, int]:
    column = id_field.partition(".")[0]
    columns = {column: dataset.dataframe[column]} if column in dataset.dataframe.features else {}
    rows: dict[str, int] = {}
    for row in range(len(dataset)):
        prompt_id = _read(columns, id_field, row)
        if (first := rows.setdefault(prompt_id, row)) != row:
            raise InvalidRequestError(
                f"{id_field}={prompt_id!r}: is the id of rows {first} and {row}; "
                "data.sampler.id_field must name a field that tells them apart"
            )
    return rows


def _read(columns: Mapping[str, Any], id_field: str, row: int) -> str:
    column, _, key = id_field.partition(".")
    try:
        value = columns[column][row]
        return str(value[key] if key else value)
    except (KeyError, TypeError):
        raise InvalidRequestError(
            f"data.sampler.id_field={id_field!r}: row {row} has no such field"
        ) from None
