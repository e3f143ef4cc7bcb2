"""The interface of models to optimizers, training, evaluation and export: raycap's Llama, and models of transformers."""

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor, nn

from raycap.learner.batches import Batch
from raycap.results import ParameterCounts
from raycap.spec import ResolvedModel

CPU = torch.device("cpu")


class ParameterGroup(StrEnum):
    """Kinds of parameters: those of one group share weight decay, scaling with the width, and memory."""

    EMBEDDING = "embedding"
    """Token embeddings, (V, H); with tied embeddings also the output layer."""
    UNEMBEDDING = "unembedding"
    """Output layer, (V, H), if embeddings are not tied."""
    MATRIX = "matrix"
    """Projections of attention and MLP: both dimensions grow with the width."""
    GAIN = "gain"
    """Gains of the norms, (H,), and all other vectors, such as biases."""

    @classmethod
    def of(cls, name: str) -> "ParameterGroup":
        """Return the group of the Llama parameter with this name in `named_parameters`."""
        if name.startswith("embed_tokens"):
            return cls.EMBEDDING
        if name.startswith("lm_head"):
            return cls.UNEMBEDDING
        return cls.GAIN if name.endswith("norm.weight") else cls.MATRIX


class LanguageModel(nn.Module, ABC):
    """A stack of replicas: R independent models of one shape that are computed together. R is 1 for a single model.

    Letters as in model.py: R replicas, A answer positions, V vocabulary size.
    """

    spec: ResolvedModel
    vocab_size: int
    storage: dict[ParameterGroup, Tensor]
    """Trained weights of each group as one tensor (R, P). Parameters are views of it; optimizers update it."""

    @property
    def num_replicas(self) -> int:
        """Number of replicas in the stack."""
        return len(next(iter(self.storage.values())))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(iter(self.storage.values())).device

    @abstractmethod
    def grouped_parameters(self) -> list[tuple[ParameterGroup, nn.Parameter]]:
        """Return the trained parameters with their groups; those of one group are in the order of its storage."""

    @abstractmethod
    def replica(self, index: int) -> Self:
        """Return one replica as a stack of one that shares memory with this stack."""

    @abstractmethod
    def copy(self, device: torch.device | None = None) -> Self:
        """Return a copy in new memory, on the same device or another."""

    @abstractmethod
    def answer_logits(self, batch: Batch) -> Tensor:
        """Return the logits at the answer positions of a batch, (R, A, V)."""

    @abstractmethod
    def token_losses(self, batch: Batch) -> Tensor:
        """Return the loss of every measured token of a batch, (R, A), in nats."""

    @abstractmethod
    def count_parameters(self) -> ParameterCounts:
        """Return the numbers of parameters of one replica."""
