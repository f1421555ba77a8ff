"""`curriculum prompts add` of what describes prompts: tags, features and embeddings."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def added(service, run_id="math"):
    return service.runs[run_id].prompts


def record(number, **fields):
    return {"id": f"p{number}", "text": f"{number}?", "domain": "sums"} | fields


def test_a_line_may_have_tags_features_and_an_embedding(curriculum, service, math, write_lines):
    path = write_lines(
        record(1, tags=["easy"], features={"rate": 0.5}, embedding=[0.25, -1, 3e4]),
        record(2, embedding=None),
        record(3, embedding=[]),
    )
    curriculum.ok("prompts", "add", math, path)
    first, *others = added(service).values()
    assert (list(first.tags), dict(first.features)) == (["easy"], {"rate": 0.5})
    assert list(first.embedding) == [0.25, -1.0, 3e4]
    assert [list(prompt.embedding) for prompt in others] == [[], []]
    assert {prompt.payload_json for prompt in added(service).values()} == {""}


def test_an_embedding_may_have_another_name(curriculum, service, math, write_lines):
    path = write_lines(record(1, vector=[1.0, 2.0], embedding="kept"))
    curriculum.ok("prompts", "add", math, path, "--embedding-field", "vector")
    assert list(added(service)["p1"].embedding) == [1.0, 2.0]
    assert added(service)["p1"].payload_json == '{"embedding":"kept"}'


@pytest.mark.parametrize(
    "kind", ["id", "text", "domain", "tags", "payload", "embedding", "feature"]
)
def test_a_named_field_that_no_record_has_is_refused(curriculum, service, math, write_lines, kind):
    path = write_lines(record(1), record(2, nosuch=None, rate=1))
    option = f"--{kind}-field"
    said = curriculum.error("prompts", "add", math, path, option, "nosuch")
    assert said == (
        f"error: {option} nosuch: no line has it; line 1 has id, text, domain; nothing was sent\n"
    )
    assert not service.add_sizes


def test_a_named_field_may_be_missing_from_some_records(curriculum, service, math, write_lines):
    path = write_lines(record(1), record(2, rate=0.5, vector=[1.0]))
    fields = ("--feature-field", "rate", "--embedding-field", "vector")
    curriculum.ok("prompts", "add", math, path, *fields)
    assert dict(added(service)["p2"].features) == {"rate": 0.5}
    said = curriculum.error("prompts", "add", math, path, *fields, "--feature-field", "rat")
    assert "--feature-field rat: no line has it" in said


def test_an_add_says_how_many_prompts_are_described(curriculum, math, write_lines):
    path = write_lines(
        record(1, tags=["t"], features={"x": 0}),
        record(2, embedding=[1.0]),
        record(2, embedding=[1.0]),
        record(3, tags=[], features={}, embedding=[]),
    )
    said = "of the 3: 1 with features, 1 with tags, 1 with an embedding\n"
    assert curriculum.ok("prompts", "add", math, path, "--dry-run").endswith(said)
    assert curriculum.ok("prompts", "add", math, path).endswith(said)
    document = curriculum.json("prompts", "add", math, path)
    counts = [document[f"with_{word}_count"] for word in ("features", "tags", "embedding")]
    assert counts == [1, 1, 1]


def columns(count, length):
    """Rows as a column file has them; the second lacks what a row may lack."""
    vectors = np.sin(np.arange(count * length)).astype(np.float32).reshape(count, length)
    return {
        "id": [f"p{n}" for n in range(count)],
        "text": [f"{n}?" for n in range(count)],
        "domain": ["sums"] * count,
        "rate": [None if n == 1 else n / count for n in range(count)],
        "embedding": [None if n == 1 else vector.tolist() for n, vector in enumerate(vectors)],
    }, vectors


@pytest.mark.parametrize("kind", ["parquet", "hugging face"])
def test_columns_of_single_precision_are_embeddings(curriculum, service, math, tmp_path, kind):
    rows, vectors = columns(4, 48)
    path = tmp_path / "p.parquet"
    if kind == "parquet":
        values = pa.array(rows["embedding"], pa.list_(pa.float32(), 48))
        pq.write_table(pa.table(rows | {"embedding": values}), path)
    else:
        path = tmp_path / "saved"
        datasets.Dataset.from_dict(rows).save_to_disk(path)
    curriculum.ok("prompts", "add", math, str(path), "--feature-field", "rate")
    prompts = list(added(service).values())
    assert [dict(prompt.features) for prompt in prompts] == [
        {"rate": 0.0},
        {},
        {"rate": 0.5},
        {"rate": 0.75},
    ]
    assert not prompts[1].embedding
    for n in (0, 2, 3):
        np.testing.assert_array_equal(np.float32(prompts[n].embedding), vectors[n])
    again = curriculum.json("prompts", "add", math, str(path), "--feature-field", "rate")
    assert (again["added_count"], again["existing_count"]) == (0, 4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"embedding": "0.5"}, "embedding='0.5': must be a list of numbers"),
        ({"embedding": {"x": 1}}, "embedding={'x': 1}: must be a list of numbers"),
        ({"embedding": [1, "x"]}, "embedding[1]='x': must be a number in [-65504, 65504]"),
        ({"embedding": [True]}, "embedding[0]=True: must be a number in"),
        ({"embedding": [0, 70_000]}, "embedding[1]=70000: must be a number in"),
        ({"embedding": [1, None]}, "embedding[1]=None: must be a number in"),
        ({"embedding": [0.5] * 4097}, "embedding: 4097 numbers; at most 4096"),
        ({"embedding": [1, 2]}, "embedding has 2 numbers; those before have 3"),
        ({"features": {"f" * 65: 1}}, "has 65 bytes, must have 1 to 64"),
        ({"features": {"": 1}}, "features='': has 0 bytes, must have 1 to 64"),
    ],
)
def test_a_bad_description_is_named_and_nothing_is_sent(
    curriculum, service, math, write_lines, fields, said
):
    path = write_lines(record(1, embedding=[1, 2, 3]), record(2, **fields))
    message = curriculum.error("prompts", "add", math, path)
    assert "\n  line 2: " in message
    assert said in message
    assert not service.add_sizes


def test_infinite_numbers_are_no_embedding(curriculum, math, write_lines):
    path = write_lines('{"text": "q", "domain": "d", "embedding": [1e999]}')
    assert "embedding[0]=inf: must be" in curriculum.error("prompts", "add", math, path)


def test_the_embedding_makes_no_other_prompt_but_may_not_differ(
    curriculum, service, math, write_lines
):
    plain = {"text": "q", "domain": "d"}
    curriculum.ok("prompts", "add", math, write_lines(plain))
    known = set(added(service))
    path = write_lines(plain | {"embedding": [1.0]}, plain | {"embedding": [2.0]}, name="two.jsonl")
    said = curriculum.error("prompts", "add", math, path)
    assert f"prompt_id={known.pop()!r} is also that of line 1, with other content" in said
    repeated = write_lines(*[record(1, embedding=[1.0])] * 2, name="same.jsonl")
    assert curriculum.json("prompts", "add", math, repeated)["collapsed_count"] == 1


def test_calls_with_embeddings_stay_below_the_size_of_a_message(
    curriculum, service, math, write_lines
):
    vector = [0.5] * 4096
    path = write_lines(*(record(n, embedding=vector) for n in range(520)))
    curriculum.ok("prompts", "add", math, path)
    assert service.add_sizes == [511, 9]  # 511 of 16,4xx bytes are just below 8 MiB


class TestAgainstTheServer:
    """The same commands, to the service itself."""

    @pytest.fixture
    def target(self, server):
        return server.address

    def test_embeddings_are_kept_and_compared(self, curriculum, stubs, write_lines):
        run_id = "described-by-file"
        stubs.create_run(run_id)
        lines = [record(n, embedding=[n / 3, -n / 7], tags=["t"]) for n in range(20)]
        path = write_lines(*lines)
        assert curriculum.json("prompts", "add", run_id, path)["added_count"] == 20
        again = curriculum.json("prompts", "add", run_id, path)
        assert (again["added_count"], again["existing_count"]) == (0, 20)
        lines[3]["embedding"] = [9.0, 9.0]
        said = curriculum.error("prompts", "add", run_id, write_lines(*lines, name="o.jsonl"))
        assert "prompt_id='p3': is in the pool with other content" in said
        longer = write_lines(record(99, embedding=[1.0, 2.0, 3.0]), name="l.jsonl")
        said = curriculum.error("prompts", "add", run_id, longer)
        assert "3 numbers of prompt_id='p99': must be 2" in said
