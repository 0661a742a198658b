import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from pipeline.tracking.lines import append_line, older_part, prune_run_logs, read_lines
from pipeline.tracking.secrets import clean, without_secrets


def write_many(path, who):
    for number in range(200):
        append_line(path, json.dumps({"who": who, "number": number}), 1 << 20)


def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "a.jsonl"
    context = get_context("fork")
    workers = [context.Process(target=write_many, args=(path, who)) for who in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = read_lines(path)
    assert len(found) == 600
    for who in range(3):
        assert [one["number"] for one in found if one["who"] == who] == list(range(200))


def test_writers_that_fill_a_file_at_once_turn_it_once_each_time(tmp_path):
    path = tmp_path / "a.jsonl"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: append_line(path, json.dumps({"n": n}), 1000), range(150)))
    kept = [one["n"] for one in (*read_lines(older_part(path)), *read_lines(path))]
    assert len(kept) == len(set(kept))
    # Those who looked before another one wrote may each write a line beyond the bound.
    assert 900 < older_part(path).stat().st_size <= 1000 + 3 * 11
    assert path.stat().st_size <= 1000


def test_damaged_lines_and_a_cut_beginning_are_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": \n[2]\n\xff\n{"c": 3}\n{"d": 4')
    assert read_lines(path) == [{"a": 1}, {"c": 3}]
    assert read_lines(path, 16) == []
    assert read_lines(path, 17) == [{"c": 3}]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_the_oldest_logs_beyond_the_bound_go_and_nothing_else(tmp_path):
    old = time.time() - 10 * 86_400
    names = ["20260101T000000Z-run.jsonl", "20260102T000000Z-flow.jsonl", "index.jsonl", "my.jsonl"]
    for age, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (old + age, old + age))
    (tmp_path / "20260103T000000Z-run.jsonl").write_bytes(b"x" * 100)
    prune_run_logs(tmp_path, 250)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *sorted([names[1]]),
        "20260103T000000Z-run.jsonl",
        "index.jsonl",
        "my.jsonl",
    ]
    prune_run_logs(tmp_path, 0)  # the new one was written to today
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "20260103T000000Z-run.jsonl",
        "index.jsonl",
        "my.jsonl",
    ]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("postgresql://me:p@ss@db:5432/x", "postgresql://db:5432/x"),
        ("see https://host/a?token=abc&b=1#c", "see https://host/a?token=***&b=1#c"),
        ("x?a=1;sig=abc", "x?a=1;sig=***"),
        ("hf_abcdefghijklmnop is a key", "*** is a key"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer ***"),
        ("mail me@host, at https://host/@me", "mail me@host, at https://host/@me"),
        ("monkey=1 and a/b?keyboard=2", "monkey=1 and a/b?keyboard=2"),
    ],
)
def test_secrets_go_and_the_rest_stays(text, cleaned):
    assert without_secrets(text) == cleaned


def test_values_of_secret_keys_go_whatever_they_look_like():
    data = {"a.api_key": "x", "token": "", "tokens": "y", "deep": [{"password": ["z"], "n": 1}]}
    assert clean(data) == {
        "a.api_key": "***",
        "token": "",
        "tokens": "y",
        "deep": [{"password": ["***"], "n": 1}],
    }
