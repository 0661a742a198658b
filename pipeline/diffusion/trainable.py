"""Which weights a fine-tuning moves: all, the inner blocks, or low-rank adapters (LoRA).

LoRA: Hu et al. 2022, W + B A with B of zeros at the start, here for convolutions as well.
"""

import re
from collections.abc import Collection
from typing import Literal

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn

from pipeline.errors import InputError
from pipeline.seeds import seeded_initialisers

Trainable = Literal["all", "inner", "lora"]

_CLASSES = "class_embedding."
_BASE_LAYER = ".base_layer."  # where peft keeps the weights that an adapter stands on
_ADAPTED = re.compile(
    r".*\.(resnets|attentions)\.\d+\.(conv1|conv2|time_emb_proj|to_q|to_k|to_v|to_out\.0)"
)


def choose_trainable(
    model: UNet2DModel, what: Trainable, always: Collection[str], lora_rank: int, seed: int
) -> None:
    """Set `requires_grad` on each weight of a plain network, in place.

    all: every weight. inner: all but the outer blocks, which see pixels (conv_in, the first down
    block, the last up block, conv_norm_out, conv_out). lora: adapters on the layers of resnets and
    attentions, which change the names of those weights until `merge_adapters`. The class embedding
    is always trained.

    Args:
        model: a network without adapters.
        what: the choice.
        always: names of weights to train in any case: those that started afresh.
        lora_rank: rank of the adapters, at least 1.
        seed: of the adapters.

    Raises:
        InputError: lora, and no layer is left to adapt.
        ValueError: a name in `always` is no weight of the network.
    """
    names = [name for name, _ in model.named_parameters()]
    if unknown := sorted(set(always) - set(names)):
        raise ValueError(f"no weight of this network: {', '.join(unknown)}")
    if what == "lora":
        _inject(model, always, lora_rank, seed)
    last = f"up_blocks.{len(model.up_blocks) - 1}."
    outer = ("conv_in.", "down_blocks.0.", last, "conv_norm_out.", "conv_out.")
    for name, weight in model.named_parameters():
        plain = name.replace(_BASE_LAYER, ".")
        inner = not name.startswith(outer)
        chosen = {"all": True, "inner": inner, "lora": ".lora_" in name}[what]
        weight.requires_grad_(chosen or plain in always or plain.startswith(_CLASSES))


def merge_adapters(model: UNet2DModel) -> None:
    """Fold adapters into the weights they stand on, in place: a plain network with plain names.

    A network without adapters is left as it is. Deep copies are merged each for itself.
    """
    if not any(_BASE_LAYER in name for name, _ in model.named_parameters()):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    for name, module in adapted:
        module.merge()
        parent, _, last = name.rpartition(".")
        # setattr and not [..]: `to_out` is a ModuleList, whose children are attributes as well.
        setattr(model.get_submodule(parent), last, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def count_trained(model: nn.Module) -> int:
    """Return how many numbers a training of this network would move."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _inject(model: UNet2DModel, always: Collection[str], rank: int, seed: int) -> None:
    # A layer whose weight starts afresh is trained in full: an adapter would add nothing.
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and _ADAPTED.fullmatch(name)
        and f"{name}.weight" not in always
    ]
    if not targets:
        raise InputError(
            "trainable: lora: no layer of this base is left to adapt; choose all or inner"
        )
    from peft import LoraConfig, inject_adapter_in_model  # seldom needed

    # A pattern, because peft shortens long lists of names to endings that others may share.
    pattern = "|".join(re.escape(name) for name in targets)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern)
    with seeded_initialisers(seed, "lora"):
        inject_adapter_in_model(config, model)
