"""What an operator calls."""

from __future__ import annotations

import asyncio
import re

import numpy as np

from curriculum import Band
from curriculum_api.errors import InvalidRequestError
from curriculum_api.limits import MAX_DOMAIN_BYTES, MAX_GROUP_SIZE, MAX_KS, MAX_PROMPT_ID_BYTES
from curriculum_api.v1 import operator_service_pb2 as pb
from curriculum_api.v1 import prompt_pb2, run_pb2, stats_pb2
from curriculum_server import convert, metrics, validate
from curriculum_server.engine import doctor, inspection, lifecycle, transfer
from curriculum_server.engine.config import RunConfig
from curriculum_server.engine.engine import Engine
from curriculum_server.engine.findings import Finding
from curriculum_server.engine.growing import NewPrompt, add_prompts
from curriculum_server.engine.listing import list_page
from curriculum_server.engine.run import Run
from curriculum_server.services.paging import INDEX, decode_token, encode_token
from curriculum_server.wire import prompt_message

DEFAULT_KS = (1, 2, 4, 8)
_EXPORT_POSITION = re.compile(r"[0-9]{1,18}\.[0-9]{1,10}\.[0-9]{1,10}")
_CHECK_POSITION = re.compile(validate.RUN_ID.pattern + r":(?:[0-9]{1,10})?")


