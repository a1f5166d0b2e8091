"""Image files that nobody vouches for."""

import numpy as np
import pytest
from PIL import Image

from safeguard.errors import UsageFault
from safeguard.io import pictures
from safeguard.io.pictures import drawings, read_folder, read_picture, subfolders


def save(path, shade=0, mode="RGB", size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (shade, 0, 0, 128)[: len(mode)] if mode != "L" else shade
    Image.new(mode, size, colour).save(path)
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_formats_are_read_as_rgb(tmp_path, suffix):
    pixels = read_picture(save(tmp_path / f"a.{suffix}", 200))
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    assert abs(int(pixels[0, 0, 0]) - 200) < 8


def test_transparent_parts_are_white(tmp_path):
    assert read_picture(save(tmp_path / "a.png", 0, "RGBA"))[0, 0].tolist() == [127, 127, 127]


def test_other_formats_damage_and_size_are_refused(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").rename(tmp_path / "bmp.png")
    whole = save(tmp_path / "noise.png", 9).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    for name in ("bmp.png", "cut.png", "text.png"):
        with pytest.raises(UsageFault, match="not a readable image"):
            read_picture(tmp_path / name)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 63)
    with pytest.raises(UsageFault, match="8 x 8 pixels"):
        read_picture(tmp_path / "noise.png")
    monkeypatch.setattr(pictures, "MAX_BYTES", 10)
    with pytest.raises(UsageFault, match="larger than"):
        read_picture(tmp_path / "noise.png")


def test_one_variant_of_every_drawing_is_taken_by_the_seed(tmp_path):
    for index in range(6):
        save(tmp_path / f"axe__{index}.png", index)
    save(tmp_path / "saw.png", 99)
    taken = {drawings(tmp_path, seed)[0].name for seed in range(20)}
    assert len(drawings(tmp_path)) == 2 and len(taken) > 1
    assert drawings(tmp_path, 3) == drawings(tmp_path, 3)


def test_equal_pixels_are_one_image_and_links_out_of_the_folder_are_passed_over(tmp_path):
    outside = save(tmp_path / "outside" / "a.png", 7)
    inside = tmp_path / "inside"
    save(inside / "a.png", 1), save(inside / "b.png", 1), save(inside / "c.png", 2)
    (inside / "link.png").symlink_to(outside)
    (inside / "folder").symlink_to(outside.parent)
    save(inside / "axe" / "d.png", 3)
    (inside / "notes.txt").write_text("no image")
    assert len(read_folder(inside)) == 2
    assert [path.name for path in subfolders(inside)] == ["axe"]


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(UsageFault, match="no such folder"):
        read_folder(tmp_path / "missing")
