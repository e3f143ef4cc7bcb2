"""Streams of rows: equal for any number of workers and from any step, with and without Ray Data."""

import numpy as np
import pytest

from raycap.cluster import data_stream
from raycap.facts.names_corpus import NamesCorpus
from raycap.facts.order import Mix, Order
from raycap.facts.profiles import census_schema, generate
from raycap.facts.questions import Questions
from raycap.facts.random_data import strings
from raycap.spec import HeldOut, NamePools, RandomStrings, WordTokenizer
from raycap.tokens import rows as plain
from raycap.tokens.composer import Composer, Rows
from raycap.tokens.rows import RowSource, rows_of
from raycap.tokens.tokenizers import build_tokenizer

PROFILES = generate(census_schema(NamePools(first=20, middle=20, last=40), 4), 100, seed=0)
CORPORA = (Questions(PROFILES, 1), Questions(PROFILES, 2, held_out=HeldOut(tuples=0.3)))
TOKENIZER = build_tokenizer(WordTokenizer(), CORPORA)
COMPOSERS = tuple(Composer.build(corpus, TOKENIZER, index) for index, corpus in enumerate(CORPORA))


STRINGS = NamesCorpus(strings(RandomStrings(source="strings", num_strings=50, vocab_size=16, length=30)))
OTHERS = Composer.build(STRINGS, build_tokenizer(WordTokenizer(), (STRINGS,)))


def source(rank: int = 0, world_size: int = 1, seed: int = 0, num_steps: int = 90) -> RowSource:
    sizes = tuple(len(composer.trained) for composer in COMPOSERS)
    order = Order(sizes, (1, 2), (Mix(0, (1.0, 0.0)), Mix(20, (0.3, 0.7))), 33, seed)
    return RowSource(COMPOSERS, order, num_steps, rank, world_size)


def other_source(rank: int = 0, world_size: int = 1) -> RowSource:
    """Return a source of another corpus, with longer rows and fewer rows per step."""
    return RowSource((OTHERS,), Order((50,), (0,), (Mix(0, (1.0,)),), 21, 0), 90, rank, world_size)


def assert_same(actual: list[Rows], expected: list[Rows]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert np.array_equal(a.input_ids, b.input_ids)
        assert np.array_equal(a.labels, b.labels)
        assert np.array_equal(a.corpus, b.corpus)
        assert np.array_equal(a.lengths, b.lengths)


def one_by_one(sources: tuple[RowSource, ...], start_step: int) -> list[list[Rows]]:
    return [[source.rows(range(step, step + 1)) for source in sources] for step in range(start_step, 90)]


@pytest.mark.parametrize(("rank", "world_size", "start_step"), [(0, 1, 0), (0, 1, 41), (1, 2, 0), (2, 4, 17)])
@pytest.mark.parametrize("num_at_once", [1, 50, 100_000])
def test_rows_do_not_depend_on_how_many_steps_are_read_at_once(
    monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int, start_step: int, num_at_once: int
) -> None:
    monkeypatch.setattr(plain, "ROWS_AT_ONCE", num_at_once)
    sources = (source(rank, world_size), other_source(rank, world_size), source(rank, world_size, seed=1))
    steps = list(rows_of(sources, start_step))
    assert len(steps) == 90 - start_step
    for actual, expected in zip(steps, one_by_one(sources, start_step), strict=True):
        assert_same(actual, expected)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
@pytest.mark.parametrize(("rank", "world_size", "start_step"), [(0, 1, 0), (0, 1, 41), (1, 2, 0), (2, 4, 17)])
def test_ray_rows_equal_the_rows_of_the_plain_stream(
    monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int, start_step: int
) -> None:
    monkeypatch.setattr(data_stream, "BLOCK_BYTES", 20_000)  # several blocks, the last one shorter
    first, second = source(rank, world_size), other_source(rank, world_size)
    for sources in ((first,), (first, second), (first, second, source(rank, world_size))):
        streamed = list(data_stream.ray_rows(sources, start_step, num_cpus=0.25))
        assert len(streamed) == 90 - start_step
        for actual, expected in zip(streamed, rows_of(sources, start_step), strict=True):
            assert_same(actual, expected)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_equal_sources_share_their_rows() -> None:
    sources = (source(), source(seed=1), source())
    for steps in (rows_of(sources, 80), data_stream.ray_rows(sources, 80, num_cpus=0.25)):
        for first, different, equal in steps:
            assert first is equal
            assert not np.array_equal(first.input_ids, different.input_ids)


def test_several_workers_together_see_the_rows_of_one() -> None:
    def rows_at(worker: RowSource, step: int) -> list[bytes]:
        return [row.tobytes() for row in worker.rows(range(step, step + 1)).input_ids]

    for step in (0, 7, 89):
        alone = rows_at(source(), step)
        shared = [row for rank in range(3) for row in rows_at(source(rank, 3), step)]
        assert sorted(alone) == sorted(shared)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_a_finished_stream_is_empty() -> None:
    assert list(rows_of((source(), other_source()), 90)) == []
    assert list(data_stream.ray_rows((source(), other_source()), 90, num_cpus=0.25)) == []
