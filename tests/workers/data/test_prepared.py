from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.prompts import Prompts
from tests.faults import Fault, at_every
from tests.workers.data.rows import CLS, SEP, labelled, pair, plain, prepared, scored, triplet, words
from workers.data import preparation
from workers.data.contents import content_ids
from workers.data.derived import cache_key, cached, sweep
from workers.data.preparation import NoRowsError, PreparationStopped, prepare
from workers.data.prepared import MANIFEST, Prepared, PreparedError
from workers.data.row import Row

PAIRS = [pair(f"question {n}", f"answer {n % 3} is longer") for n in range(10)]


def items_of(data: Prepared) -> list[list[int]]:
    return [data.ids[start:end].tolist() for start, end in zip(data.starts[:-1], data.starts[1:], strict=True)]


def tree(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "derived" / "entry"


# What is in it


def test_items_are_in_the_order_of_rows_and_inputs(folder):
    data = prepared(folder, PAIRS)
    assert (data.format, len(data), data.items, data.distinct) == ("pairs", 10, 20, 13)
    assert data.row_starts.tolist() == list(range(0, 21, 2))
    expected = [tokens.ids.tolist() for row in PAIRS for tokens in words(row.inputs)]
    assert items_of(data) == expected


def test_equal_inputs_have_equal_contents_wherever_they_stand(folder, tmp_path):
    data = prepared(folder, PAIRS)
    other = prepared(tmp_path / "other", [labelled("question 4", "x"), labelled("answer 0 is longer", "y")])
    assert data.contents[1] == data.contents[7] == data.contents[13]
    assert data.contents[8] == other.contents[0]
    assert data.contents[1] == other.contents[1]
    assert min(data.contents) >= 0


def test_rows_may_have_different_numbers_of_inputs(folder):
    data = prepared(folder, [triplet("a", "b", "c"), triplet("d", "e", "f", "g h")])
    assert data.row_starts.tolist() == [0, 3, 7]
    assert len(items_of(data)[6]) == 4


def test_labels_are_numbered_as_they_come(folder):
    data = prepared(folder, [labelled("one", "b"), labelled("two", "a"), labelled("three", "b")])
    assert data.labels.tolist() == [0, 1, 0]
    assert data.label_names == ["b", "a"]


def test_scores_stand_beside_their_rows(folder):
    data = prepared(folder, [scored("one", "two", -0.5), scored("two", "three", 1e300)])
    assert data.scores.tolist() == [-0.5, 1e300]
    assert (data.format, data.labels, data.distinct) == ("scored_pairs", None, 3)
    assert prepared(folder.with_name("pairs"), PAIRS).scores is None


def test_vectors_are_kept_as_they_are(folder):
    data = prepared(folder, [Row("vectors", ((0.5, float(n)),), "x") for n in range(3)])
    assert data.vectors.dtype == np.float32
    assert data.vectors.tolist() == [[0.5, 0.0], [0.5, 1.0], [0.5, 2.0]]
    assert (data.ids, data.starts, data.distinct) == (None, None, 3)
    assert data.contents[1] == content_ids([(0.5, 1.0)])[0]


def test_texts_are_cut_to_the_limit_and_counted(folder):
    data = prepared(folder, [plain("one two three four"), plain("one two"), plain("one")], limit=4)
    assert data.truncated == 1
    first, second, third = items_of(data)
    assert (first[0], first[-1], len(first)) == (CLS, SEP, 4)
    assert first[:-1] == words(["one two three four"])[0].ids[:3].tolist()
    assert (len(second), len(third)) == (4, 3)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_do_not_matter(folder, tmp_path, chunk, monkeypatch):
    whole = prepared(folder, PAIRS)
    monkeypatch.setattr(preparation, "_CHUNK_ITEMS", chunk)
    monkeypatch.setattr(preparation, "_SORTED_AT_ONCE", chunk)
    parts = prepared(tmp_path / "parts", PAIRS)
    assert items_of(parts) == items_of(whole)
    assert parts.contents.tolist() == whole.contents.tolist()
    assert parts.row_starts.tolist() == whole.row_starts.tolist()
    assert parts.distinct == whole.distinct


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=4), min_size=1
    )
)
def test_any_text_can_be_prepared(tmp_path_factory, rows):
    data = prepared(tmp_path_factory.mktemp("any") / "entry", [Row("views", tuple(row)) for row in rows])
    assert items_of(data) == [tokens.ids.tolist() for row in rows for tokens in words(row)]
    flat = [text for row in rows for text in row]
    assert data.distinct == len(set(flat))
    same = dict(zip(data.contents.tolist(), flat, strict=True))
    assert [same[content] for content in data.contents.tolist()] == flat


