"""Counting from a sparse table of probabilities."""

import numpy as np
import pytest
from pydantic import ValidationError

from safeguard.detect.calibration import LISTED, CalibrationTables, ScoreTable, read_tables

WORDS = ["axe", "dagger", "cat"]


def table(rows, truth):
    return ScoreTable.of(np.array(rows), truth, vocabulary=WORDS, template="{label}", data="drawings")


def record(labels, *tables, vocabulary=WORDS, template="{label}", threshold=0.5):
    return CalibrationTables(tables=list(tables)).record(
        labels, vocabulary=vocabulary, template=template, threshold=threshold
    )


def test_counts_of_a_label_set_sum_probabilities():
    scores = table([[0.3, 0.3, 0.4], [0.1, 0.1, 0.8], [0.4, 0.2, 0.4], [0.34, 0.33, 0.33]], [0, 1, 2, -1])
    weapons = scores.stratum(["axe", "dagger"], 0.5)
    assert (weapons.positives, weapons.detected, weapons.negatives, weapons.false_alarms) == (2, 1, 2, 2)
    assert {label: (c.detected, c.positives) for label, c in weapons.by_label.items()} == {
        "axe": (1, 1),
        "dagger": (0, 1),
    }
    axe = scores.stratum(["axe"], 0.5)
    assert (axe.positives, axe.detected, axe.negatives, axe.false_alarms) == (1, 0, 3, 0)


def test_there_is_no_record_without_positives_or_for_unknown_labels():
    scores = table([[0.9, 0.05, 0.05]], [0])
    assert record(["cat"], scores) is None
    assert record(["axe", "saw"], scores) is None
    assert record([], scores) is None


def test_every_table_of_the_vocabulary_is_a_stratum_and_the_weakest_counts():
    known, pale = table([[0.9, 0.05, 0.05]] * 40, [0] * 40), table([[0.2, 0.2, 0.6]] * 4, [0, 0, 0, 2])
    other = ScoreTable.of(np.array([[1.0, 0.0]]), [0], vocabulary=["axe", "saw"], template="{label}", data="others")
    found = record(["axe"], known, pale, other)
    assert [(each.detected, each.positives) for each in found.strata] == [(40, 40), (0, 3)]
    assert (found.detected, found.positives, found.threshold) == (0, 3, 0.5)
    assert record(["axe"], known, pale, threshold=0.15).detected == 3


def test_small_probabilities_are_spread_evenly_and_rows_still_sum_to_one():
    probabilities = np.random.default_rng(0).dirichlet(np.full(40, 0.1), size=50)
    words = [str(i) for i in range(40)]
    restored = ScoreTable.of(probabilities, [0] * 50, vocabulary=words, template="{label}", data="").probabilities()
    np.testing.assert_allclose(restored.sum(axis=1), 1, atol=0.02)
    assert np.abs(restored - probabilities).max() < 1.5 * LISTED / 1000


def test_a_table_survives_the_disk(tmp_path):
    tables = CalibrationTables(tables=[table([[0.9, 0.05, 0.05]], [0])])
    tables.write(tmp_path / "calibration.json")
    assert read_tables(tmp_path / "calibration.json") == tables
    assert read_tables(tmp_path / "missing.json") is None
    assert record(["axe"], *tables.tables, vocabulary=["cat", "axe", "dagger"]) is not None
    assert record(["axe"], *tables.tables, vocabulary=["cat", "axe"]) is None
    assert record(["axe"], *tables.tables, template="a {label}") is None


@pytest.mark.parametrize("change", [{"truth": [3]}, {"truth": [0, 0]}, {"truth": [-2]}, {"scores": [[(3, 900)]]}])
def test_indices_outside_the_vocabulary_are_refused(change):
    good = table([[0.9, 0.05, 0.05]], [0]).model_dump()
    with pytest.raises(ValidationError):
        ScoreTable(**good | change)
