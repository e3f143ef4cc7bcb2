"""Questions with the residuals of a model at the sites of probes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from raycap.facts.corpus import Ids
from raycap.facts.probing import TargetPart, site_slots
from raycap.facts.questions import Questions
from raycap.learner.model import Llama
from raycap.learner.residuals import num_residuals, read_residuals
from raycap.spec.probes import ProbeLayers, ProbeSite
from raycap.tokens.composer import Composer
from raycap.tokens.tokenizers import first_tokens


@dataclass(frozen=True)
class ProbedQuestions:
    """Questions of one kind with their residuals in a model at some sites."""

    model: Llama
    composer: Composer
    ids: Ids
    sites: dict[ProbeSite, NDArray[np.int32]]
    """Column of each site in the row of each question, (n,)."""

    @classmethod
    def of(cls, model: Llama, composer: Composer, ids: Ids, sites: tuple[ProbeSite, ...]) -> "ProbedQuestions":
        """Return the questions at those of the sites that they have."""
        assert isinstance(composer.corpus, Questions)
        columns = composer.last_columns(ids)
        found = site_slots(composer.corpus, ids)
        return cls(model, composer, ids, {site: columns[:, found[site]] for site in sites if site in found})

    @cached_property
    def residuals(self) -> Tensor:
        """Residuals, (residuals, n, sites, H)."""
        return read_residuals(self.model, self.composer, self.ids, np.stack([*self.sites.values()], axis=1))

    @torch.no_grad()
    def inputs(self, residual: int, site: ProbeSite) -> Tensor:
        """Return the inputs of probes, (n, H): a residual after the norm before the output layer."""
        x = self.residuals[residual, :, list(self.sites).index(site)].to(self.model.device)
        return self.model.norm(x[None])[0]  # type: ignore[no-any-return]


def probed_residuals(model: Llama, layers: ProbeLayers) -> list[int]:
    """Return the numbers of the residuals that are read."""
    return list(range(0, num_residuals(model), 2 if layers is ProbeLayers.BLOCKS else 1))


def own_rows(model: Llama, tokenizer: Tokenizer, part: TargetPart) -> Tensor:
    """Return the rows of the output layer for the classes of a part, (C, H): those of the first token of each."""
    tokens = torch.from_numpy(first_tokens(tokenizer, part.words)).to(model.device)
    return model.unembedding[0, tokens].detach()
