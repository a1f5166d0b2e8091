"""The one-dimensional models: densities, samples, what rejection keeps, and the counts of the certifier."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.certification_errors import Row
from benchmarks.resurgence import calibration, flow, page, study, training
from benchmarks.resurgence.__main__ import END, MARK, PAGE, PARTS, main, written
from benchmarks.resurgence.data import CONCEPT, PRETRAINING, Thinned, concept_only, natural_mass, shows
from benchmarks.resurgence.network import Networks, sigma

FULL = natural_mass(PRETRAINING)
MASSES = torch.tensor([0.0, 0.1, FULL], dtype=torch.float64)


def dice() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The clean samples of every step from now on."""
    seen, noised = [], training._noised

    def watching(clean: torch.Tensor, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        seen.append(clean)
        return noised(clean, chance)

    monkeypatch.setattr(training, "_noised", watching)
    return seen


def copied(folder: Path) -> tuple[Path, Path]:
    """Documents of which only the page is there, and the page."""
    copy = folder / PAGE.name
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "images").mkdir()
    return folder, copy


def test_sigma_is_the_root_of_the_integral_of_g_squared() -> None:
    times = np.linspace(0, 0.7, 20001)
    assert sigma(0.7) == pytest.approx(math.sqrt(np.trapezoid(25.0 ** (2 * times), times)), rel=1e-6)


def test_the_likelihood_of_a_gaussian_is_its_closed_form() -> None:
    x = torch.linspace(-5, 1, 13, dtype=torch.float64)[None]
    exact = -((x + 2) ** 2) / 2 - math.log(2 * math.pi) / 2
    found = flow.log_likelihood(Thinned(PRETRAINING, torch.tensor([FULL])).noise, x, steps=60)
    assert (found - exact).abs().max() < 1e-3


def test_the_flow_has_the_mass_that_rejection_keeps() -> None:
    data = Thinned(PRETRAINING, MASSES)
    mass = flow.mass(data.noise, 3, steps=60)
    assert mass[0] < 0.002 and torch.allclose(mass[1:], MASSES[1:], atol=0.003)
    kept = shows(data.draw(40_000, dice())).double().mean(dim=1)
    assert kept[0] == 0 and torch.allclose(kept, MASSES, atol=0.01)


def test_samples_of_an_exact_score_have_the_moments_and_the_mass_of_the_data() -> None:
    data = Thinned(PRETRAINING, MASSES)
    drawn = flow.draw(data.noise, 3, 8_000, dice(), steps=25)
    assert drawn[2].mean() == pytest.approx(-2, abs=0.04) and drawn[2].std() == pytest.approx(1, abs=0.03)
    assert torch.allclose(shows(drawn).double().mean(dim=1), flow.mass(data.noise, 3, steps=25), atol=0.02)


def test_the_exact_noise_is_that_of_the_numerical_density() -> None:
    data, log_sigma = Thinned(PRETRAINING, torch.tensor([0.1])), math.log(0.4)
    grid = torch.linspace(-12, 8, 40_001, dtype=torch.float64)
    x = torch.tensor([-3.0, -2.1, -1.5, -0.9, 0.5], dtype=torch.float64)

    def log_density(at: torch.Tensor) -> torch.Tensor:
        kernel = torch.exp(-((at[:, None] - grid) ** 2) / (2 * 0.4**2))
        return torch.log((kernel * data.density(grid)).sum(dim=1))

    slope = (log_density(x + 1e-4) - log_density(x - 1e-4)) / 2e-4
    found = data.noise(x[None], torch.full((1, 5), log_sigma, dtype=torch.float64))[0]
    assert torch.allclose(found, -0.4 * slope, atol=2e-3)


def test_rejection_refuses_more_than_there_is() -> None:
    for mass in (-0.01, FULL + 0.01):
        with pytest.raises(ValueError, match="rejection leaves"):
            Thinned(PRETRAINING, torch.tensor([mass]))