def test_no_rows_are_no_dataset(folder):
    with pytest.raises(NoRowsError, match="no rows"):
        prepared(folder, [])
    assert not folder.exists()


# Writing


def test_progress_counts_rows(folder, monkeypatch):
    monkeypatch.setattr(preparation, "_CHUNK_ITEMS", 8)
    told: list[int] = []
    prepare(iter(PAIRS), folder, tokenizer=words, limit=9, progress=told.append)
    assert told == [4, 8, 10]


def test_it_stops_when_asked_and_leaves_nothing(folder, monkeypatch):
    monkeypatch.setattr(preparation, "_CHUNK_ITEMS", 8)
    told: list[int] = []
    with pytest.raises(PreparationStopped):
        prepare(iter(PAIRS), folder, tokenizer=words, limit=9, progress=told.append, should_stop=lambda: told == [4])
    assert tree(folder.parent) == []


def test_a_row_that_is_refused_leaves_nothing(folder):
    def rows():
        yield from PAIRS
        raise RuntimeError("row 11")

    with pytest.raises(RuntimeError, match="row 11"):
        prepared(folder, rows())
    assert tree(folder.parent) == []


def test_vectors_of_two_widths_are_not_mixed(folder):
    rows = [Row("vectors", ((1.0, 2.0),), "x")] * preparation._CHUNK_ITEMS + [Row("vectors", ((1.0,),), "x")]
    with pytest.raises(ValueError, match="shape"):
        prepared(folder, rows)
    assert tree(folder.parent) == []


def test_two_writers_at_once_are_harmless(folder):
    meeting = threading.Barrier(2)

    def rows():
        meeting.wait(10)
        yield from PAIRS

    results: list[Prepared] = []
    writers = [threading.Thread(target=lambda: results.append(prepared(folder, rows()))) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [items_of(data) for data in results] == [items_of(results[0])] * 2
    assert tree(folder.parent) == ["entry"]


# Opening


@pytest.mark.parametrize("name", ["ids.npy", "contents.npy", "labels.json"])
def test_a_file_that_is_shorter_is_named_without_reading_it(folder, name):
    prepared(folder, PAIRS)
    os.truncate(folder / name, (folder / name).stat().st_size - 1)
    with pytest.raises(PreparedError, match=f"{name} has .* bytes instead of"):
        Prepared.open(folder, checksums=False)


def test_a_byte_that_was_altered_is_found_by_the_checksum(folder):
    prepared(folder, PAIRS)
    content = bytearray((folder / "ids.npy").read_bytes())
    content[-1] ^= 1
    (folder / "ids.npy").write_bytes(content)
    with pytest.raises(PreparedError, match=r"ids\.npy differs from its checksum"):
        Prepared.open(folder)


def test_a_file_that_is_gone_is_named(folder):
    prepared(folder, PAIRS)
    (folder / "starts.npy").unlink()
    with pytest.raises(PreparedError, match=r"starts\.npy"):
        Prepared.open(folder)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (None, "not written to its end"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"version": 0, "files": {}}', "of version 0"),
        ('{"version": 1}', "lists no files"),
        ('{"version": 1, "files": {"ids.npy": 3}}', "cannot be read"),
        ('{"version": 1, "files": {}}', "cannot be read"),
    ],
)
def test_a_manifest_that_is_no_good_is_said(folder, manifest, said):
    prepared(folder, PAIRS)
    (folder / MANIFEST).unlink()
    if manifest is not None:
        (folder / MANIFEST).write_text(manifest)
    with pytest.raises(PreparedError, match=said):
        Prepared.open(folder)


