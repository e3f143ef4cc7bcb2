"""What small models learn under each arm of questions: chains, the two-hop trap, three hops, bipartite, curricula.

One training serves several tests. Every bound held with a margin for at least three seeds of people, weights and order.
"""

import numpy as np
import pytest

from raycap.facts.build import populations_of
from raycap.facts.entropy import answer_bits
from raycap.learner.trial import run_trial
from raycap.results import LossTable, Part, StopReason, TrialResult
from raycap.spec import (
    AdamW,
    Exposures,
    HeldOut,
    Kind,
    LossBelow,
    ModelByWidth,
    NamePools,
    NumHeads,
    Phase,
    ProfilesByCount,
    QuestionsByShare,
    QuestionsByWeights,
    RelationStructure,
    SelectionScheme,
    Split,
    Steps,
    TrainingSpec,
    TrialSpec,
)

SEED = 0
SMALL_POOLS = NamePools(first=10, middle=10, last=10)


def trained(
    questions: QuestionsByShare | QuestionsByWeights,
    *,
    length: Exposures | Steps,
    num_profiles: int = 60,
    num_relations: int = 4,
    structure: RelationStructure = RelationStructure.UNIFORM,
    names: NamePools = SMALL_POOLS,
    hidden_size: int = 32,
    lr: float = 0.01,
    warmup_steps: int = 50,
    batch_size: int = 128,
    curriculum: tuple[Phase, ...] = (),
) -> TrialResult:
    spec = TrialSpec(
        profiles=ProfilesByCount(
            num_profiles=num_profiles, num_relations=num_relations, structure=structure, names=names, seed=SEED
        ),
        questions=questions,
        model=ModelByWidth(hidden_size=hidden_size, num_layers=2, heads=NumHeads(num_heads=1), tie_embeddings=True),
        training=TrainingSpec(
            length=length,
            batch_size=batch_size,
            optimizer=AdamW(lr=lr, betas=(0.8, 0.99), weight_decay=0.0, warmup_steps=warmup_steps, grad_clip=0.3),
            curriculum=curriculum,
            num_evaluations=4,
            seed=SEED,
        ),
    )
    return run_trial(spec, source_commit="test").result


def uniform_bits(result: TrialResult) -> float:
    """Mean loss of a question to a model that knows just which answers are possible."""
    return float(np.mean(list(answer_bits(result.populations[0], SelectionScheme.SET).values())))


def frequency_bits(result: TrialResult) -> float:
    """Mean loss of a one-hop question to a model that knows how often each answer is given, but not by whom."""
    (profiles,) = populations_of(result.spec)
    shares = [np.unique(answers, return_counts=True)[1] / len(answers) for answers in profiles.answers.T]
    return float(np.mean([-(share * np.log2(share)).sum() for share in shares]))


def one_and_two_hop(losses: LossTable) -> tuple[float, float]:
    return losses.select(Kind.ONE_HOP).mean_bits, losses.select(Kind.TWO_HOP).mean_bits


# Chains of thought, and what is new in a question.


def with_or_without_chain(chain_of_thought: bool) -> TrialResult:
    held_out = HeldOut(first_people=0.1, second_people=0.1, tuples=0.1)
    questions = QuestionsByShare(hops=(1, 2), one_hop_share=0.5, chain_of_thought=chain_of_thought, held_out=held_out)
    return trained(questions, length=Exposures(exposures=180))


@pytest.fixture(scope="module")
def spelled() -> TrialResult:
    return with_or_without_chain(True)


@pytest.fixture(scope="module")
def latent() -> TrialResult:
    return with_or_without_chain(False)


def test_a_chain_answers_combinations_that_were_never_trained(spelled: TrialResult, latent: TrialResult) -> None:
    """With a chain, new combinations are answered, what the chain costs included; without, as if nothing were known."""

    def tuples(result: TrialResult, part: Part) -> float:
        return result.final.losses.select(Kind.TWO_HOP, split=Split.TUPLES, part=part).mean_bits

    uniform = uniform_bits(spelled)
    answer, chain, without = tuples(spelled, Part.ANSWER), tuples(spelled, Part.CHAIN), tuples(latent, Part.ANSWER)
    assert answer < 0.2 * uniform
    assert without > 0.5 * uniform
    assert answer + chain < 0.5 * without


def test_a_chain_is_measured_apart_from_its_answer(spelled: TrialResult, latent: TrialResult) -> None:
    """Both parts are learned; as many chains as answers are measured, and none where none is spelled."""
    losses = spelled.final.losses
    chain, answer = (losses.select(Kind.TWO_HOP, part=part) for part in (Part.CHAIN, Part.ANSWER))
    assert chain.num_texts == answer.num_texts
    assert max(chain.mean_bits, answer.mean_bits) < 0.1 * uniform_bits(spelled)
    assert spelled.evaluations[0].losses.select(Kind.TWO_HOP, part=Part.CHAIN).mean_bits > 10 * chain.mean_bits
    for table, kind in ((losses, Kind.ONE_HOP), (latent.final.losses, Kind.TWO_HOP)):
        with pytest.raises(KeyError, match="chain"):
            table.select(kind, part=Part.CHAIN)


