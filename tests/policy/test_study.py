"""A study file becomes one checked policy per cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeguard.errors import PolicyFault, UsageFault
from safeguard.policy.study import cells, load_study, merged
from safeguard.resources import resource_dir
from safeguard.study.runner import cell_folder, chosen
from tests.study.small import STUDY, write


def test_mappings_are_merged_and_the_rest_is_replaced() -> None:
    below = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert merged(below, {"a": {"c": [3], "e": 5}, "d": {"f": 6}}) == {"a": {"b": 1, "c": [3], "e": 5}, "d": {"f": 6}}
    assert below == {"a": {"b": 1, "c": [1, 2]}, "d": 4}


def test_every_variant_meets_every_task(tmp_path: Path) -> None:
    found = list(cells(load_study(str(write(tmp_path)))))
    assert [cell.name for cell in found] == ["axe/uce", "axe/nowhere"]
    assert found[0].policy.name == "small-axe-uce"
    assert found[0].policy.harden.unlearner.settings == {"lam": 0.2}
    assert found[0].policy.harden.images == 8


def test_every_cell_is_run_once_with_each_seed(tmp_path: Path) -> None:
    study = load_study(str(write(tmp_path)))
    found = list(cells(study, [3, 1, 3]))
    assert [(cell.name, cell.seed) for cell in found] == [
        ("axe/uce", 3),
        ("axe/uce", 1),
        ("axe/nowhere", 3),
        ("axe/nowhere", 1),
    ]
    assert len({cell_folder(tmp_path, cell) for cell in found}) == 4
    assert [cell.seed for cell in chosen(found, ["*/uce"])] == [3, 1]
    with pytest.raises(PolicyFault, match="seed"):
        list(cells(study, [-1]))


def test_cells_are_chosen_by_pattern(tmp_path: Path) -> None:
    every = list(cells(load_study(str(write(tmp_path)))))
    assert [cell.variant for cell in chosen(every, ["*/u*"])] == ["uce"]
    assert len(chosen(every, [])) == 2
    with pytest.raises(UsageFault, match="no cell matches pick/\\*"):
        chosen(every, ["pick/*"])


@pytest.mark.parametrize("name", sorted(path.stem for path in resource_dir("studies").glob("*.yaml")))
def test_a_shipped_study_is_valid_and_compares_several_methods(name: str) -> None:
    found = list(cells(load_study(name)))
    assert len({cell.name for cell in found}) == len(found)
    assert len({cell.policy.harden.model_dump_json() for cell in found}) > 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lam: 0.2", "lambda: 0.2", "harden.unlearner.lambda: unknown"),
        ("kind: object", "kind: thing", "concepts\\[0\\].kind"),
        ("name: uce", "name: uze", "'uze'"),
    ],
)
def test_a_mistake_in_a_cell_names_the_cell(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = write(tmp_path, STUDY.replace(old, new))
    with pytest.raises(PolicyFault, match=said) as caught:
        list(cells(load_study(str(path))))
    assert "axe/uce" in str(caught.value)


def test_a_mistake_in_the_file_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(PolicyFault, match="variants") as caught:
        load_study(str(write(tmp_path, STUDY.replace("variants:", "varaints:"))))
    assert "study.yaml:" in str(caught.value)


def test_an_unknown_name_is_answered_with_a_known_one() -> None:
    with pytest.raises(UsageFault, match="unlearners"):
        load_study("unlearner")
