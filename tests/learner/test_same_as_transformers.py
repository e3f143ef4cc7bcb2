"""Training has the losses of transformers' Llama under torch's AdamW, step by step."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from raycap.facts.order import Mix, Order
from raycap.facts.profiles import census_schema, generate
from raycap.facts.questions import Questions
from raycap.learner import model as llama
from raycap.learner import optim, pretrained
from raycap.learner.batches import Batch
from raycap.learner.language_model import LanguageModel
from raycap.learner.transformers_model import TransformersModel
from raycap.spec import (
    Activation,
    AdamW,
    BpeTokenizer,
    HeadSize,
    Loop,
    LoopSharing,
    Mlp,
    ModelByWidth,
    NamePools,
    NumHeads,
    TransformersByConfig,
    WordTokenizer,
)
from raycap.tokens.composer import Composer, Rows
from raycap.tokens.rows import RowSource
from raycap.tokens.tokenizers import build_tokenizer

NUM_STEPS, BATCH_SIZE = 20, 64
OPTIMIZER = AdamW(lr=0.01, warmup_steps=5, weight_decay=0.1, grad_clip=0.5)


def rows_of_steps(hops: int, bpe: bool) -> tuple[int, list[Rows]]:
    """Return the size of the vocabulary and the rows of NUM_STEPS steps."""
    corpus = Questions(generate(census_schema(NamePools(first=8, middle=8, last=8), 3), 60, seed=0), hops)
    spec = BpeTokenizer(kind="bpe", vocab_size=400) if bpe else WordTokenizer()
    tokenizer = build_tokenizer(spec, (corpus,))
    composer = Composer.build(corpus, tokenizer)
    order = Order((corpus.num_ids,), (hops,), (Mix(0, (1.0,)),), BATCH_SIZE, 0)
    source = RowSource((composer,), order, NUM_STEPS, 0, 1)
    return (400 if bpe else tokenizer.get_vocab_size()), list(source.rows_from(0))


def share_modules(reference: PreTrainedModel, shape: ModelByWidth) -> None:
    """Let the blocks of transformers' Llama share the modules that the passes of a loop share."""
    if shape.loop is None:
        return
    reference.config.use_cache = False  # keys and values are cached by the index of the attention module
    blocks = reference.model.layers
    for index in range(shape.num_layers, shape.depth):
        first = blocks[index % shape.num_layers]
        if shape.loop.shared is not LoopSharing.MLP:
            blocks[index].self_attn = first.self_attn
        if shape.loop.shared is not LoopSharing.ATTENTION:
            blocks[index].mlp = first.mlp
        if not shape.loop.own_norms:
            blocks[index].input_layernorm = first.input_layernorm
            blocks[index].post_attention_layernorm = first.post_attention_layernorm


@pytest.mark.parametrize(
    ("hops", "bpe", "shape"),
    [
        (1, False, ModelByWidth(hidden_size=16, num_layers=2, heads=NumHeads(num_heads=1), tie_embeddings=True)),
        (2, True, ModelByWidth(hidden_size=32, num_layers=2, heads=HeadSize(head_size=8))),
        (2, True, ModelByWidth(hidden_size=16, num_layers=2, heads=HeadSize(head_size=8), loop=Loop(times=2))),
        (
            1,
            False,
            ModelByWidth(
                hidden_size=16,
                num_layers=1,
                heads=HeadSize(head_size=8),
                loop=Loop(times=3, shared=LoopSharing.ATTENTION, own_norms=True),
                mlp=Mlp(activation=Activation.RELU2, gated=False, ratio=3.0),
            ),
        ),
    ],
    ids=["one hop, words, tied", "two hops, BPE, untied", "looped blocks", "looped attention, no gates"],
)
def test_training_losses_equal_those_of_transformers(hops: int, bpe: bool, shape: ModelByWidth, tmp_path: Path) -> None:
    vocab_size, steps = rows_of_steps(hops, bpe)
    model = llama.build_model(shape, vocab_size, generators=(torch.Generator().manual_seed(1),))
    pretrained.save_pretrained(model, tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    share_modules(reference, shape)
    # The same weights as a model of kind transformers, which does not share prefixes and has no loops.
    models: list[LanguageModel] = [model]
    if shape.loop is None:
        config = {"model_type": "llama", "hidden_size": shape.hidden_size, "num_hidden_layers": shape.num_layers}
        spec = TransformersByConfig(kind="transformers", config=config)
        models.append(TransformersModel(spec, AutoModelForCausalLM.from_pretrained(tmp_path)))
    optimizers = [optim.build_optimizer((OPTIMIZER,), each) for each in models]
    decayed = [p for name, p in reference.named_parameters() if "norm" not in name]
    gains = [p for name, p in reference.named_parameters() if "norm" in name]
    reference_optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}], betas=OPTIMIZER.betas
    )
    losses: list[list[float]] = [[] for _ in models]
    reference_losses = []
    for step, rows in enumerate(steps):
        batch = Batch.of([rows], vocab_size, llama.CPU)
        for each, optimizer, own_losses in zip(models, optimizers, losses, strict=True):
            (rate,) = optimizer.set_rate(step, NUM_STEPS)
            objective = each.token_losses(batch).sum() / BATCH_SIZE
            own_losses.append(objective.item())
            optimizer.take_gradients(objective)
            optimizer.clip_gradients(OPTIMIZER.grad_clip)
            optimizer.step()

        tokens = torch.from_numpy(rows.input_ids.astype("int64"))
        targets = tokens.masked_fill(torch.from_numpy(rows.labels == 0), -100)[:, 1:]
        logits = reference(tokens).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum") / BATCH_SIZE
        reference_losses.append(loss.item())
        reference_optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), OPTIMIZER.grad_clip)
        for group in reference_optimizer.param_groups:
            group["lr"] = rate
        reference_optimizer.step()
    for own_losses in losses:
        assert own_losses[-1] < 0.8 * own_losses[0]
        assert own_losses == pytest.approx(reference_losses, rel=1e-6)  # measured: at most 3e-7