def test_single_hops_of_what_is_held_out_are_learned(spelled: TrialResult, latent: TrialResult) -> None:
    """What is new to questions of two hops is well known to those of one."""
    for result in (spelled, latent):
        matrix, uniform = result.final.losses.generalisation(), uniform_bits(result)
        for split in (Split.FIRST_PEOPLE, Split.SECOND_PEOPLE, Split.SEVERAL):
            assert matrix[split]["one_hop"] < 0.35 * uniform


def test_where_a_chain_fails(spelled: TrialResult) -> None:
    """A chain once spelled is answered from, whoever was asked, unless it led where no trained chain led.

    To spell it for a person new to the front is harder than for a new combination, though all are known in one hop.
    """
    uniform, splits = uniform_bits(spelled), (Split.FIRST_PEOPLE, Split.SECOND_PEOPLE, Split.TUPLES)
    answer, chain = (
        {split: spelled.final.losses.select(Kind.TWO_HOP, part=part, split=split).mean_bits for split in splits}
        for part in (Part.ANSWER, Part.CHAIN)
    )
    assert max(answer[Split.FIRST_PEOPLE], answer[Split.TUPLES]) < 0.2 * uniform
    assert answer[Split.SECOND_PEOPLE] > 3 * answer[Split.TUPLES]
    assert chain[Split.FIRST_PEOPLE] > 3 * chain[Split.TUPLES]


def test_without_a_chain_nothing_new_is_answered(latent: TrialResult) -> None:
    """Trained questions are on the way to memory; new ones get nothing from it, least of all about new second people."""
    two_hop = {split: row["two_hop"] for split, row in latent.final.losses.generalisation().items()}
    uniform = uniform_bits(latent)
    assert two_hop[Split.TRAIN] < 0.6 * uniform
    assert min(loss for split, loss in two_hop.items() if split != Split.TRAIN) > 0.6 * uniform
    assert two_hop[Split.TUPLES] < 0.8 * two_hop[Split.SECOND_PEOPLE]


# The two-hop trap (T6) in miniature: 200 people, a model with room for every fact twice, but not for every answer.


def trap(questions: QuestionsByShare, *, num_steps: int, batch_size: int = 256) -> TrialResult:
    return trained(
        questions,
        length=Steps(steps=num_steps),
        num_profiles=200,
        names=NamePools(first=20, middle=20, last=40),
        hidden_size=16,
        lr=0.02,
        warmup_steps=200,
        batch_size=batch_size,
    )


ONE_IN_ELEVEN = QuestionsByShare(hops=(1, 2), one_hop_share=1 / 11)
ONE_IN_TWO = QuestionsByShare(hops=(1, 2), one_hop_share=0.5)


def test_facts_are_learned_from_one_one_hop_question_in_two_before_one_in_eleven() -> None:
    """The trap's beginning: after as many steps, 1/11 knows how frequent answers are, 1/2 many facts."""
    few, half = (trap(questions, num_steps=800) for questions in (ONE_IN_ELEVEN, ONE_IN_TWO))
    one_hop, two_hop = one_and_two_hop(few.final.losses)
    assert one_hop > 0.78 * uniform_bits(few)
    assert one_hop > frequency_bits(few) - 0.3
    assert two_hop < one_hop - 0.2
    one_hop, two_hop = one_and_two_hop(half.final.losses)
    assert one_hop < 0.7 * uniform_bits(half)
    assert two_hop > one_hop + 1


@pytest.mark.slow
def test_the_trap_holds_while_two_hop_answers_are_memorised() -> None:
    """At 1/11 single facts stay unlearned though two-hop answers are memorised; at 1/2 it is the reverse.

    Nor is it for want of one-hop questions: as many of them, and nothing else, teach the facts.
    """
    few, half = (trap(questions, num_steps=3000) for questions in (ONE_IN_ELEVEN, ONE_IN_TWO))
    alone = trap(QuestionsByShare(hops=(1,)), num_steps=3000, batch_size=24)
    uniform = uniform_bits(few)
    one_hop, two_hop = one_and_two_hop(few.final.losses)
    assert one_hop > 0.7 * uniform
    assert one_hop > frequency_bits(few) - 0.6  # which answers are common is known, hardly whose they are
    assert two_hop < one_hop - 0.8
    one_hop, two_hop = one_and_two_hop(half.final.losses)
    assert one_hop < 0.35 * uniform
    assert two_hop > 0.65 * uniform
    assert alone.final.losses.select(Kind.ONE_HOP).mean_bits < 0.6 * uniform


