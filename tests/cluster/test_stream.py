"""The Ray Data stream gives the very rows of the plain one, for any worker, from any step."""

import numpy as np
import pytest

from raycap.cluster import stream
from raycap.facts.order import Mix, Order
from raycap.facts.profiles import census_schema, generate
from raycap.facts.questions import Questions
from raycap.learner.rows import RowSource
from raycap.learner.tokenizers import build_tokenizer
from raycap.learner.tokens import Composer
from raycap.spec import HeldOut, NamePools, WordTokenizer

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_instance")]
PROFILES = generate(census_schema(NamePools(first=20, middle=20, last=40), 4), 100, seed=0)
CORPORA = (Questions(PROFILES, 1), Questions(PROFILES, 2, held_out=HeldOut(tuples=0.3)))
TOKENIZER = build_tokenizer(WordTokenizer(), CORPORA)
COMPOSERS = tuple(Composer.build(corpus, TOKENIZER, place) for place, corpus in enumerate(CORPORA))


def source(rank: int = 0, world_size: int = 1, share: float = 0.3, num_steps: int = 90) -> RowSource:
    sizes = tuple(len(composer.trained) for composer in COMPOSERS)
    order = Order(sizes, (1, 2), (Mix(0, (share, 1 - share)),), 33, 0)
    return RowSource(COMPOSERS, order, num_steps, rank, world_size)


@pytest.mark.parametrize(("rank", "world_size", "start_step"), [(0, 1, 0), (0, 1, 41), (1, 2, 0), (2, 4, 17)])
def test_rows_are_those_of_the_plain_stream(
    monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int, start_step: int
) -> None:
    monkeypatch.setattr(stream, "BLOCK_BYTES", 20_000)  # several blocks, with a short one at the end
    mine = source(rank, world_size)
    plain = list(mine.rows_from(start_step))
    streamed = list(stream.ray_rows(mine, start_step, num_cpus=0.25))
    assert len(streamed) == len(plain) == 90 - start_step
    for a, b in zip(streamed, plain, strict=True):
        assert np.array_equal(a.input_ids, b.input_ids)
        assert np.array_equal(a.labels, b.labels)
        assert np.array_equal(a.corpus, b.corpus)


def test_workers_together_see_what_one_sees() -> None:
    def questions(mine: RowSource, step: int) -> list[bytes]:
        return [row.tobytes() for part in mine.step_rows(step) for row in part.input_ids]

    for step in (0, 7, 89):
        alone = questions(source(), step)
        shared = [row for rank in range(3) for row in questions(source(rank, 3), step)]
        assert sorted(alone) == sorted(shared)


def test_a_finished_stream_is_empty() -> None:
    assert list(stream.ray_rows(source(), 90, num_cpus=0.25)) == []
