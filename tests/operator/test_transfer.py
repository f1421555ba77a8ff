"""`curriculum runs export` and `import`: a run in a file, against a real server."""

from __future__ import annotations

import hashlib
import itertools
import json
import zipfile

import grpc
import pytest

from curriculum_api.v1 import operator_service_pb2 as pb
from curriculum_api.v1 import run_pb2
from curriculum_operator import archive, transferring
from tests.operator.conftest import FakeRun, FakeService
from tests.server.driving import RunDriver

_numbers = itertools.count()


@pytest.fixture
def target(server) -> str:
    return server.address


@pytest.fixture
def run(stubs):
    """A small run with counts and a checkpoint."""
    name = f"moved-{next(_numbers)}"
    stubs.create_run(name, run_pb2.RunConfig(window_steps=1))
    stubs.add_prompts(name, 12)
    run = RunDriver(stubs, name)
    for step in range(4):
        run.play(step)
    run.checkpoint("a", 3)
    return run


@pytest.fixture
def file(curriculum, run, tmp_path):
    path = tmp_path / "run.zip"
    curriculum.ok("runs", "export", run.run_id, str(path))
    return path


def rewrite(path, *, drop=(), manifest=None, **contents):
    """Write the file anew with other members; by name, with / for __."""
    contents = {name.replace("__", "/"): content for name, content in contents.items()}
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    described = json.loads(members.pop("manifest.json"))
    members = {n: c for n, c in members.items() if n not in drop} | contents
    members["manifest.json"] = json.dumps(described | (manifest or {})).encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, content in members.items():
            new.writestr(name, content)


def names(run):
    return {state.prompt_id: state.attempt_count for state in run.list().prompts}


def test_a_run_goes_into_a_file_and_out_of_it(curriculum, run, file, stubs):
    said = curriculum.ok("runs", "import", str(file), f"{run.run_id}-b", COLUMNS="200")
    assert said.startswith(f"imported {run.run_id}-b (exported as {run.run_id}): 12 prompts, 4 win")
    other = RunDriver(stubs, f"{run.run_id}-b")
    assert (other.stats(), names(other)) == (run.stats(), names(run))
    assert other.rollback("a").policy_step == 3


def test_a_folder_that_is_missing_is_named(curriculum, run, tmp_path):
    said = curriculum.error("runs", "export", run.run_id, str(tmp_path / "nodir" / "n.zip"))
    assert said == f"error: {tmp_path / 'nodir'}: No such file or directory\n"


def test_without_a_name_a_run_comes_back_under_its_own(curriculum, run, file):
    before = (run.stats(), names(run))
    run.delete()
    curriculum.ok("runs", "import", str(file))
    assert (run.stats(), names(run)) == before


def test_the_file_says_what_it_holds(curriculum, run, file):
    with zipfile.ZipFile(file) as archived:
        manifest = json.loads(archived.read("manifest.json"))
        assert manifest["format"] == "edge-curriculum run"
        assert (manifest["version"], manifest["run_id"]) == (1, run.run_id)
        assert (manifest["prompt_count"], manifest["window_count"]) == (12, 4)
        assert set(archived.namelist()) == {*manifest["members"], "manifest.json"}
        for name, digest in manifest["members"].items():
            assert hashlib.sha256(archived.read(name)).hexdigest() == digest
        # A column can be read with nothing but numpy.
        assert len(archived.read("windows/0/attempts/0")) % 4 == 0


def test_the_json_document_describes_both_ways(curriculum, run, tmp_path):
    path = tmp_path / "run.zip"
    exported = curriculum.json("runs", "export", run.run_id, str(path))
    assert (exported["run_id"], exported["prompt_count"]) == (run.run_id, 12)
    assert exported["file_bytes"] == path.stat().st_size
    assert exported["try_count"] == 1
    imported = curriculum.json("runs", "import", str(path), f"{run.run_id}-b")
    assert imported["run"]["run_id"] == f"{run.run_id}-b"
    assert imported["file"]["member_count"] == exported["member_count"]


def test_a_file_that_is_there_is_replaced_only_by_force(curriculum, run, tmp_path):
    path = tmp_path / "run.zip"
    path.write_text("precious")
    assert "--force replaces it" in curriculum.error("runs", "export", run.run_id, str(path))
    assert path.read_text() == "precious"
    curriculum.ok("runs", "export", run.run_id, str(path), "--force")
    assert zipfile.is_zipfile(path)


def test_what_fails_leaves_no_file_and_not_half_of_one(curriculum, tmp_path):
    path = tmp_path / "run.zip"
    path.write_text("precious")
    assert "no such run" in curriculum.error("runs", "export", "never", str(path), "--force")
    assert [p.name for p in tmp_path.iterdir()] == ["run.zip"]
    assert path.read_text() == "precious"


