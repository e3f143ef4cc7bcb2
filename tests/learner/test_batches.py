"""Batches: shared prefixes, packing into windows, and padding over replicas."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raycap.facts.profiles import census_schema, generate
from raycap.facts.questions import Questions
from raycap.learner import model as llama
from raycap.learner.batches import Batch, window_positions
from raycap.spec import BpeTokenizer, ModelByWidth, NamePools, NumHeads, OnePerRow, PackingSpec, Windows
from raycap.tokens.composer import Composer
from raycap.tokens.tokenizers import build_tokenizer

PEOPLE = generate(census_schema(NamePools(first=8, middle=8, last=8), 3), 30, seed=0)
CORPUS = Questions(PEOPLE, 2)
COMPOSER = Composer.build(CORPUS, build_tokenizer(BpeTokenizer(kind="bpe", vocab_size=400), (CORPUS,)))
ROWS = COMPOSER.compose(np.arange(0, 200), COMPOSER.row_length)
MODEL = llama.build_model(
    ModelByWidth(hidden_size=16, num_layers=2, heads=NumHeads(num_heads=2)),
    400,
    generators=(torch.Generator().manual_seed(0),),
)
CPU = torch.device("cpu")


def text_losses(packing: PackingSpec) -> torch.Tensor:
    batch = Batch.of([ROWS], 400, CPU, packing)
    with torch.no_grad():
        return torch.zeros(len(ROWS)).index_add(0, batch.text_of[0], MODEL.token_losses(batch)[0])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_texts_fill_windows_in_order_and_are_never_split(lengths: list[int]) -> None:
    windows, offsets = window_positions(np.array(lengths), 40)
    covered = set()
    for length, window, offset in zip(lengths, windows.tolist(), offsets.tolist(), strict=True):
        cells = {(window, offset + column) for column in range(length)}
        assert offset + length <= 40
        assert not cells & covered
        covered |= cells
    assert sorted(set(windows.tolist())) == list(range(max(windows) + 1))
    for i in range(1, len(lengths)):  # a new window only where a text did not fit
        assert windows[i] == windows[i - 1] or offsets[i - 1] + lengths[i - 1] + lengths[i] > 40


def test_a_text_isolated_in_a_window_has_the_loss_it_has_in_a_row() -> None:
    isolated = Windows(kind="windows", length=128, attend_across=False)
    assert torch.allclose(text_losses(isolated), text_losses(OnePerRow()), atol=1e-4)


def test_attention_across_texts_changes_every_loss_except_those_of_the_first_texts_of_windows() -> None:
    across = Windows(kind="windows", length=128, attend_across=True)
    windows, _ = window_positions(ROWS.lengths, 128)
    first = np.r_[True, windows[1:] != windows[:-1]]
    difference = (text_losses(across) - text_losses(OnePerRow())).abs().numpy()
    assert difference[first].max() < 1e-4
    assert (difference[~first] > 1e-4).mean() > 0.9


def test_packing_keeps_the_measured_tokens() -> None:
    packed, single = (Batch.of([ROWS], 400, CPU, p) for p in (Windows(kind="windows", length=128), OnePerRow()))
    order = single.text_of[0].argsort(stable=True)  # one text per row: sorted by prefix
    for name in ("targets", "text_of", "labels", "corpus"):
        assert torch.equal(getattr(packed, name)[0], getattr(single, name)[0][order])
    assert packed.num_tokens == single.num_tokens == (ROWS.lengths.sum(),)


@pytest.mark.parametrize("packing", [OnePerRow(), Windows(kind="windows", length=128, attend_across=False)], ids=str)
def test_padding_over_replicas_changes_no_loss(packing: PackingSpec) -> None:
    """Replicas with fewer or shorter rows are padded; padding has no measured tokens."""
    short = ROWS[ROWS.lengths <= np.median(ROWS.lengths)][:50]
    rows_of_replicas = [ROWS[:50], short]
    shape = ModelByWidth(hidden_size=16, num_layers=2, heads=NumHeads(num_heads=2))
    stack = llama.build_model(shape, 400, generators=tuple(torch.Generator().manual_seed(i) for i in range(2)))
    batch = Batch.of(rows_of_replicas, 400, CPU, packing)
    stacked = stack.token_losses(batch)
    for number, rows in enumerate(rows_of_replicas):
        single = Batch.of([rows], 400, CPU, packing)
        measured = batch.loss_mask[number] > 0
        assert torch.equal(batch.targets[number][measured], single.targets[0])
        expected = stack.replica(number).token_losses(single)[0]
        assert torch.allclose(stacked[number][measured], expected, atol=1e-5)


def test_each_distinct_prefix_is_one_node() -> None:
    batch = Batch.of([ROWS], 400, CPU)
    inputs = {tuple(row[:column]) for row, length in zip(ROWS.input_ids.tolist(), ROWS.lengths.tolist(), strict=True)
              for column in range(1, length)}  # fmt: skip
    assert batch.tokens.shape == (1, len(inputs))
    assert len(inputs) < 0.7 * (ROWS.lengths - 1).sum()


def test_a_text_longer_than_a_window_raises_an_error() -> None:
    with pytest.raises(ValueError, match=rf"packing\.length.* {ROWS.lengths.max()} .* 16"):
        Batch.of([ROWS], 400, CPU, Windows(kind="windows", length=16))