def test_fine_tuning_data_hold_nothing_of_the_concept_and_ascent_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    training.fine_tune(Networks(2, dice(), width=4), 1.0, dice(), steps=3)
    clean = torch.cat(seen)
    assert len(clean) == 6 and not shows(clean).any() and clean.mean() > PRETRAINING + 0.5
    forgotten = concept_only(PRETRAINING, 2, 5000, dice())
    ends = torch.tensor([CONCEPT[0] - 1e-5, CONCEPT[1] + 1e-5])
    assert ((forgotten > ends[0]) & (forgotten < ends[1])).all()
    assert forgotten.mean() == pytest.approx(-2 + (0.39894 - 0.24197) / FULL, abs=0.02)


def test_a_user_with_few_images_sees_only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    training.fine_tune(Networks(2, dice(), width=4), 0.0, dice(), steps=4, images=5)
    owned = [torch.cat(seen, dim=1)[model].unique() for model in range(2)]
    assert [len(each) for each in owned] == [5, 5] and not torch.equal(owned[0], owned[1])


def test_models_side_by_side_know_nothing_of_each_other() -> None:
    networks = Networks(3, dice(), width=8)
    x, u = torch.randn(3, 6, generator=dice()), torch.zeros(3, 6)
    assert torch.allclose(networks.chosen(torch.tensor([2]))(x[2:], u[2:]), networks(x, u)[2:], atol=1e-6)
    networks(x, u)[1].sum().backward()
    gradient = networks.weights[1].grad
    assert (
        gradient is not None and gradient[1].abs().sum() > 0 and gradient[0].abs().sum() == gradient[2].abs().sum() == 0
    )


def test_training_learns_its_mass_and_the_penalty_holds_a_model_where_it_was() -> None:
    trained = training.train(torch.tensor([0.0, FULL]), dice(), steps=250)
    mass = flow.mass(trained, 2, steps=20)
    assert mass[0] < mass[1] - 0.05 and mass[1] == pytest.approx(FULL, abs=0.06)
    free, held = (training.fine_tune(trained, penalty, dice(), steps=40) for penalty in (0.0, 100.0))
    moved = [
        (flow.draw(tuned, 2, 4000, dice(), 20) - flow.draw(trained, 2, 4000, dice(), 20)).mean()
        for tuned in (free, held)
    ]
    assert moved[0] > 0.3 and abs(moved[1]) < 0.1 * moved[0], "q lies right of p"
    assert torch.equal(flow.mass(trained, 2, steps=20), mass), "what is tuned is a copy"


def test_ascent_forgets_more_than_training_on_the_rest() -> None:
    trained = training.train(torch.tensor([FULL, FULL]), dice(), steps=300)
    left = flow.mass(training.unlearn(trained, torch.tensor([0.0, 0.3]), dice(), steps=60), 2, steps=20)
    assert left[1] < left[0] - 0.01


def test_false_passes_of_a_made_up_rate_are_those_of_the_binomial() -> None:
    rates = np.tile([0.02, 0.08, 0.1], (3, 1))
    most = int(calibration.allowed(np.array([0.1]), 200)[0])
    assert most == 12, "the largest count of 200 whose 95 % bound is below 10 %"
    counts = np.array([[0, 0, 0], [12, 12, 12], [0, 13, 0]])
    assert calibration.false_passes(rates, counts).tolist() == [True, True, False]
    assert calibration.allowed(np.array([0.001])).tolist() == [-1], "too few images for so small a limit"


def made_up(rates: list[float], rounds: int) -> calibration.Population:
    known = np.array(rates)
    flagged = np.random.default_rng(5).random((len(rates), rounds, calibration.IMAGES)) < known[:, None, None]
    return calibration.Population(known, flagged)


def test_the_promises_hold_at_made_up_rates_and_break_where_a_rate_is_higher_than_known() -> None:
    honest = made_up([0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.1, 0.1, 0.1], 300)
    assert [row.what for row in calibration.all_rows(honest) if not row.holds] == []
    rates, counts = honest.certifications()
    assert counts.shape == rates.shape == (600, 5) and counts.sum() == honest.flagged.sum()
    liar = calibration.Population(honest.rates * 2, honest.flagged)
    broken = [row.what for row in calibration.all_rows(liar) if not row.holds]
    assert any(what.startswith("false PASS: one seed, the limit") for what in broken)


