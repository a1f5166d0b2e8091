"""Folders of images with captions that nobody vouches for: each kind of bad one is refused with its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from safeguard.errors import UsageFault
from safeguard.io import captions
from safeguard.io.captions import Row, read_image, read_rows

JSON = '{"file_name": "a.png", "text": "an axe"}\n'


def folder(tmp_path: Path, written: str | bytes = JSON, name: str = "metadata.jsonl") -> Path:
    found = tmp_path / "mine"
    (found / "in").mkdir(parents=True)
    for image in ("a.png", "in/b.png"):
        Image.new("RGB", (8, 8), "red").save(found / image)
    (found / name).write_bytes(written.encode() if isinstance(written, str) else written)
    return found


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("metadata.jsonl", JSON + '\n{"file_name": "in/b.png", "caption": " a saw\\u2028 ", "width": 8}'),
        ("metadata.csv", '\ufefffile_name,text,width\na.png,an axe,8\n\nin/b.png," a saw\u2028 ",8\n'),
    ],
)
def test_both_layouts_are_read_with_their_lines(tmp_path: Path, name: str, written: str) -> None:
    mine = folder(tmp_path, written, name)
    assert read_rows(mine) == [
        Row("a.png", "an axe", f"{mine / name}:{1 if 'json' in name else 2}"),
        Row("in/b.png", "a saw", f"{mine / name}:{3 if 'json' in name else 4}"),
    ]
    assert read_image(mine, read_rows(mine)[1]) == (mine / "in" / "b.png").read_bytes()


NAMED = '{"file_name": "%s", "text": "an axe"}'


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "metadata.jsonl: no image is named"),
        ("{file_name: a.png}", "metadata.jsonl:1: not a line of JSON"),
        (JSON + "[" * 100_000, "metadata.jsonl:2: not a line of JSON"),
        (JSON + '"a.png"', "metadata.jsonl:2: the line is no JSON object"),
        (JSON + '{"text": "a", "text": "b", "file_name": "a.png"}', "metadata.jsonl:2: .*key is there twice"),
        (JSON + '{"text": "an axe"}', "metadata.jsonl:2: the row names no file"),
        ('{"file_name": 3, "text": "an axe"}', "metadata.jsonl:1: the row names no file"),
        ('{"file_name": "a.png"}', "metadata.jsonl:1: the row needs one caption"),
        ('{"file_name": "a.png", "text": " "}', "metadata.jsonl:1: the row needs one caption"),
        ('{"file_name": "a.png", "text": ["an axe"]}', "metadata.jsonl:1: the row needs one caption"),
        ('{"file_name": "a.png", "text": "a", "caption": "b"}', "metadata.jsonl:1: the row needs one caption"),
        ('{"file_name": "a.png", "text": "%s"}' % ("a" * 2001), "metadata.jsonl:1: the caption is longer"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "metadata.jsonl:1: the caption has half a character"),
        (JSON + JSON, "metadata.jsonl:2: 'a.png' is there twice, first at .*metadata.jsonl:1"),
        (JSON + NAMED % "in/../a.png", "metadata.jsonl:2: 'in/../a.png' is no name inside"),
        (NAMED % "../a.png", "'../a.png' is no name inside"),
        (NAMED % "/etc/hostname", "'/etc/hostname' is no name inside"),
        (NAMED % "in\\\\b.png", "is no name inside"),
        (NAMED % "a\\u0000.png", "is no name inside"),
        (NAMED.encode() % b"\xff.png", "metadata.jsonl:1: the file is not UTF-8"),
    ],
)
def test_rows_that_are_not_understood_are_named(tmp_path: Path, written: str | bytes, message: str) -> None:
    with pytest.raises(UsageFault, match=message):
        read_rows(folder(tmp_path, written))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("file_name,text\na.png,an axe,8\n", "metadata.csv:2: not a row of CSV: 3 values, and 2 columns"),
        ("file_name,text,text\n", "metadata.csv:1: not a row of CSV: a key is there twice"),
        ('file_name,text\na.png,"an axe\n', "metadata.csv:2: not a row of CSV"),
        ("name,text\na.png,an axe\n", "metadata.csv:2: the row names no file"),
        ("a.png,an axe\n", "metadata.csv: no image is named"),
    ],
)
def test_tables_that_are_not_understood_are_named(tmp_path: Path, written: str, message: str) -> None:
    with pytest.raises(UsageFault, match=message):
        read_rows(folder(tmp_path, written, "metadata.csv"))


def test_a_folder_has_one_file_of_captions(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="no such folder"):
        read_rows(tmp_path / "absent")
    with pytest.raises(UsageFault, match="neither"):
        read_rows(folder(tmp_path / "none", "", "captions.txt"))
    both = folder(tmp_path / "both")
    (both / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(UsageFault, match="both"):
        read_rows(both)
    linked = folder(tmp_path / "linked", "", "notes.txt")
    (linked / "metadata.jsonl").symlink_to(both / "metadata.jsonl")
    with pytest.raises(UsageFault, match="leads out of the folder"):
        read_rows(linked)


def test_too_many_rows_and_too_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = folder(tmp_path, JSON + NAMED % "in/b.png")
    monkeypatch.setattr(captions, "MAX_FILES", 1)
    with pytest.raises(UsageFault, match=r"metadata\.jsonl:2: more than 1 rows"):
        read_rows(mine)
    monkeypatch.setattr(captions, "MAX_BYTES", 10)
    with pytest.raises(UsageFault, match="the file is larger"):
        read_rows(mine)


def test_only_regular_files_inside_the_folder_are_opened(tmp_path: Path) -> None:
    names = ("out.png", "out/a.png", "pipe.png", "in", "absent.png")
    mine = folder(tmp_path, "\n".join(NAMED % name for name in (*names, "link.png")))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes((mine / "a.png").read_bytes())
    (mine / "out.png").symlink_to(elsewhere / "a.png")
    (mine / "out").symlink_to(elsewhere)
    (mine / "link.png").symlink_to(mine / "a.png")
    os.mkfifo(mine / "pipe.png")
    rows = {row.file: row for row in read_rows(mine)}
    for name in names:
        what = "leads out of the folder" if name.startswith("out") else "there is no file"
        with pytest.raises(UsageFault, match=what) as caught:
            read_image(mine, rows[name])
        assert f"metadata.jsonl:{names.index(name) + 1}: " in str(caught.value)
    assert read_image(mine, rows["link.png"]) == (mine / "a.png").read_bytes()
