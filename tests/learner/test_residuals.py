"""Residuals are those of transformers, and exchanged residuals have the effect of the text that they come from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from raycap.facts.build import corpora_of
from raycap.facts.corpus import Table
from raycap.facts.probing import site_slots
from raycap.facts.profiles import census_schema, generate
from raycap.learner import model as llama
from raycap.learner import pretrained
from raycap.learner.batches import Batch
from raycap.learner.evaluation import BITS_PER_NAT
from raycap.learner.residuals import Patch, num_residuals, read_residuals, text_losses
from raycap.spec import BpeTokenizer, HeadSize, Loop, ModelByWidth, MuP, NamePools, QuestionsByShare, WordTokenizer
from raycap.spec.probes import ProbeSite
from raycap.tokens.composer import Composer
from raycap.tokens.tokenizers import build_tokenizer

PEOPLE = generate(census_schema(NamePools(first=8, middle=8, last=8), 2), 30, seed=0)
ONE_HOP, TWO_HOP = corpora_of(PEOPLE, QuestionsByShare(hops=(1, 2)))
IDS = np.arange(0, TWO_HOP.num_ids, 7)


def composer_of(bpe: bool) -> Composer:
    spec = BpeTokenizer(kind="bpe", vocab_size=400) if bpe else WordTokenizer()
    return Composer.build(TWO_HOP, build_tokenizer(spec, (ONE_HOP, TWO_HOP)))


def build(composer: Composer, **fields: object) -> llama.Llama:
    spec = ModelByWidth(hidden_size=16, num_layers=2, heads=HeadSize(head_size=8), **fields)
    vocab_size = max(composer.tables[table].cells["token"].max() for table in composer.tables) + 1
    return llama.build_model(spec, int(vocab_size), generators=(torch.Generator().manual_seed(1),))


@pytest.mark.parametrize(
    ("bpe", "fields"),
    [
        (True, {"parametrization": MuP(kind="mup", base_width=8)}),
        (False, {"tie_embeddings": True, "loop": Loop(times=2)}),
    ],
    ids=["BPE, muP", "words, looped"],
)
def test_residuals_equal_the_hidden_states_of_transformers(
    bpe: bool, fields: dict[str, object], tmp_path: Path
) -> None:
    composer = composer_of(bpe)
    model = build(composer, **fields)
    columns = composer.last_columns(IDS)[:, : site_slots(TWO_HOP, IDS)[ProbeSite.ANSWER] + 1]
    mine = read_residuals(model, composer, IDS, columns)
    pretrained.save_pretrained(model, tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    middle: list[torch.Tensor] = []
    for layer in reference.model.layers:
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _, inputs: middle.append(inputs[0]))
    last: list[torch.Tensor] = []
    reference.model.norm.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
    rows = composer.compose(IDS, composer.row_length)
    with torch.no_grad():
        states = reference(torch.from_numpy(rows.input_ids.astype("int64")), output_hidden_states=True).hidden_states
    outputs = [*states[:-1], *last]  # the last of hidden_states is normalised
    theirs = [state for pair in zip(outputs, [*middle, outputs[-1]], strict=True) for state in pair][:-1]
    assert len(theirs) == num_residuals(model) == len(mine)
    at = torch.arange(len(IDS))[:, None], torch.from_numpy(columns.astype("int64"))
    for state, residual in zip(theirs, mine, strict=True):
        assert torch.allclose(state[at], residual, atol=1e-4)


def test_columns_are_the_last_tokens_of_pieces() -> None:
    composer = composer_of(bpe=False)
    tokens = composer.compose(IDS, composer.row_length).input_ids
    columns = composer.last_columns(IDS)
    person = TWO_HOP.unpack(IDS).person
    last_name = composer.tables[Table.NAME].cells["token"][person, 2]
    assert np.array_equal(
        tokens[np.arange(len(IDS)), columns[:, site_slots(TWO_HOP, IDS)[ProbeSite.PERSON]]], last_name
    )
    assert (np.diff(columns, axis=1) >= 1).all()
    assert (tokens[np.arange(len(IDS)), columns[:, -1]] == 0).all()  # the end token


def test_a_patch_of_every_residual_moves_the_losses_of_the_source() -> None:
    composer = composer_of(bpe=False)
    model = build(composer, tie_embeddings=True)
    rows = composer.compose(IDS, composer.row_length)
    batch = Batch.of([rows], model.vocab_size, llama.CPU)
    expected = np.zeros(len(IDS))
    np.add.at(expected, batch.text_of[0].numpy(), model.token_losses(batch)[0].detach().double().numpy() * BITS_PER_NAT)
    assert text_losses(model, rows) == pytest.approx(expected, rel=1e-5)
    # The answers of question (p, r, s) are the same tokens in all of its texts, so the residual of "Answer:" at the last
    # block determines the loss of the first token of the answer: after the patch it is that of the source.
    column = composer.last_columns(IDS)[:, site_slots(TWO_HOP, IDS)[ProbeSite.ANSWER]]
    last = num_residuals(model) - 1
    values = read_residuals(model, composer, IDS, column[:, None])[last, :, 0]
    same = text_losses(model, rows, Patch(last, column, values))
    assert same == pytest.approx(expected, rel=1e-5)
    moved = text_losses(model, rows, Patch(last, column, values.roll(1, 0)))
    assert (np.abs(moved - expected) > 1e-3).mean() > 0.9
    nothing = torch.zeros(16, 0)
    assert text_losses(model, rows, Patch(last, column, values.roll(1, 0), nothing)) == pytest.approx(
        expected, rel=1e-5
    )
    whole = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    assert text_losses(model, rows, Patch(last, column, values.roll(1, 0), whole)) == pytest.approx(moved, rel=1e-4)
