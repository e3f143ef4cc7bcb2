"""Two-hop models whose weights are set by hand: one composes two facts, one looks up whole questions in a table.

All attention is uniform, and each text has nine tokens: start, first, middle and last name, relation, subject, prompt,
answer and end. Every token has the entry "constant" and one entry of its kind. Entries of earlier tokens arrive as "seen"
entries. A neuron of an MLP is on if all of its entries are 1.
"""

from itertools import product

import numpy as np
import torch
from tokenizers import Tokenizer

from raycap.facts.corpus import END
from raycap.facts.profiles import Attribute, Profiles, Schema
from raycap.facts.questions import Questions
from raycap.learner import model as llama
from raycap.spec import HeadSize, ModelByWidth, WordTokenizer
from raycap.tokens.composer import Composer
from raycap.tokens.tokenizers import build_tokenizer

NUM_PEOPLE, NUM_RELATIONS, NUM_VALUES = 8, 4, 8
NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gil", "Hal")
ATTRIBUTES = (
    Attribute.uniform("colour", tuple(f"colour{index}" for index in range(NUM_VALUES))),
    Attribute.uniform("food", tuple(f"food{index}" for index in range(NUM_VALUES))),
)
RELATIONS = ("parent", "child", "mentor", "hero")
SIZES = {
    "constant": 1, "person": NUM_PEOPLE, "relation": NUM_RELATIONS, "subject": 2, "seen person": NUM_PEOPLE,
    "seen relation": NUM_RELATIONS, "bridge": NUM_PEOPLE, "seen bridge": NUM_PEOPLE, "seen subject": 2,
    "answer": 2 * NUM_VALUES, "value": 1, "other": 1,
}  # fmt: skip
HIDDEN_SIZE = 64
BEGIN = dict(zip(SIZES, np.cumsum([0, *SIZES.values()]).tolist(), strict=False))
SHARPNESS = 10.0


def entry(kind: str, index: int = 0) -> int:
    """Return the index of an entry of the residual stream."""
    return BEGIN[kind] + index


def population() -> Profiles:
    """Return people with random relations and attributes."""
    rng = np.random.default_rng(0)
    schema = Schema((NAMES, ("Mid",), ("Last",)), ATTRIBUTES, RELATIONS)
    names = np.zeros((NUM_PEOPLE, 3), np.int32)
    names[:, 0] = np.arange(NUM_PEOPLE)
    attributes = np.stack([rng.permutation(NUM_VALUES) for _ in ATTRIBUTES], axis=1).astype(np.int32)
    relations = np.stack([rng.permutation(NUM_PEOPLE) for _ in RELATIONS], axis=1).astype(np.int32)
    return Profiles(schema, names, attributes, relations)


def questions_about(people: Profiles) -> tuple[Composer, Tokenizer, np.ndarray]:
    """Return the composer and tokenizer of two-hop questions, and the ids of questions about attributes."""
    corpus = Questions(people, 2)
    tokenizer = build_tokenizer(WordTokenizer(), (corpus,))
    ids = np.arange(corpus.num_ids)
    return Composer.build(corpus, tokenizer), tokenizer, ids[corpus.unpack(ids).subject < len(ATTRIBUTES)]


class _Writer:
    """Sets the weights of a model without replica axis."""

    def __init__(self, model: llama.Llama) -> None:
        self.model, self.weights = model, {name: p.detach()[0] for name, p in model.named_parameters()}
        for name, weight in self.weights.items():
            weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)

    def move(self, block: int, source: str, target: str, factor: float) -> None:
        """Add the mean of the entries `source` of all earlier tokens, times `factor`, to the entries `target`."""
        value = self.weights[f"layers.{block}.self_attn.qkv_proj.weight"][2 * HIDDEN_SIZE :]
        for index in range(SIZES[source]):
            value[entry(target, index), entry(source, index)] = factor
        self.weights[f"layers.{block}.self_attn.o_proj.weight"].copy_(torch.eye(HIDDEN_SIZE))

    def neuron(
        self, block: int, number: int, needs: dict[int, float], writes: int, scale: float, amount: float
    ) -> None:
        """Add `amount` to an entry where all needed entries are 1; `needs` has their weights, and the norm multiplies by
        `scale`."""
        gate_up = self.weights[f"layers.{block}.mlp.gate_up_proj.weight"]
        for needed, weight in needs.items():
            gate_up[number, needed] = SHARPNESS * weight
        gate_up[number, entry("constant")] = -SHARPNESS * (sum(needs.values()) - 0.5)
        gate_up[4 * HIDDEN_SIZE + number, entry("constant")] = 1.0
        on = SHARPNESS * 0.5 * scale * scale
        self.weights[f"layers.{block}.mlp.down_proj.weight"][writes, number] = amount / on


