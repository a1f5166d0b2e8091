"""Where the embedded weights are, without loading anything heavy."""

import subprocess
import sys

import pytest

from safeguard import reference
from safeguard.errors import ModelFault


@pytest.mark.parametrize("find", [reference.path, reference.detector_path])
def test_missing_weights_say_how_to_get_them(find, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "WEIGHTS", tmp_path)
    with pytest.raises(ModelFault, match=r"python -m recipes\.reference build"):
        find()


def test_existing_weights_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "WEIGHTS", tmp_path)
    for folder, file in (("model", "model_index.json"), ("detector", "open_clip_model.safetensors")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    assert (reference.path(), reference.detector_path()) == (tmp_path / "model", tmp_path / "detector")


def test_asking_imports_neither_torch_nor_diffusers():
    code = "import sys, safeguard.reference; print(sorted({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