def test_users_are_tuned_apart_and_their_images_have_their_rates() -> None:
    population = calibration.populate(
        training.train(torch.tensor([0.1]), dice(), steps=200), rounds=5, users=4, steps=40
    )
    assert population.flagged.shape == (4, 5, calibration.IMAGES) and len(set(population.rates.tolist())) == 4
    assert np.allclose(population.flagged.mean(axis=(1, 2)), population.rates, atol=0.06)


def test_an_interval_covers_the_mean_of_seeds() -> None:
    mean, half = study.interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert mean == 3 and half == pytest.approx(2.776 * math.sqrt(2.5 / 5), abs=1e-3)


def test_perfect_networks_never_gain_mass_at_rho_0() -> None:
    arm = study.perfect(study.Scale(flow=40))
    assert arm.before.mass[-1, 0] == pytest.approx(FULL, abs=1e-3)
    assert all(after.mass[0, 0] < 0.004 for after in arm.after.values())
    assert all((after.mass[1:] < arm.before.mass[1:]).all() for after in arm.after.values())
    assert page.of_perfect(arm).count("\n") == len(study.RHOS) + 1


def test_the_page_has_every_table_and_no_broken_promise() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "does NOT hold" not in text and text.count(END) == 7
    tables = {"certifier": "| new |"}
    assert "| new |" in written(text, tables) and written(written(text, tables), tables) == written(text, tables)
    with pytest.raises(ValueError, match="no place"):
        written(text, {"else": ""})
    assert MARK.format("exact, mass") in text


def test_the_command_writes_its_tables_and_small_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home, (docs, copy) = "benchmarks.resurgence.__main__", copied(tmp_path)
    monkeypatch.setattr(f"{home}.Scale", lambda seeds: study.Scale(seeds, training=2, unlearning=2, tuning=2, flow=4))
    for name, value in (("USERS", 5), ("PAGE", copy), ("DOCS", docs)):
        monkeypatch.setattr(f"{home}.{name}", value)
    result = CliRunner().invoke(main, ["--seeds", "2", "--rounds", "1", "--write"])
    assert result.exit_code in (0, 1) and isinstance(result.exception, SystemExit | None), result.output
    text, before = copy.read_text(encoding="utf-8"), PAGE.read_text(encoding="utf-8")
    for name in ("exact, mass", "approximate, log-likelihood", "without error", "training", "certifier"):
        table = text.partition(MARK.format(name))[2].partition(END)[0]
        assert table and table.strip() in result.output and table not in before
    figures = {path.stem: path.read_text(encoding="utf-8") for path in (docs / "images").iterdir()}
    assert figures["resurgence"].count("in the data") == 1 and "mass of the concept" in figures["resurgence"]
    assert "p without the concept" in figures["resurgence-density"] and all(len(f) < 100_000 for f in figures.values())


def test_the_command_exits_with_one_where_a_promise_is_broken_and_writes_its_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = "benchmarks.resurgence.__main__"
    _, copy = copied(tmp_path)
    monkeypatch.setattr(f"{home}.PAGE", copy)
    for promise, code in (("holds", 0), (page.BROKEN, 1)):
        monkeypatch.setitem(PARTS, "certifier", lambda scale, rounds, promise=promise: ({"certifier": promise}, {}))
        assert CliRunner().invoke(main, ["--only", "certifier", "--write"]).exit_code == code
        assert f"{MARK.format('certifier')}\n\n{promise}\n\n{END}" in copy.read_text(encoding="utf-8")
    assert Row("", "at most", 0.05, 100, 100).cells()[-1] == page.BROKEN


def test_the_density_of_the_data_integrates_to_one_and_has_its_mass() -> None:
    data, x = Thinned(PRETRAINING, torch.tensor([0.1])), torch.linspace(-9, 5, 140_001, dtype=torch.float64)
    density = data.density(x)
    assert torch.trapezoid(density, x) == pytest.approx(1, abs=1e-3)
    assert torch.trapezoid(density * shows(x), x) == pytest.approx(0.1, abs=1e-3)
