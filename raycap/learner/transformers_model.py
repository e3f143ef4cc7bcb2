"""Causal language models of transformers as language models of raycap: training, loading and saving.

They train alone, on whole rows: prefixes that rows share are computed for every row.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from raycap.learner.batches import Batch
from raycap.learner.language_model import CPU, LanguageModel, ParameterGroup
from raycap.learner.model import gather_rows
from raycap.learner.transformers_config import as_json, build_config, differing_fields
from raycap.results import ParameterCounts
from raycap.spec import PretrainedModel, TransformersByConfig
from raycap.storage.saved_model import CONFIG, read_settings

GROUPS = ParameterCounts.model_fields.keys() - {"base"}
NO_CODE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Options with which transformers neither downloads anything nor runs code that comes with a model."""
MAX_ACAUSAL = 1e-5
"""Largest accepted effect of a later token on a logit, relative to the largest logit."""
PARTS = {
    "attention": ("attn", "attention"),
    "mlp": ("mlp", "ffn", "feed_forward", "moe", "expert", "fc1", "fc2"),
}
"""Parts of the names of modules by group of `ParameterCounts`. Other matrices are counted as `other`."""


class TransformersModel(LanguageModel):
    """A causal language model of transformers, as a stack of one replica.

    It is always in evaluation mode, that is, without dropout, so that training has no randomness of its own.
    """

    spec: TransformersByConfig | PretrainedModel

    def __init__(
        self, spec: TransformersByConfig | PretrainedModel, network: PreTrainedModel, device: torch.device = CPU
    ) -> None:
        """Move the weights of a model of transformers to a device and into one tensor per group."""
        super().__init__()
        self.spec, self.network = spec, network
        nn.Module.to(network, device).eval()
        network.config.use_cache = False  # for generation only
        embeddings: Any = network.get_input_embeddings()
        self.vocab_size = embeddings.num_embeddings
        by_group: dict[ParameterGroup, list[nn.Parameter]] = {}
        for group, parameter in self.grouped_parameters():
            by_group.setdefault(group, []).append(parameter)
        self.storage = {group: _merged(parameters) for group, parameters in by_group.items()}

    def grouped_parameters(self) -> list[tuple[ParameterGroup, nn.Parameter]]:
        """Return the trained parameters with their groups."""
        parts = {id(parameter): _group(part, parameter) for part, parameter in _parts(self.network)}
        return [(parts[id(each)], each) for each in self.network.parameters() if each.requires_grad]

    def replica(self, index: int) -> "TransformersModel":
        """Return the only replica."""
        assert index == 0, "models of transformers train alone"
        return self

    def copy(self, device: torch.device | None = None) -> "TransformersModel":
        """Return a copy in new memory, on the same device or another."""
        return TransformersModel(self.spec, copy.deepcopy(self.network), device or self.device)

    def answer_logits(self, batch: Batch) -> Tensor:
        """Return the logits at the answer positions of a batch, (1, A, V)."""
        tokens = batch.tokens[0].index_select(0, batch.node_of_cell[0]).view(batch.shape)
        return self._logits(tokens, batch.answer_cells)

    def token_losses(self, batch: Batch) -> Tensor:
        """Return the loss of every measured token of a batch, (1, A), in nats."""
        return F.cross_entropy(self.answer_logits(batch).float().mT, batch.targets, reduction="none")

    def count_parameters(self) -> ParameterCounts:
        """Return the numbers of parameters by group."""
        return count_parameters(self.network)

    def _logits(self, tokens: Tensor, cells: Tensor) -> Tensor:
        """Return the logits (1, A, V) of rows of tokens (B, T) at cells (1, A), indices into the flattened (B, T).

        The output layer computes these cells only. No attention mask is needed: rows are padded at their ends, and the
        models are causal.
        """

        def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden, *others = inputs
            return gather_rows(hidden.flatten(0, 1)[None], cells), *others

        handle = self.network.get_output_embeddings().register_forward_pre_hook(select)
        try:
            logits: Tensor = self.network(input_ids=tokens).logits
        finally:
            handle.remove()
        return logits

    @torch.no_grad()
    def check_causal(self) -> None:
        """Raise ValueError if the output layer cannot be computed for some cells only, or logits depend on later tokens."""
        name = self.spec.model_type
        tokens = torch.tensor([[1, 2, 3], [1, 2, 4]], device=self.device)
        cells = torch.tensor([[0, 1, 3, 4]], device=self.device)  # the first two cells of both rows
        try:
            logits = self._logits(tokens, cells)
        except Exception as error:  # transformers raises errors of many types
            reason = " ".join(str(error).split())
            raise ValueError(f"model.config: {name} cannot be computed: {reason}; correct the configuration") from error
        if logits.shape != (1, 4, self.vocab_size):
            raise ValueError(
                f"model.config.model_type: the logits of {name} are not those of its output layer for each token; use "
                "another architecture"
            )
        first, second = logits[0, :2], logits[0, 2:]
        if float((first - second).abs().max()) > MAX_ACAUSAL * float(logits.abs().max()):
            raise ValueError(
                f"model.config.model_type: the logits of {name} depend on later tokens, so it is no causal language model; "
                "set is_decoder: true in model.config if it has this field, or use another architecture"
            )


