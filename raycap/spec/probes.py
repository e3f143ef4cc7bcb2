"""Spec of the probes: the targets that they read from the residual stream of trained models, and where."""

from enum import StrEnum

from pydantic import Field, field_validator

from raycap.spec.base import Seed, Spec, Split, broken_rule


class ProbeTarget(StrEnum):
    """Component of a question that a probe reads."""

    PERSON = "person"
    """The person that the question names, by the parts of the name."""
    RELATION = "relation"
    """The relation that a two-hop question follows."""
    BRIDGE = "bridge"
    """The person to whom the relation of a two-hop question leads, by the parts of the name."""
    SUBJECT = "subject"
    """The subject that is asked about."""
    ANSWER = "answer"
    """The answer, by the parts of a name or of a date."""


class ProbeSite(StrEnum):
    """Token of a question at which the residual stream is read."""

    PERSON = "person"
    """Last token of the name of the person."""
    RELATION = "relation"
    """Last token of the relation that a two-hop question follows."""
    SUBJECT = "subject"
    """Last token of the subject."""
    ANSWER = "answer"
    """Last token of "Answer:", at which the answer or its chain of thought begins."""
    CHAIN = "chain"
    """Last token of the bridge's name in a chain of thought."""
    CHAIN_END = "chain_end"
    """Last token of the text that ends a chain of thought, at which the answer begins."""


class ProbeFamily(StrEnum):
    """Family of functions among which a probe is chosen. See docs/probes.md#probes."""

    OWN = "own"
    """The model's own output layer, with one scale that is fitted."""
    LINEAR = "linear"
    """Linear functions of the normalised residual. Training starts at the probe of the family own."""


class ProbeLayers(StrEnum):
    """Residuals that are read."""

    BLOCKS = "blocks"
    """The embeddings, and the output of every block."""
    SUBLAYERS = "sublayers"
    """Also the residual between the attention and the MLP of every block."""


class ProbesSpec(Spec):
    """Probes of the trained models of a sweep. They are not part of a trial's identity, and changing them does not retrain
    any trial. See docs/probes.md."""

    targets: tuple[ProbeTarget, ...] = (ProbeTarget.BRIDGE, ProbeTarget.ANSWER)
    """Components of questions that are read."""
    sites: tuple[ProbeSite, ...] = tuple(ProbeSite)
    """Tokens at which they are read. A kind of question is read at those that it has."""
    layers: ProbeLayers = ProbeLayers.BLOCKS
    """Residuals that are read."""
    family: ProbeFamily = ProbeFamily.LINEAR
    """Family of functions among which a probe is chosen."""
    splits: tuple[Split, ...] = (Split.TRAIN,)
    """Splits of two-hop questions that are read. Single hops are read regardless of their split."""
    num_texts: int = Field(default=2000, ge=100, le=1_000_000)
    """Largest number of questions of each kind and split. They are drawn without replacement."""
    num_folds: int = Field(default=4, ge=3, le=20)
    """Number of folds. Every question is read by a probe that is trained on the other folds."""
    num_pairs: int = Field(default=500, ge=0, le=1_000_000)
    """Number of pairs of questions between which residuals are interchanged. 0 omits interchanges."""
    seed: Seed = 0
    """Random seed of questions, folds, controls, pairs and random subspaces."""

    @field_validator("targets", "sites", "splits")
    @classmethod
    def _unique(cls, members: tuple[StrEnum, ...]) -> tuple[StrEnum, ...]:
        if not members or len(set(members)) != len(members):
            raise broken_rule(
                "must have at least one element and no duplicates, got {got}", got=str([str(m) for m in members])
            )
        return members
