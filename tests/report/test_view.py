"""The sentences of the report."""

from __future__ import annotations

import pytest

from safeguard import wording
from safeguard.report import view
from safeguard.report.tiles import tiles as first_screen
from tests.report import reports

NARROW = wording.NARROW


def words(hardened: dict[int, int], unlearned: dict[int, int] | None, axis: str = "steps") -> str:
    lines = [reports.curve("hardened", hardened, axis=axis)]
    lines += [reports.curve("unlearned", unlearned, axis=axis)] if unlearned else []
    found = view.relearning(reports.claim("malicious-lora", lines))
    assert found is not None
    return f"{found.headline} {found.words}".replace(NARROW, " ")


def test_relearning_needs_more_effort() -> None:
    text = words({0: 0, 25: 2, 100: 60}, {0: 0, 25: 60, 100: 99})
    assert text == "needs 4 × the effort of the unlearned-only model: 100 steps against 25."
    text = words({0: 0, 25: 2, 100: 60}, {0: 0, 1: 60, 100: 99}, axis="queries")
    assert text == "needs 100 × the effort of the unlearned-only model: 100 queries against 1."


def test_relearning_not_reached() -> None:
    text = words({0: 0, 25: 0, 100: 1}, {0: 0, 25: 60, 100: 99})
    assert text.startswith("more than 4 × the effort: relearning was not reached within 100 steps")
    text = words({0: 0, 100: 1}, {0: 0, 100: 60}, axis="queries")
    assert text == "not reached within 100 queries; the unlearned-only model needs 100 queries."
    assert words({0: 0, 100: 1}, {0: 0, 100: 1}) == "not reached within 100 steps, nor in the unlearned-only model."
    assert "no unlearned-only model" in words({0: 0, 100: 1}, None)


def test_relearning_no_better_or_worse() -> None:
    assert words({0: 0, 25: 60}, {0: 0, 25: 60}).startswith("needs 1 × the same effort of")
    assert words({0: 0, 10: 60, 20: 90}, {0: 0, 10: 1, 20: 60}).startswith("needs 0.5 × the effort")
    assert words({0: 80, 10: 90}, {0: 0, 10: 60}).startswith("no effort")
    assert words({0: 0, 10: 60}, {0: 80, 10: 90}).startswith("10 steps bring the concept back")


def test_a_claim_without_effort_says_nothing_of_relearning() -> None:
    assert view.relearning(reports.passing().claims[0]) is None


def test_coverage_counts_and_does_not_overstate() -> None:
    text = view.coverage(reports.passing()).replace(NARROW, " ")
    assert "6 claims: 6 probes on 1 concept" in text
    assert "95 % confidence in the worst of 3 seeds" in text and "66.4 % of the seeds" in text


def test_tiles_show_the_worst() -> None:
    tiles = {tile.name: tile for tile in first_screen(reports.failing())}
    effort = tiles["Least effort to relearn"]
    assert (effort.value, effort.good) == ("100", False)
    assert effort.note == "fine-tuning steps; unlearned only: 25"
    assert "malicious-full" in tiles["Worst upper bound"].note and tiles["Worst upper bound"].good is False
    assert first_screen(reports.bare()) == []


def test_efforts_of_different_attacks_are_not_compared() -> None:
    def searched(hits: int) -> list[view.Tile]:
        curves = [reports.curve(role, {0: 0, 3: hits}, axis="queries") for role in ("hardened", "unlearned")]
        passing = reports.passing()
        return first_screen(passing.model_copy(update={"claims": [*passing.claims, reports.claim("prompts", curves)]}))

    held, broken = ({tile.name: tile for tile in searched(hits)}["Least effort to relearn"] for hits in (0, 60))
    assert (held.value, held.note) == ("over 200", "fine-tuning steps; unlearned only: 25")
    assert (broken.value, broken.note, broken.good) == ("3", "queries; unlearned only: 3", False)


def test_the_chart_of_a_claim_holds_every_bound_and_the_limit() -> None:
    def top(hits: int, limit: float = 0.05) -> float:
        return view.ceiling(reports.claim("p", [reports.curve("hardened", {0: hits})], limit=limit))

    assert [top(0), top(4), top(5), top(17), top(40), top(100)] == [0.1, 0.1, 0.25, 0.25, 0.5, 1.0]
    assert [top(0, limit) for limit in (0.0, 0.11, 0.5, 0.51)] == [0.1, 0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("rate", "text"), [(0, "0 %"), (0.0499, "4.99 %"), (0.05, "5.00 %"), (0.784, "78.4 %"), (1, "100 %")]
)
def test_percent(rate: float, text: str) -> None:
    assert wording.percent(rate).replace(NARROW, " ") == text


def test_durations_and_moments() -> None:
    assert [wording.duration(s) for s in (4.25, 59.9, 200, 7500)] == ["4.25 s", "59.9 s", "3 min 20 s", "2 h 5 min"]
    assert wording.moment("2026-01-31T19:05:00+01:00") == "2026-01-31 18:05 UTC"
    assert wording.moment("yesterday") == "yesterday"