class OperatorService:
    """Creates runs, fills their pools and shows how difficulty moves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def CreateRun(self, request: pb.CreateRunRequest) -> pb.CreateRunResponse:
        run_id = validate.run_id(request.run_id)
        config = RunConfig.from_mapping(convert.config_changes(request.config))
        run = await self._engine.create(run_id, config)
        return pb.CreateRunResponse(run=convert.run_message(run_id, run.mirror))

    async def GetRun(self, request: pb.GetRunRequest) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=await self._shown(self._run(request.run_id)))

    async def ListRuns(self, request: pb.ListRunsRequest) -> pb.ListRunsResponse:
        size = validate.page_size(request.page_size)
        after = decode_token(request.page_token, validate.RUN_ID)
        shown, after = await list_page(self._engine.redis, after, size, convert.run_message)
        return pb.ListRunsResponse(runs=shown, next_page_token=encode_token(after))

    async def UpdateRun(self, request: pb.UpdateRunRequest) -> pb.UpdateRunResponse:
        run = self._run(request.run_id)
        await lifecycle.update_config(run, convert.config_changes(request.config))
        return pb.UpdateRunResponse(run=await self._shown(run))

    async def DeleteRun(self, request: pb.DeleteRunRequest) -> pb.DeleteRunResponse:
        await self._engine.delete(validate.run_id(request.run_id))
        metrics.forget_run(request.run_id)
        return pb.DeleteRunResponse()

    async def AddPrompts(self, request: pb.AddPromptsRequest) -> pb.AddPromptsResponse:
        run = self._run(request.run_id)
        prompts: list[NewPrompt] = []
        for piece in validate.prompts(request.prompts):
            prompts += convert.new_prompts(piece)
            await asyncio.sleep(0)
        added = await add_prompts(run, prompts)
        return pb.AddPromptsResponse(
            added_count=added.added_count,
            existing_count=added.existing_count,
            prompt_count=added.prompt_count,
        )

    async def ListPrompts(self, request: pb.ListPromptsRequest) -> pb.ListPromptsResponse:
        run = self._run(request.run_id)
        size = validate.page_size(request.page_size)
        validate.text("domain", request.domain, MAX_DOMAIN_BYTES, empty=True)
        band = _band(request.band) if request.HasField("band") else None
        start = decode_token(request.page_token, INDEX)
        async with run.lock:
            beliefs = await inspection.believe(run)
            found = inspection.matching(beliefs, request.domain, band)
            page = found[found >= int(start or 0)][: size + 1]
            states = list(inspection.prompt_states(beliefs, page[:size]))
        after = str(page[size]) if len(page) > size else ""
        shown = [convert.state_message(state) for state in states]
        return pb.ListPromptsResponse(prompts=shown, next_page_token=encode_token(after))

    async def GetPrompt(self, request: pb.GetPromptRequest) -> pb.GetPromptResponse:
        run = self._run(request.run_id)
        validate.text("prompt_id", request.prompt_id, MAX_PROMPT_ID_BYTES)
        async with run.lock:
            beliefs = await inspection.believe(run)
            index = inspection.find_prompt(run.mirror, request.prompt_id)
            (state,) = inspection.prompt_states(beliefs, np.array([index]))
            points = inspection.history(run.mirror, index)
        return pb.GetPromptResponse(
            prompt=prompt_pb2.Prompt.FromString(prompt_message(run.mirror.catalog.fields[index])),
            state=convert.state_message(state),
            history=[convert.history_message(point) for point in points],
        )

    async def GetStats(self, request: pb.GetStatsRequest) -> pb.GetStatsResponse:
        run = self._run(request.run_id)
        async with run.lock:
            stats = convert.stats_message(await inspection.believe(run))
        return pb.GetStatsResponse(stats=stats)

    async def CompareBoundary(
        self, request: pb.CompareBoundaryRequest
    ) -> pb.CompareBoundaryResponse:
        run = self._run(request.run_id)
        validate.count("len(ks)", len(request.ks), 0, MAX_KS)
        ks = [validate.count("ks", k, 1, MAX_GROUP_SIZE) for k in request.ks] or DEFAULT_KS
        before, after = _steps(request.before), _steps(request.after)
        async with run.lock:
            await run.sync()
            compared = inspection.compare_boundary(run.mirror, before, after, ks)
            return convert.boundary_message(compared, run.mirror.policy_step)

    async def ExportRun(self, request: pb.ExportRunRequest) -> pb.ExportRunResponse:
        run_id = validate.run_id(request.run_id)
        token = decode_token(request.page_token, _EXPORT_POSITION)
        position = transfer.Position.parse(token) if token else None
        page = await transfer.export_page(self._engine.redis, run_id, position)
        return pb.ExportRunResponse(
            parts=[run_pb2.RunPart(name=name, content=content) for name, content in page.parts],
            next_page_token=encode_token(str(page.next or "")),
        )

    async def ImportRun(self, request: pb.ImportRunRequest) -> pb.ImportRunResponse:
        run = self._run(request.run_id)
        parts = [(part.name, part.content) for part in request.parts]
        made = await transfer.import_parts(
            self._engine.redis,
            run.run_id,
            validate.request_id(request.request_id),
            parts,
            commit=request.commit,
        )
        return pb.ImportRunResponse(run=await self._shown(run) if made else None)

    async def CheckStore(self, request: pb.CheckStoreRequest) -> pb.CheckStoreResponse:
        run_id = validate.run_id(request.run_id) if request.run_id else ""
        position = decode_token(request.page_token, _CHECK_POSITION)
        if run_id and position and position.partition(":")[0] != run_id:
            raise InvalidRequestError("page_token: must come from the page before")
        page = await doctor.check_page(self._engine.redis, run_id, position)
        return pb.CheckStoreResponse(
            findings=[_finding(found) for found in page.findings],
            run_ids=page.run_ids,
            store=page.store,
            next_page_token=encode_token(page.position),
        )

    def _run(self, run_id: str) -> Run:
        return self._engine.served(validate.run_id(run_id)).run

    async def _shown(self, run: Run) -> run_pb2.Run:
        async with run.lock:
            await run.sync()
            return convert.run_message(run.run_id, run.mirror)


def _finding(found: Finding) -> run_pb2.StoreFinding:
    return run_pb2.StoreFinding(
        severity=run_pb2.SEVERITY_ERROR if found.is_error else run_pb2.SEVERITY_WARNING,
        kind=found.kind,
        run_id=found.run_id,
        problem=found.problem,
        remedy=found.remedy,
    )


def _steps(message: stats_pb2.StepRange) -> tuple[int, int]:
    return message.first_policy_step, message.last_policy_step


def _band(value: int) -> Band:
    known: dict[int, Band] = {prompt_pb2.Band.Value(f"BAND_{band.name}"): band for band in Band}
    if value not in known:
        raise InvalidRequestError(f"band={value}: must be one of {', '.join(map(str, known))}")
    return known[value]
