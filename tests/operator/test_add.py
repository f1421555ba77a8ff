"""`curriculum prompts add` with JSON Lines, through a real server."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path

import pytest

from curriculum_api.v1.prompt_pb2 import Prompt
from curriculum_operator import loading

NO_PATIENCE = ("--patience", "0")


def problems(count: int) -> list[dict[str, object]]:
    return [{"text": f"What is {n} + {n}?", "domain": "sums", "answer": n} for n in range(count)]


def pool(service, run_id: str = "math") -> dict[str, Prompt]:
    return service.runs[run_id].prompts


def test_fields_land_where_the_contract_has_them(curriculum, service, math, write_lines):
    path = write_lines(
        {
            "prompt_id": "p1",
            "text": "2 + 2?",
            "domain": "sums",
            "payload": {"verifier": "exact"},
            "tags": ["easy"],
            "features": {"digits": 1, "other": None},
            "answer": 4,
        }
    )
    curriculum.ok("prompts", "add", math, path)
    assert pool(service)["p1"] == Prompt(
        prompt_id="p1",
        text="2 + 2?",
        domain="sums",
        payload_json='{"verifier":"exact","answer":4}',
        tags=["easy"],
        features={"digits": 1.0},
    )


def test_other_field_names_can_be_given(curriculum, service, math, write_lines):
    path = write_lines(
        {"uid": 7, "question": "2 + 2?", "kind": "sums", "labels": ["a"], "rate": 0.5, "id": "x"}
    )
    curriculum.ok(
        *("prompts", "add", math, path, "--id-field", "uid", "--text-field", "question"),
        *("--domain-field", "kind", "--tags-field", "labels", "--feature-field", "rate"),
    )
    prompt = pool(service)["7"]
    assert (prompt.text, prompt.domain, list(prompt.tags)) == ("2 + 2?", "sums", ["a"])
    assert dict(prompt.features) == {"rate": 0.5}
    assert json.loads(prompt.payload_json) == {"id": "x"}


def test_a_domain_option_is_for_records_whose_domain_field_is_absent(
    curriculum, service, math, write_lines
):
    path = write_lines({"id": "a", "text": "q", "kind": "k"}, {"id": "b", "text": "q"})
    fields = ("--domain-field", "kind")
    said = curriculum.error("prompts", "add", math, path, *fields)
    assert "line 2: kind is missing; --domain NAME is that of records without one" in said
    curriculum.ok("prompts", "add", math, path, *fields, "--domain", "d")
    assert [prompt.domain for prompt in pool(service).values()] == ["k", "d"]


def test_chat_messages_become_text_and_stay_in_the_payload(curriculum, service, math, write_lines):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    path = write_lines({"id": "p1", "prompt": messages})
    curriculum.ok("prompts", "add", math, path, "--domain", "sums")
    prompt = pool(service)["p1"]
    assert prompt.text == "Be brief.\n\n2 + 2?"
    assert json.loads(prompt.payload_json) == {"messages": messages}


def test_a_repeated_add_adds_nothing(curriculum, service, math, write_lines):
    path = write_lines(*problems(25))
    first = curriculum.json("prompts", "add", math, path, "--batch", "10")
    before = dict(pool(service))
    second = curriculum.json("prompts", "add", math, path)
    assert (first["added_count"], first["existing_count"], first["pool_count"]) == (25, 0, 25)
    assert (second["added_count"], second["existing_count"], second["pool_count"]) == (0, 25, 25)
    assert pool(service) == before
    assert service.add_sizes == [10, 10, 5, 25]


def test_an_id_from_content_does_not_depend_on_the_order_of_keys(
    curriculum, service, math, write_lines
):
    path = write_lines(
        '{"text": "q", "domain": "d", "a": 1, "b": [2]}',
        '{"b": [2], "a": 1, "domain": "d", "prompt": "q"}',
    )
    assert curriculum.json("prompts", "add", math, path)["collapsed_count"] == 1
    # printf '["d","q",{"a":1,"b":[2]}]' | sha256sum | cut -c1-32
    # A literal, because pools out there hold such ids.
    assert list(pool(service)) == ["d18a4c7e7b285d74d73b782d56db0fbd"]


BAD_LINES = [
    ('{"text": "q", "domain": "d"', "is not JSON at column"),
    ('["text"]', "must be an object, is ['text']"),
    ('{"domain": "d"}', "text or prompt is missing"),
    ('{"text": "", "domain": "d"}', "text is empty"),
    ('{"text": 3, "domain": "d"}', "text=3: must be text or a list of messages"),
    ('{"text": [{"role": "user"}], "domain": "d"}', "the message {'role': 'user'} must be"),
    ('{"text": "q"}', "domain is missing; --domain NAME is that of records without one"),
    ('{"text": "q", "domain": 5}', "domain=5: must be text"),
    ('{"text": "q", "domain": "' + "d" * 129 + '"}', "has 129 bytes, must have 1 to 128"),
    ('{"text": "q", "domain": "d", "id": ""}', "prompt_id='': has 0 bytes, must have 1 to 256"),
    ('{"text": "q", "domain": "d", "id": true}', "prompt_id=True: must be text"),
    ('{"text": "q", "domain": "d", "tags": "t"}', "tags='t': must be a list"),
    ('{"text": "q", "domain": "d", "tags": [""]}', "tags='': has 0 bytes"),
    ('{"text": "q", "domain": "d", "features": {"x": "1"}}', "features.x='1': must be a number"),
    ('{"text": "q", "domain": "d", "features": {"x": true}}', "features.x=True: must be a number"),
    ('{"text": "q", "domain": "d", "features": {"x": 1e999}}', "features.x=inf: must be finite"),
    ('{"text": "q", "domain": "d", "payload": [1]}', "payload=[1]: must be an object"),
    ('{"text": "q", "domain": "d", "payload": "{"}', "payload='{': text must hold a JSON object"),
    ('{"text": "q", "domain": "d", "payload": {"a": 1}, "a": 2}', "a: is a field of the record"),
    ('{"text": "q", "domain": "d", "x": NaN}', "NaN is not a JSON number"),
    ('{"text": "\\ud800", "domain": "d"}', "is not valid Unicode"),
    ('{"text": "' + "q" * 262_145 + '", "domain": "d"}', "have 262145 bytes; at most 262144"),
    ('{"text": "q", "domain": "d", "x": ' + "[" * 200_000 + "}", "is nested too deeply"),
]


@pytest.mark.parametrize(("line", "said"), BAD_LINES, ids=[said for _, said in BAD_LINES])
def test_a_bad_line_is_named_and_nothing_is_sent(
    curriculum, service, math, write_lines, line, said
):
    path = write_lines(*problems(3), "", line, *problems(2))
    message = curriculum.error("prompts", "add", math, path, "--batch", "1")
    assert "1 bad line; nothing was sent" in message
    assert "\n  line 5: " in message
    assert said in message
    assert not service.add_sizes


def test_bytes_that_are_not_utf8_are_named(curriculum, service, math, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"text": "\xff", "domain": "d"}\n')
    said = curriculum.error("prompts", "add", math, str(path))
    assert "line 1: is not UTF-8 at byte 11" in said


def test_twenty_bad_lines_are_named_and_the_rest_counted(curriculum, math, write_lines):
    said = curriculum.error("prompts", "add", math, write_lines(*["{}"] * 57))
    assert said.count("\n  line ") == 20
    assert "57 bad lines" in said
    assert said.endswith("and 37 more\n")


def test_one_id_with_two_contents_names_both_lines(curriculum, service, math, write_lines):
    path = write_lines(
        {"id": "a", "text": "q", "domain": "d"},
        {"id": "b", "text": "q", "domain": "d"},
        {"id": "a", "text": "other", "domain": "d"},
    )
    said = curriculum.error("prompts", "add", math, path)
    assert "line 3: prompt_id='a' is also that of line 1, with other content" in said
    assert not service.add_sizes


def test_exact_repeats_collapse_and_are_counted(curriculum, service, math, write_lines):
    path = write_lines(*problems(3), *problems(2), *problems(3))
    summary = curriculum.json("prompts", "add", math, path, "--batch", "2")
    assert (summary["record_count"], summary["collapsed_count"]) == (8, 5)
    assert (summary["added_count"], len(pool(service))) == (3, 3)


def test_a_dry_run_needs_no_server(curriculum_at, write_lines):
    lost = curriculum_at("localhost:1")
    path = write_lines(*problems(4))
    assert "nothing sent: 4 good prompts in 1 domain" in lost.ok(
        "prompts", "add", "math", path, "--dry-run"
    )
    assert "bad line" in lost.error("prompts", "add", "m", write_lines("{}"), "--dry-run")


def test_a_missing_run_shows_before_the_source_is_read(curriculum, write_lines):
    assert "no such run" in curriculum.error("prompts", "add", "no", write_lines("bad"))


def test_stdin_is_a_source(curriculum, service, math):
    lines = "\n".join(json.dumps(record) for record in problems(5))
    assert curriculum.json("prompts", "add", math, "-", stdin=lines)["added_count"] == 5
    assert len(pool(service)) == 5


def test_a_gzipped_file_with_a_byte_order_mark_is_a_source(curriculum, math, tmp_path):
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "q", "domain": "d"}\n'))
    assert curriculum.json("prompts", "add", math, str(path))["added_count"] == 1
    path.write_bytes(path.read_bytes()[:-9])
    assert "broken gzip" in curriculum.error("prompts", "add", math, str(path))


@pytest.mark.parametrize("records", [[], [""]])
def test_an_empty_source_is_an_error(curriculum, math, write_lines, records):
    assert "the source is empty" in curriculum.error("prompts", "add", math, write_lines(*records))


def test_an_unknown_source_is_refused_with_what_is_allowed(curriculum, math, tmp_path):
    (tmp_path / "x.csv").write_text("a")
    said = curriculum.error("prompts", "add", math, str(tmp_path / "x.csv"))
    assert "unknown kind of file; allowed are FILE.jsonl" in said
    said = curriculum.error("prompts", "add", math, str(tmp_path / "no.jsonl"))
    assert "no such file" in said
    assert "save_to_disk" in curriculum.error("prompts", "add", math, str(tmp_path))


def test_calls_stay_below_the_size_of_a_message(curriculum, service, math, write_lines):
    big = [{"id": str(n), "text": "x" * 250_000, "domain": "d"} for n in range(70)]
    curriculum.ok("prompts", "add", math, write_lines(*big))
    assert service.add_sizes == [33, 33, 4]  # 33 of 250,0xx bytes are just below 8 MiB


def test_a_conflict_with_the_pool_says_how_far_it_got(curriculum, service, math, write_lines):
    curriculum.ok("prompts", "add", math, write_lines({"id": "3", "text": "q", "domain": "d"}))
    path = write_lines(*({"id": str(n), "text": "other", "domain": "d"} for n in range(6)))
    said = curriculum.error("prompts", "add", math, path, "--batch", "2")
    assert "prompt_id=3: is there with other content" in said
    assert "2 of 6 prompts were sent. What a pool holds of a prompt is fixed, tags, feat" in said
    assert "another id, or a new run." in said
    assert "continues" not in said
    assert sorted(pool(service)) == ["0", "1", "3"]


def test_a_load_resumes_after_the_server_died_half_way(service, serve, curriculum_at, write_lines):
    path = write_lines(*problems(50))
    with serve(service) as address:
        curriculum_at(address).ok("runs", "create", "math")
        service.calls_until_away = 3
        said = curriculum_at(address).error(
            "prompts", "add", "math", path, "--batch", "10", *NO_PATIENCE
        )
    assert "30 of 50 prompts were sent; the same command continues" in said
    assert len(pool(service)) == 30
    service.calls_until_away = None
    with serve(service) as address:
        again = curriculum_at(address).json("prompts", "add", "math", path, "--batch", "10")
    assert (again["added_count"], again["existing_count"], again["pool_count"]) == (20, 30, 50)


def test_a_short_absence_is_waited_out(curriculum, service, math, write_lines):
    service.calls_until_away = 1
    timer = threading.Timer(0.3, lambda: setattr(service, "calls_until_away", None))
    timer.start()
    path = write_lines(*problems(20))
    summary = curriculum.json("prompts", "add", math, path, "--batch", "10")
    timer.join()
    assert (summary["added_count"], summary["retried_call_count"]) == (20, 1)


def test_a_lost_answer_is_repeated_and_said(curriculum, service, math, write_lines):
    service.lose_next_answer = True
    said = curriculum.ok("prompts", "add", math, write_lines(*problems(5)))
    assert "0 added, 5 already there" in said
    assert "1 call repeated" in said
    assert len(pool(service)) == 5


def test_ctrl_c_says_how_far_it_got(curriculum, service, math, write_lines, monkeypatch):
    batches = loading.batches

    def interrupted(items, max_count):
        yield next(batches(items, max_count))
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "batches", interrupted)
    path = write_lines(*problems(30))
    said = curriculum.error("prompts", "add", math, path, "--batch", "10", code=130)
    assert "10 of 30 prompts were sent; the same command continues" in said


def test_a_source_that_changes_after_the_check_is_noticed(
    curriculum, service, math, write_lines, monkeypatch
):
    path = write_lines(*problems(3))
    checked = loading.survey

    def survey_then_change(*args):
        surveyed = checked(*args)
        Path(path).write_text(json.dumps({"text": "new", "domain": "d"}) + "\n")
        return surveyed

    monkeypatch.setattr("curriculum_operator.commands.add.survey", survey_then_change)
    said = curriculum.error("prompts", "add", math, path)
    assert "line 1 changed after it was checked\n0 of 3 prompts were sent.\n" in said
    assert not service.add_sizes