def test_arrays_of_another_dataset_do_not_fit(folder, tmp_path):
    prepared(folder, PAIRS)
    prepared(tmp_path / "other", PAIRS[:5])
    shutil.copyfile(tmp_path / "other" / "starts.npy", folder / "starts.npy")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["starts.npy"] = json.loads((tmp_path / "other" / MANIFEST).read_text())["files"]["starts.npy"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(PreparedError, match="do not fit together"):
        Prepared.open(folder)


# Kept for the next job


def test_rows_are_read_once_for_all_jobs(folder):
    reads: list[int] = []

    def rows():
        reads.append(1)
        return iter(PAIRS)

    first, second = (cached(folder.parent, "entry", rows, tokenizer=words, limit=9) for _ in range(2))
    assert items_of(first) == items_of(second)
    assert len(reads) == 1


@pytest.mark.parametrize("spoil", ["truncate", "no manifest", "empty folder"])
def test_a_torn_entry_is_made_again(folder, spoil):
    whole = items_of(prepared(folder, PAIRS))
    if spoil == "truncate":
        os.truncate(folder / "ids.npy", 10)
    elif spoil == "no manifest":
        (folder / MANIFEST).unlink()
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    assert items_of(cached(folder.parent, "entry", lambda: iter(PAIRS), tokenizer=words, limit=9)) == whole
    assert tree(folder.parent) == ["entry"]
    Prepared.open(folder)


@pytest.mark.parametrize(
    ("kind", "number", "at_least"),
    [("write", errno.ENOSPC, 5), ("fsync", errno.EIO, 7), ("rename", errno.EIO, 1), ("mkdir", errno.ENOSPC, 1)],
)
def test_whatever_the_disk_refuses_an_entry_is_whole_or_not_there(folder, kind, number, at_least):
    whole = items_of(prepared(folder, PAIRS))
    folder.parent.mkdir(exist_ok=True)

    def run(fault: Fault) -> None:
        shutil.rmtree(folder)
        refusals = []
        try:
            cached(folder.parent, "entry", lambda: iter(PAIRS), tokenizer=words, limit=512)
        except OSError as error:
            refusals.append(error.errno)
        assert refusals == ([number] if fault.fired else [])
        assert tree(folder.parent) in ([], ["entry"])
        assert items_of(cached(folder.parent, "entry", lambda: iter(PAIRS), tokenizer=words, limit=512)) == whole

    assert at_every(kind, number, folder.parent, run) >= at_least


def test_the_key_holds_all_that_decides_what_is_made():
    given_ = {"source_sha256": "a", "options": {"delimiter": ","}, "tokenizer": "t", "limit": 128}
    keys = {
        cache_key(**{**given_, **change})
        for change in ({}, {"source_sha256": "b"}, {"options": {}}, {"tokenizer": "u"}, {"limit": 64})
    }
    assert len(keys) == 5
    assert cache_key(**given_) in keys


def test_the_least_recently_used_are_swept(folder):
    for age, name in enumerate(["new", "old", "older"]):
        prepared(folder.parent / name, PAIRS)
        os.utime(folder.parent / name / MANIFEST, (0, 1000 - age))
    cached(folder.parent, "older", lambda: iter(PAIRS), tokenizer=words, limit=512)
    size = sum(path.stat().st_size for path in (folder.parent / "new").iterdir())
    assert sweep(folder.parent, 2 * size) == size
    assert tree(folder.parent) == ["new", "older"]
    assert sweep(folder.parent, 0) == 2 * size
    assert tree(folder.parent) == []


def test_what_is_swept_can_still_be_read_by_who_opened_it(folder):
    data = prepared(folder, PAIRS)
    before = items_of(data)
    sweep(folder.parent, 0)
    assert items_of(data) == before


def test_leftovers_of_crashed_writers_are_swept_when_they_are_old(folder):
    for name, age in (("x.unfinished-1", 0), ("x.unfinished-2", 3 * 24 * 3600)):
        (folder.parent / name).mkdir(parents=True)
        os.utime(folder.parent / name, (0, time.time() - age))
    sweep(folder.parent, 10**9)
    assert tree(folder.parent) == ["x.unfinished-1"]


def test_sweeping_where_nothing_was_made_is_fine(tmp_path):
    assert sweep(tmp_path / "none", 0) == 0


def test_it_needs_no_torch():
    program = "import sys, workers.data.derived; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_prompts_stand_before_texts_by_their_place_and_are_no_part_of_their_content(folder: Path, tmp_path) -> None:
    rows = [triplet("a", "b", "c", "d"), triplet("b", "a", "c")]
    seen: list[str] = []

    def tokenizer(texts):
        seen.extend(texts)
        return words(texts)

    asked = prepare(iter(rows), folder, tokenizer=tokenizer, limit=9, prompts=Prompts({"query": "q ", "passage": "p "}))
    assert set(seen) == {"q a", "p b", "p c", "p d", "q b", "p a"}
    plain_texts = prepare(iter(rows), tmp_path / "plain", tokenizer=words, limit=9)
    assert asked.contents.tolist() == plain_texts.contents.tolist()
    labels = prepare(
        iter([labelled("a", "x")]), tmp_path / "labels", tokenizer=words, limit=9, prompts=Prompts({"query": "q "})
    )
    assert items_of(labels) == items_of(
        prepare(iter([labelled("a", "x")]), tmp_path / "none", tokenizer=words, limit=9)
    )
