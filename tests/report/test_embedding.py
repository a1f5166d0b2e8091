"""Evidence images: blurred beyond recovery where they must be, and never a way out of the run directory."""

from __future__ import annotations

import base64
import io
import random
import re
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from safeguard.report import embedding
from safeguard.report.html import render
from tests.report import reports


def embedded(html: str) -> list[Image.Image]:
    """Every image of a page, decoded."""
    uris = re.findall(r'src="data:image/webp;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(uri))) for uri in uris]


def checkerboard(path: Path, phase: int, *, side: int = 128, cells: int = 4) -> None:
    """A sheet whose whole content is finer than the blur: black and white pixels that alternate."""
    image = Image.new("L", (side * cells, side))
    image.putdata([255 * ((x + y + phase) % 2) for y in range(side) for x in range(side * cells)])
    image.save(path)


def test_blur_forgets_the_pixels(tmp_path: Path) -> None:
    checkerboard(tmp_path / "a.png", 0)
    checkerboard(tmp_path / "b.png", 1)
    clear = [embedding.load(tmp_path, name, blurred=False) for name in ("a.png", "b.png")]
    hidden = [embedding.load(tmp_path, name, blurred=True) for name in ("a.png", "b.png")]
    assert clear[0].uri != clear[1].uri
    assert hidden[0].uri == hidden[1].uri  # opposite images, one and the same result: nothing to recover them from


@pytest.mark.parametrize(("columns", "rows"), [(4, 1), (1, 4), (4, 2), (3, 3)])
def test_blur_keeps_at_most_eight_pixels_of_a_cell(columns: int, rows: int) -> None:
    sheet = reports.sheet(random.Random(1), columns, rows, 64)
    tiny = embedding.blur(sheet)
    assert tiny.width <= 8 * columns and tiny.height <= 8 * rows
    assert min(tiny.size) <= 8


def test_unsafe_concept_blurs_every_sheet_of_the_report(tmp_path: Path) -> None:
    report = reports.unsafe()
    paths = reports.draw_evidence(report, tmp_path)
    pictures = embedded(render(report, tmp_path))
    assert len(pictures) == len(paths)
    assert max(min(picture.size) for picture in pictures) <= 8


def test_safe_concepts_are_shown(tmp_path: Path) -> None:
    report = reports.passing()
    reports.draw_evidence(report, tmp_path)
    assert {picture.size for picture in embedded(render(report, tmp_path))} == {(64, 32)}


def test_undeclared_concept_is_treated_as_unsafe(tmp_path: Path) -> None:
    report = reports.passing().model_copy(update={"concepts": []})
    reports.draw_evidence(report, tmp_path)
    assert max(min(picture.size) for picture in embedded(render(report, tmp_path))) <= 8


def test_metadata_of_the_original_is_dropped(tmp_path: Path) -> None:
    note = PngInfo()
    note.add_text("prompt", "something-private")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png", pnginfo=note)
    uri = embedding.load(tmp_path, "a.png", blurred=False).uri
    assert b"something-private" not in base64.b64decode(uri.split(",")[1])


def test_paths_out_of_the_run_directory_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (run / "link.png").symlink_to(tmp_path / "outside.png")
    for name in ("../outside.png", str(tmp_path / "outside.png"), "link.png"):
        picture = embedding.load(run, name, blurred=False)
        assert not picture.uri and "outside" in picture.problem


def test_what_is_not_a_png_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("<svg onload=alert(1)>")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png", "JPEG")
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in ("text.png", "photo.png", "folder.png", "cut.png", "absent.png", "nul\x00.png", "n" * 5000):
        picture = embedding.load(tmp_path, name, blurred=False)
        assert not picture.uri and picture.problem


def test_huge_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "MAX_PIXELS", 100)
    Image.new("RGB", (11, 10)).save(tmp_path / "a.png")
    assert "too large" in embedding.load(tmp_path, "a.png", blurred=True).problem
