"""Which positions of a prompt and its anchor are columns, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.unlearn.common.closed_form import moment
from safeguard.unlearn.common.text_states import columns, paired, prompt_moment, shared_ends, subject, token_ids
from tests.tiny import CONTEXT, tiny_pipeline

START, END, A, PHOTO, OF, X, Y, WOMAN, HERE = range(9)
OLD = [START, A, PHOTO, OF, X, Y, END]
NEW = [START, A, PHOTO, OF, A, WOMAN, END]
EMPTY = [START, END]


def test_what_surrounds_two_words_that_are_replaced() -> None:
    old, new = paired(OLD, NEW, 10, "surrounding")
    assert old == new == [0, 1, 2, 3, 6, 7, 8, 9], "start, 'a photo of', end, padding"


def test_what_surrounds_a_longer_phrase_is_cut_to_the_same_length() -> None:
    old, new = paired([START, X, Y, HERE, END], [START, A, HERE, END], 8, "surrounding")
    assert old == [0, 3, 4, 5, 6, 7]
    assert new == [0, 2, 3, 4, 5, 6]


def test_a_span_begins_at_the_last_word_that_differs() -> None:
    assert paired([START, X, Y, HERE, END], [START, A, HERE, END], 8, "span") == (
        [2, 3, 4, 5, 6, 7],
        [1, 2, 3, 4, 5, 6],
    )
    assert paired([START, X, Y, HERE, END], [START, A, HERE, END], 8, "last-subject") == ([2], [1])


def test_a_phrase_alone_is_as_in_the_published_code() -> None:
    """Last word of each text; the start token for the empty one."""
    assert paired(OLD, EMPTY, 10, "span") == (list(range(5, 10)), list(range(5)))
    assert paired(OLD, EMPTY, 10, "last-subject") == ([5], [0])


def test_repeated_words_are_shared_once() -> None:
    assert shared_ends([START, X, X, END], [START, X, END]) == (2, 1)
    assert list(subject([START, X, X, END], [START, X, END])) == [2]


def test_an_anchor_that_names_the_concept_is_refused() -> None:
    for anchor in (OLD, [*OLD[:-1], HERE, END]):
        with pytest.raises(UsageFault, match="nothing to erase"):
            paired(OLD, anchor, 10, "span")


def test_columns_are_states_of_these_positions() -> None:
    model = DiffusionModel(tiny_pipeline(0))
    assert len(token_ids(model, "an axe")) == 5
    x, g = columns(model, "an axe", "an x", "span")
    states = model.encode_prompts(["an axe", "an x"]).states
    assert torch.equal(x, states[0, 3:].T) and torch.equal(g, states[1, 3:].T)
    assert x.shape == (32, CONTEXT - 3)
    long = "an axe " * 20
    assert len(token_ids(model, long)) == CONTEXT


def test_moments_do_not_depend_on_chunks() -> None:
    model = DiffusionModel(tiny_pipeline(0))
    prompts = [f"a {index}" for index in range(70)]
    states = model.encode_prompts(prompts).states
    assert torch.allclose(prompt_moment(model, prompts), moment(states.flatten(0, 1).T), atol=1e-9)
    last = torch.stack([row[len(token_ids(model, p)) - 2] for row, p in zip(states, prompts, strict=True)])
    assert torch.allclose(prompt_moment(model, prompts, last_only=True), moment(last.T), atol=1e-9)
