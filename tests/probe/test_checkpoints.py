"""Published weights that are there, half there or not there."""

from __future__ import annotations

import json
import struct

import pytest

from curriculum_probe.engines import CheckpointError
from curriculum_probe.engines.checkpoints import whole_checkpoint


def write(path, shapes, lacking=0):
    """A safetensors file of 32-bit zeros, without its last bytes."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header).encode()
    content = struct.pack("<Q", len(head)) + head + bytes(end)
    path.write_bytes(content[: len(content) - lacking])


def write_index(folder, **shards):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
def test_a_whole_file_tells_its_shapes(tmp_path, form) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    write(folder / "model.safetensors", {"x": [2, 3], "y": [1, 1]})
    uri = form.format(str(folder).replace(" ", "%20") if "file" in form else folder)
    found = whole_checkpoint(uri)
    assert found.folder == folder
    assert found.shapes == {"x": (2, 3), "y": (1, 1)}


def test_shards_belong_together(tmp_path) -> None:
    write(tmp_path / "1.safetensors", {"x": [2, 3]})
    write(tmp_path / "2.safetensors", {"y": [1, 1]})
    write_index(tmp_path, x="1.safetensors", y="2.safetensors")
    assert whole_checkpoint(str(tmp_path)).shapes == {"x": (2, 3), "y": (1, 1)}
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"2\.safetensors: No such file"):
        whole_checkpoint(str(tmp_path))


@pytest.mark.parametrize("lacking", [1, 24, 30, 150])
def test_a_half_written_file_is_told(tmp_path, lacking) -> None:
    write(tmp_path / "model.safetensors", {"x": [2, 3]}, lacking)
    with pytest.raises(CheckpointError, match="half-written or damaged"):
        whole_checkpoint(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 99, struct.pack("<Q", 2) + b"[]"])
def test_something_else_is_told(tmp_path, content) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="half-written or damaged"):
        whole_checkpoint(str(tmp_path))


def test_a_half_written_index_is_told(tmp_path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x"')
    with pytest.raises(CheckpointError, match="half-written or damaged"):
        whole_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/nowhere/step-7", "/nowhere/step-7/model.safetensors: No such file"),
        ("", "must be an absolute path"),
        ("step-7", "must be an absolute path"),
        ("s3://bucket/step-7", "must be a folder that can be read from here"),
        ("file://elsewhere/step-7", "must be a folder that can be read from here"),
    ],
)
def test_a_place_without_weights_is_told(uri, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        whole_checkpoint(uri)


def test_another_models_weights_are_told(tmp_path) -> None:
    for name, shapes in {
        "a": {"x": [2, 3], "lm_head.weight": [1, 1]},
        "b": {"x": [2, 3], "more": [1, 1]},
        "c": {"x": [3, 2]},
        "d": {"y": [2, 3]},
    }.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "model.safetensors", shapes)
    a, b, c, d = (whole_checkpoint(str(tmp_path / name)) for name in "abcd")
    b.check_like(a)
    with pytest.raises(CheckpointError, match=r"x is \(3, 2\), not \(2, 3\)"):
        c.check_like(a)
    with pytest.raises(CheckpointError, match="x is missing"):
        d.check_like(a)