@pytest.mark.slow
def test_a_model_with_room_for_every_answer_leaves_the_trap() -> None:
    """Where there is room for every two-hop answer, all of them are memorised, and then the single facts follow."""
    result = trained(
        ONE_IN_ELEVEN,
        length=Steps(steps=4000),
        num_profiles=200,
        names=NamePools(first=20, middle=20, last=40),
        warmup_steps=200,
        batch_size=256,
    )
    one_hop, two_hop = one_and_two_hop(result.final.losses)
    assert two_hop < 0.15 * uniform_bits(result)
    assert two_hop < one_hop < 0.5 * uniform_bits(result)


# Three hops.


@pytest.fixture(scope="module")
def three_hops() -> TrialResult:
    questions = QuestionsByWeights(
        hops=(1, 2, 3), weights=(1, 1, 1), chain_of_thought=True, held_out=HeldOut(tuples=0.1)
    )
    return trained(questions, length=Exposures(exposures=200), num_relations=2)


def test_three_hops_are_learned(three_hops: TrialResult) -> None:
    """All numbers of hops, chains and answers, fall far below uniform."""
    losses, uniform = three_hops.final.losses, uniform_bits(three_hops)
    assert losses.kinds == (Kind.ONE_HOP, Kind.TWO_HOP, Kind.THREE_HOP)
    for kind in losses.kinds:
        assert losses.select(kind).mean_bits < 0.15 * uniform
    assert losses.select(Kind.THREE_HOP, part=Part.CHAIN).mean_bits < 0.15 * uniform


def test_three_hops_generalise_by_their_chain(three_hops: TrialResult) -> None:
    """Three-hop questions with a two-hop part that is held out are answered too; with the trained ones they are all."""
    losses = three_hops.final.losses
    held_out = losses.select(Kind.THREE_HOP, split=Split.TUPLES)
    assert held_out.mean_bits < 0.4 * uniform_bits(three_hops)
    assert held_out.num_texts + losses.select(Kind.THREE_HOP).num_texts == 60 * 2**2 * 6


# Bipartite relations.


@pytest.fixture(scope="module")
def bipartite() -> TrialResult:
    return trained(
        QuestionsByShare(hops=(1, 2), one_hop_share=0.5, chain_of_thought=True),
        length=Exposures(exposures=150),
        structure=RelationStructure.BIPARTITE,
    )


def test_parents_and_children_are_both_learned(bipartite: TrialResult) -> None:
    """And best friends and worst enemies: all four relations, far below log2 N, in one hop and in two."""
    for kind in (Kind.ONE_HOP, Kind.TWO_HOP):
        by_subject = bipartite.final.losses.select(kind).by_subject()
        for relation in ("parent", "child", "best_friend", "worst_enemy"):
            assert by_subject[relation].mean_bits < 0.25 * np.log2(60)


def test_questions_without_an_answer_are_never_asked(bipartite: TrialResult) -> None:
    """Half the people have a parent; of two hops, parent's parent and child's child lead nowhere."""
    losses = bipartite.final.losses
    one_hop, two_hop = (losses.select(kind).by_subject() for kind in (Kind.ONE_HOP, Kind.TWO_HOP))
    for relation in ("parent", "child"):
        assert one_hop[relation].num_texts == 30
        assert two_hop[relation].num_texts == 30 + 2 * 30  # through the other one, and through friend and enemy
    for subject in ("employer", "best_friend", "worst_enemy"):
        assert one_hop[subject].num_texts == 60
        assert two_hop[subject].num_texts == 2 * 30 + 2 * 60
    assert all(row.num_evaluated == row.num_texts for row in losses.rows)


# Curriculum.


@pytest.fixture(scope="module")
def curriculum() -> TrialResult:
    return trained(
        QuestionsByShare(hops=(1, 2), one_hop_share=0.3),
        length=Exposures(exposures=250),
        curriculum=(Phase(weights=(1, 0), until=LossBelow(loss_below_bits=2.0)),),
    )


def test_a_phase_ends_when_its_loss_is_reached(curriculum: TrialResult) -> None:
    """One phase, then the other; the first ends before the length, and not before single hops are half learned."""
    phases = [evaluation.phase for evaluation in curriculum.evaluations]
    assert phases == sorted(phases)
    assert set(phases) == {0, 1}
    assert curriculum.stop_reason is StopReason.LENGTH
    one_hop, _ = one_and_two_hop(curriculum.evaluations[phases.index(1) - 1].losses)
    assert one_hop < 0.5 * uniform_bits(curriculum)


def test_two_hops_are_learned_in_their_phase_and_not_before(curriculum: TrialResult) -> None:
    """Until asked, two hops cost more than knowing the possible answers would; then their loss falls."""
    uniform = uniform_bits(curriculum)
    last_of_first_phase = [evaluation for evaluation in curriculum.evaluations if evaluation.phase == 0][-1]
    _, two_hop_before = one_and_two_hop(last_of_first_phase.losses)
    one_hop, two_hop = one_and_two_hop(curriculum.final.losses)
    assert two_hop_before > 1.2 * uniform
    assert two_hop < 0.5 * uniform
    assert one_hop < 0.25 * uniform  # and single hops are not forgotten
