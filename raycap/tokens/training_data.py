"""The training data of a trial: tokenizer, corpora, their shares and order, and the number of steps."""

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
"""Offset of the random streams of the second population's corpora. The stream of a corpus is its number of hops, plus
this offset for the second population."""


@dataclass(frozen=True)
class TrainingData:
    """The training data of a resolved trial.

    Corpora are ordered by population, and for each population by kind, as in `spec.questions.kinds`.
    """

    spec: TrialSpec
    tokenizer: Tokenizer
    composers: tuple[Composer, ...]
    """One composer for each corpus."""
    num_facts: int
    """Number of facts of the last population, whose exposures are counted."""

    @classmethod
    def of(
        cls, spec: TrialSpec, populations: tuple[Profiles, ...], tokenizer: Tokenizer | None = None
    ) -> "TrainingData":
        """Build the training data from a spec and its populations.

        Args:
            spec: A resolved spec.
            populations: The populations of the spec, see facts.build.populations_of.
            tokenizer: The parent's tokenizer under fill. By default a tokenizer is built.

        Raises:
            ValueError: A population cannot yield the texts of the spec, no text of a kind is trained, or the tokenizer
                lacks a word.
        """
        corpora = [corpora_of(profiles, spec.questions) for profiles in populations]
        tokenizer = tokenizer or build_tokenizer(spec.tokenizer, corpora[0])  # which has all words of its corpora
        flat = [corpus for group in corpora for corpus in group]
        try:
            composers = tuple(Composer.build(corpus, tokenizer, index) for index, corpus in enumerate(flat))
        except KeyError as error:
            raise ValueError(
                f"fill: the parent's tokenizer has no word for {error}; use the same name pools and kinds of questions"
            ) from None
        for composer, share in zip(composers, cls._shares(spec), strict=True):
            if share > 0 and not len(composer.trained):
                kind = str(composer.corpus.kind).replace("_", "-")
                raise ValueError(
                    f"questions: no {kind} question has an answer and is trained; reduce questions.hops or held_out"
                )
        return cls(spec, tokenizer, composers, num_facts(flat[-1]))

    @property
    def vocab_size(self) -> int:
        """Number of rows of the embedding."""
        return num_embeddings(self.spec.tokenizer, self.tokenizer)

    @property
    def population_of(self) -> tuple[int, ...]:
        """Index of the population of each corpus."""
        return tuple(index // len(self.spec.questions.kinds) for index in range(len(self.composers)))

    def shares(self, phase: Phase | None = None) -> tuple[float, ...]:
        """Return the share of each corpus in the training texts, of a phase or by default of the mix of `questions`."""
        return self._shares(self.spec, phase)

    @staticmethod
    def _shares(spec: TrialSpec, phase: Phase | None = None) -> tuple[float, ...]:
        kinds = tuple(w / sum(phase.weights) for w in phase.weights) if phase else spec.questions.shares
        return tuple(a * b for a, b in product(spec.fill.shares if spec.fill else (1.0,), kinds))

    @property
    def corpus_weights(self) -> tuple[float, ...]:
        """Factor of the training loss of each corpus."""
        weights = self.spec.fill.loss_weights if self.spec.fill else (1.0,)
        return tuple(weights[population] for population in self.population_of)

    @cached_property
    def token_counts(self) -> tuple[TokenCounts, ...]:
        """Numbers of tokens of the training texts of each corpus."""
        return tuple(composer.token_counts for composer in self.composers)

    def rates(self, shares: tuple[float, ...]) -> Rates:
        """Return the mean exposures and tokens per text of a mix."""
        tokens = sum(share * counts.mean for share, counts in zip(shares, self.token_counts, strict=True))
        return Rates(exposures=self.exposures(shares), tokens=tokens)

    def measured_tokens(self, shares: tuple[float, ...]) -> float:
        """Return the mean number of measured tokens per text of a mix."""
        return sum(share * counts.mean_measured for share, counts in zip(shares, self.token_counts, strict=True))

    def exposures(self, num_texts: tuple[float, ...] | tuple[int, ...]) -> float:
        """Return the mean uses per fact of the last population after the given number of texts of each corpus."""
        last = self.population_of[-1]
        uses = (
            num * composer.corpus.uses
            for num, composer, population in zip(num_texts, self.composers, self.population_of, strict=True)
            if population == last
        )
        return sum(uses) / self.num_facts

    @property
    def num_steps(self) -> int:
        """Number of steps of the full training length.

        It includes curriculum phases. Phases of known length have their own rates of exposures and tokens per step.
        Phases that end at a loss have an unknown length and are counted at the rates of the mix of `questions`.

        Raises ValueError if phases of known length leave no steps for the mix of `questions`.
        """
        training = self.spec.training
        length, batch_size = training.length, training.batch_size
        remaining, per_text = self.rates(self.shares()).amount(length, batch_size)
        steps_before = 0
        for phase in training.curriculum:
            if not isinstance(phase.until, LossBelow):
                rates = self.rates(self.shares(phase))
                steps = rates.num_steps(phase.until, batch_size)
                steps_before += steps
                remaining -= steps * batch_size * rates.amount(length, batch_size)[1]
        if steps_before and remaining <= 0:
            raise ValueError(
                "training.curriculum: the phases must be shorter than training.length; increase it or shorten them"
            )
        return steps_before + max(1, math.ceil(remaining / per_text / batch_size))

    def order(self, mixes: tuple[Mix, ...]) -> Order:
        """Return the order of the training texts under some mixes."""
        streams = tuple(
            composer.corpus.kind.hops + SECOND_POPULATION_STREAMS * population
            for composer, population in zip(self.composers, self.population_of, strict=True)
        )
        sizes = tuple(len(composer.trained) for composer in self.composers)
        training = self.spec.training
        frequencies = tuple(composer.trained.frequencies for composer in self.composers)
        return Order(
            sizes, streams, mixes, training.batch_size, training.order_seed, frequencies if any(frequencies) else ()
        )
