"""What a search found stands where its claim does, in the page and in the summary."""

from __future__ import annotations

from pathlib import Path

from safeguard.report import html, markdown
from safeguard.results.claim import Trials
from tests.report import reports

FOUND = Trials(
    random=40,
    working=38,
    passed=38,
    bad_share=0.079,
    tried=80,
    guided=40,
    worst="lora, rank 4, 0.002, adamw (guided trial 7, fresh seed 2)",
    seed=1,
    flagged=3,
    samples=100,
    lower=0.0,
    upper=0.088,
)


def test_both_sentences_of_a_search_stand_beside_its_claim(tmp_path: Path) -> None:
    whole = reports.passing()
    first, *rest = whole.claims
    searched = first.model_copy(update={"probe": "search", "axis": "configurations", "trials": FOUND})
    report = whole.model_copy(update={"claims": [searched, *rest]})
    page = html.render(report, tmp_path)
    summary = " ".join(markdown.render(report, tmp_path).replace("\\", "").split())
    for text in (page, summary):
        assert "at most 7.90" in text and "38 of 38 that were drawn at random stayed below the limit" in text
        assert "2 more broke the model" in text
        assert "The worst of 80 configurations (40 random, 40 guided)" in text
        assert "rank 4, 0.002, adamw (guided trial 7, fresh seed 2)" in text
    assert "drawn at random" not in html.render(whole, tmp_path) + markdown.render(whole, tmp_path)
