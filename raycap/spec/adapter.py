"""Spec of adapters: trained weights beside those of a frozen model."""

from typing import Literal

from pydantic import Field

from raycap.spec.base import Spec, Text


class LoraAdapter(Spec):
    """A low-rank adapter (LoRA, arXiv 2106.09685) of a pretrained model, whose own weights are frozen.

    Each adapted linear layer with weight W computes (W + alpha/r B A) x, where A has r rows and B has r columns. Only A
    and B are trained and count as parameters; B starts at 0. See docs/science.md#adapters.
    """

    kind: Literal["lora"]
    """Low-rank adapter (LoRA)."""
    r: int = Field(ge=1, le=4096)
    """Rank of the adapter."""
    alpha: int = Field(default=16, ge=1, le=65_536)
    """The adapter's output is multiplied by alpha / r. The same value at all ranks makes one learning rate suitable for
    many of them."""
    targets: tuple[Text, ...] = ()
    """Names of the linear layers that are adapted, such as [q_proj, v_proj]: the last parts of their names in the model. If
    empty, all linear layers of the blocks are adapted."""
