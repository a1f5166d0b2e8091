"""JSON and safetensors are read strictly, and numbers that are not finite are found in every dtype."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from safeguard.errors import ModelFault
from safeguard.io.formats import MAX_HEADER, MAX_JSON, read_header, read_json, read_tensors


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


class TestJson:
    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (b"{", "invalid JSON"),
            (b"\xff\xfe", "invalid JSON"),
            (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
            (b'{"x": {"b": 1, "b": 1}}', "duplicate key 'b'"),
            (b"[" * 100_000, "nested too deeply"),
            (b"[1]", "expected a JSON object, found list"),
            (b'{"a": "' + b"x" * MAX_JSON + b'"}', "larger than 32 MiB"),
            (b'{"a": ' + b"9" * 10_000 + b"}", "invalid JSON"),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_refused(self, tmp_path: Path, text: bytes, reason: str) -> None:
        (tmp_path / "x.json").write_bytes(text)
        with pytest.raises(ModelFault, match=reason) as caught:
            read_json(tmp_path / "x.json")
        assert "x.json" in caught.value.where and caught.value.fix

    def test_accepted(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text('{"a": [1, {"a": null}]}', encoding="utf-8")
        assert read_json(tmp_path / "x.json") == {"a": [1, {"a": None}]}


class TestHeader:
    def test_agrees_with_the_library(self, tmp_path: Path) -> None:
        tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor(1)}
        save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
        slots = read_header(tmp_path / "x.safetensors")
        assert {name: slot.shape for name, slot in slots.items()} == {"a": (3,), "b": (2, 3), "n": ()}
        data = (tmp_path / "x.safetensors").read_bytes()
        assert struct.unpack("<6f", data[slots["b"].start : slots["b"].stop]) == (0, 1, 2, 3, 4, 5)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "claims 0 bytes of a file of 0"),
            (b"\x80\x04\x95K\x00\x00\x00\x00\x00", "header claims"),
            (safetensors(b"{}", length=MAX_HEADER + 1), "header claims 100000001"),
            (safetensors(b"{}", length=2**63), "header claims"),
            (safetensors(b"[]"), "not a JSON object"),
            (safetensors(b'{"a":1,"a":2}'), "duplicate key"),
            (safetensors({"a": entry()}), "end at byte"),
            (safetensors({"a": entry()}, b"123"), "end at byte"),
            (safetensors({"a": entry()}, b"12345"), "end at byte"),
            (safetensors({"a": entry(offsets=(1, 5))}, b"12345"), "gap"),
            (safetensors({"a": entry(), "b": entry()}, b"1234"), "overlap"),
            (safetensors({"a": entry(shape=(2,))}, b"1234"), "does not agree"),
            (safetensors({"a": entry(shape=(-1,), offsets=(4, 0))}), "does not agree"),
            (safetensors({"a": entry(shape=(1.0,))}, b"1234"), "does not agree"),
            (safetensors({"a": entry(dtype="F8_E4M3", offsets=(0, 1))}, b"1"), "unsupported dtype"),
            (safetensors({"a": entry(offsets=(0, 2, 4))}, b"1234"), "malformed"),
            (safetensors({"a": [1]}, b"1234"), "malformed"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        ],
    )
    def test_refused(self, tmp_path: Path, content: bytes, reason: str) -> None:
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(ModelFault, match=reason):
            read_header(tmp_path / "x.safetensors")

    def test_huge_header_is_refused_without_reading_it(self, tmp_path: Path) -> None:
        with (tmp_path / "x.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", 200 * 10**6))
            file.truncate(201 * 10**6)  # sparse
        with pytest.raises(ModelFault, match="header claims 200000000"):
            read_header(tmp_path / "x.safetensors")

    @settings(max_examples=60, deadline=None)
    @given(position=st.integers(0, 150), byte=st.integers(0, 255), cut=st.integers(0, 40))
    def test_damage_is_refused_or_harmless(
        self, tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, cut: int
    ) -> None:
        """Whatever bytes are hit, the outcome is a ModelFault or slots that lie inside the file."""
        data = bytearray(save({"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}))
        data[position % len(data)] = byte
        path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
        path.write_bytes(data[: len(data) - cut])
        try:
            slots = read_header(path)
        except ModelFault:
            return
        assert all(8 <= slot.start <= slot.stop <= len(data) - cut for slot in slots.values())


def read_all(path: Path) -> tuple[dict[str, bytes], str]:
    """The bytes of every tensor, and the digest of what was read."""
    digest = hashlib.sha256()
    return {name: bytes(data) for name, _, data in read_tensors(path, digest)}, digest.hexdigest()


class TestReading:
    def test_yields_every_tensor_and_hashes_every_byte(self, tmp_path: Path) -> None:
        tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16), "e": torch.empty(0)}
        save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
        found, digest = read_all(tmp_path / "x.safetensors")
        assert struct.unpack("<6f", found["b"]) == (0, 1, 2, 3, 4, 5) and found["e"] == b"" and len(found["a"]) == 6
        assert digest == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()

    def test_a_file_that_becomes_shorter_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        save_file({"a": torch.zeros(100_000), "b": torch.zeros(100_000)}, path)
        reading = read_tensors(path, hashlib.sha256())
        next(reading)
        path.write_bytes(path.read_bytes()[:500_000])
        with pytest.raises(ModelFault, match="became shorter"):
            next(reading)


class TestFinite:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_names_the_tensor(self, tmp_path: Path, dtype: torch.dtype, value: float) -> None:
        broken = torch.zeros(5, 7, dtype=dtype)
        broken[4, 6] = value
        save_file({"fine": torch.ones(3), "layer.weight": broken}, tmp_path / "x.safetensors")
        with pytest.raises(ModelFault, match=r"layer\.weight") as caught:
            read_all(tmp_path / "x.safetensors")
        assert caught.value.where.endswith("x.safetensors")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_the_largest_and_smallest_numbers_are_finite(self, tmp_path: Path, dtype: torch.dtype) -> None:
        info = torch.finfo(dtype)
        extremes = torch.tensor([info.max, info.min, info.tiny, info.smallest_normal, 0.0, -0.0], dtype=dtype)
        save_file({"x": extremes, "ids": torch.full((3,), -1)}, tmp_path / "x.safetensors")
        read_all(tmp_path / "x.safetensors")

    def test_looks_at_the_end_of_long_tensors(self, tmp_path: Path) -> None:
        from safeguard.io import formats

        long = torch.zeros(formats._CHUNK + 3, dtype=torch.float16)
        long[-1] = float("nan")
        save_file({"long": long}, tmp_path / "x.safetensors")
        with pytest.raises(ModelFault, match="long"):
            read_all(tmp_path / "x.safetensors")