def norm_scale(*entries: float) -> float:
    """Return the factor of the norm for a residual with these entries that are not 0."""
    return float((HIDDEN_SIZE / np.sum(np.square(entries))) ** 0.5)


def planted_model(people: Profiles, tokenizer: Tokenizer, *, composes: bool) -> llama.Llama:
    """Return a model that finds the bridge at the relation and then the answer, or that looks up (p, r, s) at the end."""
    spec = ModelByWidth(hidden_size=HIDDEN_SIZE, num_layers=2, heads=HeadSize(head_size=HIDDEN_SIZE))
    vocabulary = tokenizer.get_vocab()
    model = llama.Llama(spec, len(vocabulary))
    writer = _Writer(model)
    embed, unembed = writer.weights["embed_tokens.weight"], writer.weights["lm_head.weight"]
    embed[:, entry("constant")] = 1.0
    kinds = {name: ("person", index) for index, name in enumerate(NAMES)}
    kinds |= {f"'s {name}": ("relation", index) for index, name in enumerate(RELATIONS)}
    kinds |= {f"'s {attribute.name}": ("subject", index) for index, attribute in enumerate(ATTRIBUTES)}
    kinds |= {value: ("value", 0) for attribute in ATTRIBUTES for value in attribute.values}
    unembed[vocabulary[END], entry("value")] = 20.0  # the end token follows every value
    for word, token in vocabulary.items():
        embed[token, entry(*kinds.get(word, ("other", 0)))] = 1.0
    for index, name in enumerate(NAMES):
        unembed[vocabulary[name], entry("bridge", index)] = 1.0
    for subject, attribute in enumerate(ATTRIBUTES):
        for index, value in enumerate(attribute.values):
            unembed[vocabulary[value], entry("answer", subject * NUM_VALUES + index)] = 2.0

    # A mean over n tokens is multiplied by n: five up to the relation, where the bridge is found, seven up to the prompt.
    writer.move(0, "person", "seen person", (5 if composes else 7) / norm_scale(1, 1))
    answer = [
        [entry("answer", subject * NUM_VALUES + people.attributes[person, subject]) for subject in range(2)]
        for person in range(NUM_PEOPLE)
    ]
    if composes:
        for person, relation in product(range(NUM_PEOPLE), range(NUM_RELATIONS)):
            # The mean over fewer tokens is up to 2.5, so the relation has a larger weight.
            needs = {entry("seen person", person): 1.0, entry("relation", relation): 3.0}
            bridge = entry("bridge", people.relations[person, relation])
            writer.neuron(0, person * NUM_RELATIONS + relation, needs, bridge, norm_scale(1, 1, 1), 1.0)
        writer.move(1, "bridge", "seen bridge", 7 / norm_scale(1, 1, 1, 1))
        writer.move(1, "subject", "seen subject", 7 / norm_scale(1, 1, 5 / 6))
        for person, subject in product(range(NUM_PEOPLE), range(2)):
            needs = {entry("seen bridge", person): 1.0, entry("seen subject", subject): 1.0}
            scale = norm_scale(1, 1, 1, 1, 5 / 7)
            writer.neuron(1, person * 2 + subject, needs, answer[person][subject], scale, 6.0)
        return model
    writer.move(0, "relation", "seen relation", 7 / norm_scale(1, 1))
    writer.move(1, "subject", "seen subject", 7 / norm_scale(1, 1, 7 / 6, 7 / 6))
    for number, (person, relation, subject) in enumerate(product(range(NUM_PEOPLE), range(NUM_RELATIONS), range(2))):
        needs = {
            entry("seen person", person): 1.0,
            entry("seen relation", relation): 1.0,
            entry("seen subject", subject): 1.0,
        }
        bridge = people.relations[person, relation]
        writer.neuron(1, number, needs, answer[bridge][subject], norm_scale(1, 1, 1, 1, 1), 6.0)
    return model