def build_network(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model with fresh weights on the default device, without drawing them on the device meta.

    Raises ValueError if the configuration contradicts itself or the model has no output layer.
    """
    try:
        network: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # transformers raises errors of many types
        reason = " ".join(str(error).split())
        raise ValueError(
            f"model.config: transformers cannot build {config.model_type}: {reason}; correct it"
        ) from error
    if not isinstance(network.get_output_embeddings(), nn.Module):
        raise ValueError(
            f"model.config.model_type: {config.model_type} has no output layer over the vocabulary; use another architecture"
        )
    return network


def build_model(
    spec: TransformersByConfig, vocab_size: int, *, seed: int, device: torch.device = CPU
) -> TransformersModel:
    """Return a model with fresh weights, which transformers draws. Raises ValueError if it is not causal."""
    transformers.utils.logging.set_verbosity_error()  # warnings about faster kernels that are not installed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TransformersModel(spec, build_network(build_config(spec.config, vocab_size)), device)
    model.check_causal()
    return model


def load_model(
    spec: TransformersByConfig | PretrainedModel, folder: Path, *, min_vocab_size: int = 1
) -> TransformersModel:
    """Return the model of a folder that `save_model` wrote, on the CPU.

    Raises ValueError if config.json differs from the spec, if weights are missing or have other shapes, or if the vocabulary
    is smaller than `min_vocab_size`.
    """
    stored = read_settings(folder / CONFIG)
    vocab_size = stored.get("vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < min_vocab_size:
        raise ValueError(
            f"{CONFIG} of the model has vocab_size {vocab_size}, but its tokenizer has {min_vocab_size:,} tokens; "
            "use the model and the tokenizer of one training run"
        )
    config = build_config(spec.config, vocab_size)
    if wrong := differing_fields(folder / CONFIG, config):
        raise ValueError(
            f"the model in {folder} has another {', '.join(wrong)} than model.config; change trial.model, or use another "
            "model"
        )
    return TransformersModel(spec, load_network(config, folder))


def load_network(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """Return a model with a configuration and the weights of a folder. Raises ValueError if weights are missing."""
    transformers.utils.logging.set_verbosity_error()  # warnings about faster kernels that are not installed
    transformers.utils.logging.disable_progress_bar()
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, **NO_CODE, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # transformers raises errors of many types
        raise ValueError(f"transformers cannot load the weights: {' '.join(str(error).split())}") from error
    network: PreTrainedModel = found[0]
    loaded: dict[str, Any] = found[1]
    if wrong := sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]])):
        raise ValueError(f"the weights of the model in {folder} lack {wrong[0]}; restore the files of the model")
    return network


def save_model(model: TransformersModel, folder: Path) -> None:
    """Write config.json and model.safetensors for AutoModelForCausalLM.from_pretrained, with the adapter merged."""
    network = copy.deepcopy(model.network)  # weights in memory of their own
    if count_parameters(network).base:
        from raycap.learner import adapters  # imports peft, which takes seconds

        adapters.merge(network)
    network.save_pretrained(folder, max_shard_size="1TB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / CONFIG).write_text(json.dumps(as_json(build_config(model.spec.config, model.vocab_size)), indent=2))


def count_parameters(network: PreTrainedModel) -> ParameterCounts:
    """Return the numbers of trained parameters of a model by group, and those of its frozen ones if it has any."""
    counts = {is_trained: dict.fromkeys(GROUPS, 0) for is_trained in (True, False)}
    active = getattr(network.config, "num_experts_per_tok", None)
    for part, parameter in _parts(network):
        counts[parameter.requires_grad][part] += parameter.numel()
    for module in network.modules():
        if "Experts" in type(module).__name__ and isinstance(active, int):
            for parameter in module.parameters(recurse=False):  # one entry per expert
                inactive = parameter.numel() // len(parameter) * max(0, len(parameter) - active)
                counts[parameter.requires_grad]["inactive"] += inactive
    base = ParameterCounts(**counts[False]) if any(counts[False].values()) else None
    return ParameterCounts(**counts[True], base=base)


def _parts(network: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every parameter once, with its group of `ParameterCounts`."""
    output = network.get_output_embeddings()
    seen: set[int] = set()
    modules = sorted(network.named_modules(), key=lambda named: not isinstance(named[1], nn.Embedding))
    for name, module in modules:  # embeddings first: a tied output layer counts as embedding
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if isinstance(module, nn.Embedding):
                yield "embedding", parameter
            elif module is output and parameter_name == "weight":
                yield "unembedding", parameter
            elif "norm" in type(module).__name__.lower():
                yield "norms", parameter
            else:
                yield _part_of(f"{name}.{parameter_name}"), parameter


def _part_of(path: str) -> str:
    """Return the group of `ParameterCounts` of a weight by its name."""
    return next((part for part, words in PARTS.items() if any(word in path for word in words)), "other")


def _group(part: str, parameter: nn.Parameter) -> ParameterGroup:
    """Return the group of a parameter for the optimizer, given its group of `ParameterCounts`."""
    if part in ("embedding", "unembedding"):
        return ParameterGroup(part)
    return ParameterGroup.MATRIX if parameter.ndim > 1 else ParameterGroup.GAIN


def _merged(parameters: list[nn.Parameter]) -> Tensor:
    """Return the weights of some parameters as one tensor (1, P), of which the parameters are views from now on."""
    storage = torch.cat([parameter.detach().flatten() for parameter in parameters])[None]
    views = storage[0].split([parameter.numel() for parameter in parameters])
    for parameter, view in zip(parameters, views, strict=True):
        parameter.data = view.view_as(parameter)
    return storage
