"""`curriculum prompts add` from Parquet, Hugging Face datasets and reasoning-gym."""

from __future__ import annotations

import datetime
import json
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reasoning_gym

from curriculum_api.errors import InvalidRequestError
from curriculum_operator.sources import gym

ROWS = {
    "id": ["a", "b", "c"],
    "question": ["1 + 1?", "2 + 2?", "3 + 3?"],
    "answer": ["2", "4", "6"],
    "meta": [{"level": 1}, {"level": None}, {"level": 3}],
    "tags": [["x"], [], ["y", "z"]],
}
TEXT_AND_DOMAIN = ("--text-field", "question", "--domain", "sums")


def payloads(service) -> list[dict[str, object]]:
    return [json.loads(p.payload_json) for p in service.runs["math"].prompts.values()]


def test_parquet_rows_are_records(curriculum, service, math, tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table(ROWS | {"day": [datetime.date(2025, 1, 2)] * 3}), path)
    summary = curriculum.json("prompts", "add", math, str(path), *TEXT_AND_DOMAIN)
    assert summary["added_count"] == 3
    assert payloads(service)[2] == {"answer": "6", "meta": {"level": 3}, "day": "2025-01-02"}
    assert list(service.runs["math"].prompts["c"].tags) == ["y", "z"]
    again = curriculum.json("prompts", "add", math, str(path), *TEXT_AND_DOMAIN)
    assert (again["added_count"], again["existing_count"]) == (0, 3)


def test_a_parquet_column_that_json_cannot_hold_is_named(curriculum, service, math, tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"text": ["q"], "domain": ["d"], "image": [b"\x00"]}), path)
    said = curriculum.error("prompts", "add", math, str(path))
    assert "row 0: image holds bytes, which JSON cannot; drop the column" in said
    path.write_bytes(b"no parquet")
    assert "not a Parquet file" in curriculum.error("prompts", "add", math, str(path))


def test_a_missing_library_names_the_extra(curriculum, math, tmp_path, monkeypatch):
    path = tmp_path / "p.parquet"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    said = curriculum.error("prompts", "add", math, str(path))
    assert "pip install 'edge-curriculum[parquet]'" in said


def test_a_saved_hugging_face_dataset_is_a_source(curriculum, service, math, tmp_path):
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict(ROWS)
    rows.save_to_disk(tmp_path / "one")
    curriculum.ok("prompts", "add", math, str(tmp_path / "one"), *TEXT_AND_DOMAIN)
    assert sorted(service.runs["math"].prompts) == ["a", "b", "c"]
    assert payloads(service)[0] == {"answer": "2", "meta": {"level": 1}}

    splits = datasets.DatasetDict(train=rows.select([0, 1]), test=rows.select([2]))
    splits.save_to_disk(tmp_path / "two")
    said = curriculum.error("prompts", "add", math, str(tmp_path / "two"), *TEXT_AND_DOMAIN)
    assert "has 2 splits; name one: " in said
    assert str(tmp_path / "two" / "train") in said
    train = str(tmp_path / "two" / "train")
    summary = curriculum.json("prompts", "add", math, train, *TEXT_AND_DOMAIN)
    assert summary["existing_count"] == 2


def test_generated_prompts_carry_what_the_verifier_needs(curriculum, service, math):
    # word_ladder draws from sets, so it is repeatable only under a fixed hash seed.
    source = "reasoning-gym:basic_arithmetic,word_ladder?size=4&seed=3"
    summary = curriculum.json("prompts", "add", math, source)
    assert summary["prompt_count_by_domain"] == {"basic_arithmetic": 4, "word_ladder": 4}
    prompts = service.runs["math"].prompts.values()
    for prompt, payload in zip(prompts, payloads(service), strict=True):
        assert payload["verifier"] == "reasoning_gym"
        assert payload["task"] == prompt.domain
        entry = payload["entry"]
        assert entry["question"] == prompt.text
        verifier = reasoning_gym.get_score_answer_fn(payload["task"])
        assert verifier(entry["answer"], entry) == 1.0
    arithmetic = next(iter(prompts))
    assert set(arithmetic.features) == {"num_terms", "num_digits"}
    again = curriculum.json("prompts", "add", math, source)
    assert (again["added_count"], again["existing_count"]) == (0, 8)


def generated(query: str) -> list[dict[str, object]]:
    """In this process, which saves the start of a child."""
    return list(gym.entries(gym.GymSpec.parse(f"reasoning-gym:basic_arithmetic?{query}")))


def test_a_tasks_parameters_are_kept_for_its_verifier():
    (record,) = generated("size=1&max_terms=3&allow_negation=False&whitespace=random")
    assert record["payload"]["config"] == {
        "max_terms": 3,
        "allow_negation": False,
        "whitespace": "random",
    }
    assert "config" not in generated("size=1")[0]["payload"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("nonsense=1", "nonsense: basic_arithmetic has no such field; allowed are size, seed, al"),
        ("max_terms=many", "max_terms=many: must be a number"),
        ("allow_negation=1", "allow_negation=1: must be true or false"),
        ("operators=x", "operators=x: must be a JSON list"),
        ("max_terms=0", "basic_arithmetic refuses {'max_terms': 0}"),
    ],
)
def test_a_bad_parameter_of_a_task_is_refused_by_name(query, said):
    with pytest.raises(InvalidRequestError) as caught:
        generated(query)
    assert said in str(caught.value)


def test_the_same_question_under_a_neighbouring_seed_is_the_same_prompt():
    assert generated("size=2&seed=5")[1] == generated("size=1&seed=6")[0]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("reasoning-gym:", "name each task once"),
        ("reasoning-gym:a,a", "name each task once"),
        ("reasoning-gym:a?size=0", "size=0: must be a whole number, at least 1"),
        ("reasoning-gym:a?seed=x", "seed=x: must be a whole number, at least 0"),
        ("reasoning-gym:a?size", "write parameters as name=value"),
        ("reasoning-gym:a?size=1&size=2", "a parameter is given twice"),
    ],
)
def test_a_malformed_generator_is_refused(curriculum, math, source, said):
    assert said in curriculum.error("prompts", "add", math, source)


def test_an_unknown_task_is_refused_with_the_allowed_ones(curriculum, math):
    said = curriculum.error("prompts", "add", math, "reasoning-gym:no_such_task")
    assert "task=no_such_task: unknown; allowed are ab, " in said


def test_a_generated_source_takes_no_field_options(curriculum, math):
    curriculum.error("prompts", "add", math, "reasoning-gym:ab", "--domain", "d", code=2)


def test_difficulty_is_the_entrys_own_number_else_its_range():
    metadata = {
        "num_terms": 3,
        "difficulty": {"num_terms": (2, 6), "value": (1, 9), "p": 0.25, "ops": ["+"], "flag": True},
    }
    assert gym.difficulty_features(metadata) == {
        "num_terms": 3.0,
        "value_min": 1.0,
        "value_max": 9.0,
        "p": 0.25,
    }
    assert gym.difficulty_features({"difficulty": 1.5}) == {"difficulty": 1.5}
    assert gym.difficulty_features({}) == {}