def test_a_name_that_is_taken_is_refused_before_anything_is_sent(curriculum, run, file):
    message = curriculum.error("runs", "import", str(file))
    assert f"run_id='{run.run_id}': exists; name another one behind the file" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"manifest": {"version": 2}}, "version 2: this program reads"),
        ({"manifest": {"format": "tar"}}, "is 'tar', version 1: this program reads"),
        ({"manifest": {"members": None}}, "manifest.json cannot be read"),
        ({"manifest": {"novelty": 1}}, "manifest.json cannot be read"),
        ({"drop": ["run.json"]}, "run.json is missing"),
        ({"drop": ["windows/0/passes/0"]}, "windows/0/passes/0 is missing"),
        ({"windows__0__passes__0": b"\0\0\0\1"}, "windows/0/passes/0 is damaged: its checksum"),
        ({"windows__9__passes__0": b""}, "windows/9/passes/0 is not in the manifest"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_refused(
    curriculum, run, file, stubs, refused_name, change, said
):
    rewrite(file, **change)
    message = curriculum.error("runs", "import", str(file), refused_name)
    assert said in message
    assert str(file) in message
    assert "nothing was imported" in message


@pytest.fixture
def refused_name(run, raw_keys):
    """A name under which nothing may be left."""
    name = f"{run.run_id}-refused"
    yield name
    assert raw_keys(name) == []


@pytest.fixture
def raw_keys(stubs):
    """What a store has of a run, by the only public way to tell: a look for it."""

    def find(name):
        try:
            return list(stubs.operator.CheckStore(pb.CheckStoreRequest(run_id=name)).findings)
        except grpc.RpcError as error:
            return [] if error.code() is grpc.StatusCode.NOT_FOUND else [error]

    return find


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_a_file_that_was_cut_is_refused(curriculum, file, refused_name, kept):
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    message = curriculum.error("runs", "import", str(file), refused_name)
    assert "is no exported run, or only the beginning of one; nothing was imported" in message


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
def test_a_part_that_claims_another_compression_is_named(curriculum, file, refused_name, method):
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archived:
        part = next(i for i in archived.infolist() if i.filename.startswith("windows/"))
    # The method: 8 bytes into the local header, 10 into the entry of the directory at the end.
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(part.filename.encode()))
    for at in (part.header_offset + 8, entry + 10):
        content[at : at + 2] = method.to_bytes(2, "little")
    file.write_bytes(content)
    message = curriculum.error("runs", "import", str(file), refused_name)
    assert f"{part.filename} is damaged" in message
    assert "nothing was imported" in message


def test_a_flipped_bit_is_noticed_wherever_it_is(curriculum, file, refused_name):
    content = file.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 40)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        result = curriculum("runs", "import", str(file), refused_name)
        if result.exit_code == 0:  # a bit that says nothing, such as a member's date
            curriculum.ok("runs", "delete", refused_name, "--yes")
        else:
            assert "nothing was imported" in result.stderr, (at, result.stderr)


def test_an_import_that_was_interrupted_is_taken_up_again(curriculum, run, file, stubs):
    name = f"{run.run_id}-b"
    with archive.reading(file) as reader:
        part = run_pb2.RunPart(name="run.json", content=reader.read("run.json"))
        request_id = f"file-{reader.digest[:32]}"
    request = pb.ImportRunRequest(run_id=name, request_id=request_id, parts=[part])
    stubs.operator.ImportRun(request)
    curriculum.ok("runs", "import", str(file), name)
    assert RunDriver(stubs, name).stats() == run.stats()


def test_an_import_by_somebody_else_is_in_the_way_until_it_is_deleted(curriculum, run, file, stubs):
    name = f"{run.run_id}-b"
    part = run_pb2.RunPart(name="prompts/0/catalog/0", content=b"{}")
    request = pb.ImportRunRequest(run_id=name, request_id="mine", parts=[part])
    stubs.operator.ImportRun(request)
    assert "is taken by another import" in curriculum.error("runs", "import", str(file), name)
    curriculum.ok("runs", "delete", name, "--yes")
    curriculum.ok("runs", "import", str(file), name)


def test_a_run_in_many_calls_is_moved_like_one_in_few(curriculum, run, monkeypatch, tmp_path):
    monkeypatch.setattr(transferring, "CALL_PARTS", 2)
    path = tmp_path / "run.zip"
    curriculum.ok("runs", "export", run.run_id, str(path))
    curriculum.ok("runs", "import", str(path), f"{run.run_id}-b")


class Changing(FakeService):
    """A service whose run changes during an export, so many times; in between it is away."""

    def __init__(self, change_count):
        super().__init__()
        self.runs["r"] = FakeRun(run_pb2.Run(run_id="r"))
        self.changes_left = change_count
        self.is_away = True

    def ExportRun(self, request, context):
        self._run(request.run_id, context)
        self.is_away = not self.is_away
        if self.is_away:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the store cannot be reached")
        if not request.page_token:
            part = run_pb2.RunPart(name="prompts/0/catalog/0", content=b"{}")
            return pb.ExportRunResponse(parts=[part], next_page_token="more")
        if self.changes_left:
            self.changes_left -= 1
            context.abort(grpc.StatusCode.ABORTED, "its windows changed; begin anew")
        document = {"prompt_count": 3, "windows": [{}, {}]}
        content = json.dumps({"document": document}).encode()
        return pb.ExportRunResponse(parts=[run_pb2.RunPart(name="run.json", content=content)])


def test_an_export_begins_anew_when_the_run_changes(serve, curriculum_at, tmp_path):
    with serve(Changing(3)) as address:
        document = curriculum_at(address).json("runs", "export", "r", str(tmp_path / "r.zip"))
    assert (document["try_count"], document["member_count"]) == (4, 2)


def test_an_export_gives_up_on_a_run_that_changes_all_the_time(serve, curriculum_at, tmp_path):
    with serve(Changing(99)) as address:
        message = curriculum_at(address).error("runs", "export", "r", str(tmp_path / "r.zip"))
    assert "begin anew" in message
    assert "Export while the trainer rests" in message
    assert list(tmp_path.iterdir()) == []
