"""What a trial reads: its tokenizer, its corpora as composers, and in what proportion. No torch here."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from tokenizers import Tokenizer

from raycap.facts.build import corpora_of
from raycap.facts.corpus import num_facts
from raycap.facts.order import Mix, Order, Rates
from raycap.facts.profiles import Profiles
from raycap.spec import LossBelow, Phase, TrialSpec
from raycap.tokens.composer import Composer, TokenCounts
from raycap.tokens.tokenizers import build_tokenizer, num_embeddings

SECOND_POPULATION_STREAMS = 100
"""Random streams of the second population's corpora begin here; those of the first are known by their hops."""


@dataclass(frozen=True)
class TrainingData:
    """The reading of a resolved trial. Corpora: each kind of the first population, then of the second if there is one."""

    spec: TrialSpec
    tokenizer: Tokenizer
    composers: tuple[Composer, ...]
    num_facts: int
    """Facts of the population that exposures are counted of: the last."""

    @classmethod
    def of(
        cls, spec: TrialSpec, populations: tuple[Profiles, ...], tokenizer: Tokenizer | None = None
    ) -> "TrainingData":
        """The reading of some populations; under fill with the parent's tokenizer.

        Raises ValueError where a population cannot give such texts, or the tokenizer lacks words for it.
        """
        corpora = [corpora_of(profiles, spec.questions) for profiles in populations]
        known = tokenizer or build_tokenizer(spec.tokenizer, corpora[0])
        places = [corpus for about in corpora for corpus in about]
        try:
            composers = tuple(Composer.build(corpus, known, place) for place, corpus in enumerate(places))
        except KeyError as error:
            raise ValueError(
                f"fill: the parent's tokenizer has no word for {error}; take the same pools and kinds"
            ) from None
        for composer, share in zip(composers, cls._shares(spec), strict=True):
            if share > 0 and not len(composer.trained):
                kind = str(composer.corpus.kind).replace("_", "-")
                raise ValueError(f"questions: no {kind} question has an answer and is trained; ask fewer hops")
        return cls(spec, known, composers, num_facts(places[-1]))

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return num_embeddings(self.spec.tokenizer, self.tokenizer)

    @property
    def population_of(self) -> tuple[int, ...]:
        """The population that each corpus is about."""
        return tuple(place // len(self.spec.questions.kinds) for place in range(len(self.composers)))

    def shares(self, phase: Phase | None = None) -> tuple[float, ...]:
        """Share of each corpus in the questions' own mix, or in a phase's."""
        return self._shares(self.spec, phase)

    @staticmethod
    def _shares(spec: TrialSpec, phase: Phase | None = None) -> tuple[float, ...]:
        kinds = tuple(w / sum(phase.weights) for w in phase.weights) if phase else spec.questions.shares
        return tuple(a * b for a, b in product(spec.fill.shares if spec.fill else (1.0,), kinds))

    @property
    def corpus_weights(self) -> tuple[float, ...]:
        """What the losses of each corpus are multiplied by in training."""
        weights = self.spec.fill.loss_weights if self.spec.fill else (1.0,)
        return tuple(weights[population] for population in self.population_of)

    @cached_property
    def token_counts(self) -> tuple[TokenCounts, ...]:
        """Tokens of the trained texts of each corpus."""
        return tuple(composer.token_counts for composer in self.composers)

    def rates(self, shares: tuple[float, ...]) -> Rates:
        """What one text of a mix is on average."""
        tokens = sum(share * counts.mean for share, counts in zip(shares, self.token_counts, strict=True))
        return Rates(exposures=self.exposures(shares), tokens=tokens)

    def measured_tokens(self, shares: tuple[float, ...]) -> float:
        """Mean measured tokens of a text of a mix."""
        return sum(share * counts.mean_measured for share, counts in zip(shares, self.token_counts, strict=True))

    def exposures(self, asked: tuple[float, ...] | tuple[int, ...]) -> float:
        """Uses per fact of the last population after so many texts of each corpus."""
        last = self.population_of[-1]
        uses = (
            num * composer.corpus.uses
            for num, composer, population in zip(asked, self.composers, self.population_of, strict=True)
            if population == last
        )
        return sum(uses) / self.num_facts

    @property
    def num_steps(self) -> int:
        """Steps of the trial's full length, phases of known length included; phases that end by loss take from it.

        Raises ValueError if phases of known length leave nothing to the questions' own mix.
        """
        training = self.spec.training
        length, batch_size = training.length, training.batch_size
        left, per_text = self.rates(self.shares()).amount(length, batch_size)
        steps_before = 0
        for phase in training.curriculum:
            if not isinstance(phase.until, LossBelow):
                rates = self.rates(self.shares(phase))
                steps = rates.num_steps(phase.until, batch_size)
                steps_before += steps
                left -= steps * batch_size * rates.amount(length, batch_size)[1]
        if steps_before and left <= 0:
            raise ValueError("training.curriculum: its phases fill the whole training.length; lengthen it or cut them")
        return steps_before + max(1, math.ceil(left / per_text / batch_size))

    def order(self, mixes: tuple[Mix, ...]) -> Order:
        """The order of texts under some mixes."""
        streams = tuple(
            composer.corpus.kind.hops + SECOND_POPULATION_STREAMS * population
            for composer, population in zip(self.composers, self.population_of, strict=True)
        )
        sizes = tuple(len(composer.trained) for composer in self.composers)
        training = self.spec.training
        return Order(sizes, streams, mixes, training.batch_size, training.order_seed)
