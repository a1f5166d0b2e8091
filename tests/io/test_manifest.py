"""A manifest notices every change of a directory, and the root digest binds names, sizes and contents."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from safeguard.errors import ModelFault
from safeguard.io.manifest import difference, directory_digest, files, manifest, root_digest, sizes


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    for name in (
        "unet/a.safetensors",
        "unet/b.safetensors",
        "model_index.json",
        ".gitattributes",
        ".cache/x",
        "vae/.git",
    ):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    return directory


def test_lists_every_file_sorted_but_what_tools_keep_at_the_top(tree: Path) -> None:
    digests = manifest(tree)
    assert list(digests) == ["model_index.json", "unet/a.safetensors", "unet/b.safetensors", "vae/.git"]
    assert digests["unet/a.safetensors"] == hashlib.sha256(b"unet/a.safetensors").hexdigest()


def test_order_is_by_code_point_not_by_path_component(tmp_path: Path) -> None:
    for name in ("unet/config.json", "unet.safetensors", "unet-2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert files(tmp_path) == ["unet-2", "unet.safetensors", "unet/config.json"]


def test_exclude_leaves_out_files_and_folders(tree: Path) -> None:
    assert files(tree, exclude=("model_index.json", "unet")) == ["vae/.git"]
    assert files(tree, exclude=("a.safetensors",)) == files(tree)


class TestRootDigest:
    def test_depends_on_nothing_else(self, tree: Path, tmp_path: Path) -> None:
        before = directory_digest(tree)
        (tree / ".gitattributes").write_text("changed")
        os.utime(tree / "model_index.json", (0, 0))
        moved = tree.rename(tmp_path / "moved")
        assert directory_digest(moved) == before

    @pytest.mark.parametrize("change", ["flip", "append", "rename", "swap", "add empty", "delete", "move up"])
    def test_every_change_shows(self, tree: Path, change: str) -> None:
        before = directory_digest(tree)
        a, b = tree / "unet/a.safetensors", tree / "unet/b.safetensors"
        if change == "flip":
            data = bytearray(a.read_bytes())
            data[3] ^= 1
            a.write_bytes(data)
        elif change == "append":
            a.write_bytes(a.read_bytes() + b"\0")
        elif change == "rename":  # in a way that keeps the order
            a.rename(tree / "unet/aa.safetensors")
        elif change == "swap":
            first, second = a.read_bytes(), b.read_bytes()
            a.write_bytes(second)
            b.write_bytes(first)
        elif change == "add empty":
            (tree / "unet" / "empty").touch()
        elif change == "delete":
            a.unlink()
        else:
            a.rename(tree / "a.safetensors")
        assert directory_digest(tree) != before

    def test_binds_sizes(self) -> None:
        assert root_digest({"a": "00"}, {"a": 1}) != root_digest({"a": "00"}, {"a": 2})

    def test_is_what_it_says(self) -> None:
        line = b'["caf\\u00e9 \\"x\\"", 3, "ab"]\n'
        assert root_digest({'café "x"': "ab"}, {'café "x"': 3}) == hashlib.sha256(line).hexdigest()

    def test_is_independent_of_insertion_order(self) -> None:
        size = {"a": 1, "b": 1}
        assert root_digest({"a": "1", "b": "2"}, size) == root_digest({"b": "2", "a": "1"}, size)


def test_difference_names_every_file() -> None:
    before, after = {"a": "1", "b": "2", "c": "3"}, {"b": "2", "c": "4", "d": "5"}
    assert difference(before, after) == ["added: d", "removed: a", "changed: c"]
    assert difference(before, dict(before)) == []


def test_links_count_as_what_they_show(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("outside")
    (tree / "link").symlink_to(tmp_path / "blob")
    assert manifest(tree)["link"] == hashlib.sha256(b"outside").hexdigest()
    assert sizes(tree, ["link"]) == {"link": 7}


@pytest.mark.parametrize("kind", ["dangling", "folder", "fifo"])
def test_what_is_no_file_is_refused_and_never_waited_for(tree: Path, tmp_path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(tree / "odd")
    else:
        (tree / "odd").symlink_to(tmp_path / "nowhere" if kind == "dangling" else tmp_path)
    with pytest.raises(ModelFault, match="odd"):
        manifest(tree)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelFault, match="no such directory"):
        manifest(tmp_path / "nowhere")
