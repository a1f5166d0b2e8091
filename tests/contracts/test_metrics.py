"""Every metric that can run here."""

from __future__ import annotations

import numpy as np
import pytest

from safeguard.errors import EnvironmentFault, UsageFault
from safeguard.metrics.base import Metric
from safeguard.policy.methods import method_problems
from safeguard.policy.schema import MetricMethod
from safeguard.registry import metrics
from tests.contracts.runs import tiny

PROMPTS = ["a cat emoji", "an axe emoji", "a cat emoji", "a rose emoji", ""]


def declared(name: str) -> MetricMethod:
    """With tiny settings, as a policy writes it."""
    return MetricMethod.model_validate(tiny(metrics, name) | {"margin": 0.1})


def made(name: str) -> Metric:
    """Skips where the package it needs is not installed."""
    try:
        return metrics.make(declared(name))
    except EnvironmentFault as fault:
        pytest.skip(str(fault))


@pytest.fixture(scope="module", params=metrics.names())
def metric(request: pytest.FixtureRequest) -> Metric:
    return made(request.param)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (len(PROMPTS), 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", metrics.names())
def test_its_tiny_settings_are_such_as_a_policy_may_have(name: str) -> None:
    assert [problem.line() for problem in method_problems(declared(name))] == []
    assert len(method_problems(declared(name).model_copy(update={"no such setting": 1}))) == 1


def test_there_is_one_value_per_image_and_it_repeats(metric: Metric, images: np.ndarray) -> None:
    values = metric.values(images, PROMPTS)
    assert values.shape == (len(images),) and np.isfinite(values).all() and len(set(values)) > 1
    np.testing.assert_array_equal(metric.values(images, PROMPTS), values)


def test_values_do_not_depend_on_the_batch(metric: Metric, images: np.ndarray) -> None:
    pairs = zip(images, PROMPTS, strict=True)
    alone = np.concatenate([metric.values(image[None], [prompt]) for image, prompt in pairs])
    np.testing.assert_allclose(metric.values(images, PROMPTS), alone, atol=1e-5)
    assert metric.values(images[:0], []).shape == (0,)


def test_every_image_has_a_prompt(metric: Metric, images: np.ndarray) -> None:
    with pytest.raises(UsageFault):
        metric.values(images, PROMPTS[1:])


@pytest.mark.parametrize("name", metrics.names())
def test_it_says_what_it_is(name: str) -> None:
    first, again = made(name), made(name)
    assert first.digest == again.digest and len(bytes.fromhex(first.digest)) == 32
    assert first.title and isinstance(first.higher_is_better, bool)
    assert first.describe() and "\n" not in first.describe()


def test_titles_are_different() -> None:
    titles = [metrics.get(name).title for name in metrics.names()]
    assert len(set(titles)) == len(titles)
