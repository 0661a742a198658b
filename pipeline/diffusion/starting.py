"""From a base to a class-conditional network: what fits is taken over, the rest starts afresh."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.data.images import CHANNELS, ImageMode
from pipeline.diffusion.base_files import ARCHITECTURE, Config, build_network
from pipeline.diffusion.bases import CLASS_ROWS, Base
from pipeline.errors import InputError
from pipeline.seeds import seeded_initialisers, torch_generator

# As an embedding that starts at random has. Close together (0.02), classes stay one for hundreds of
# steps: kernel distance 3.1 after 100 steps and 2.7 after 200, not 0.43 and 0.12 (docs/log.md).
_NEW_CLASS_SD = 1.0
_LEAST_SHARE = 0.1  # of the network's parameters that a base must fill to be one
_MOST_NAMES = 10  # in a message


@dataclass(frozen=True)
class Fit:
    """What became of a base, all sorted by name.

    Attributes:
        loaded: tensors of the network that came from the base; of the class embedding, some rows.
        reinitialised: tensors of the network that start afresh, and so must be trained.
        unused: tensors of the base that have no place in the network.
        classes_mapped: our class -> that of the base which it starts from.
        classes_new: our classes that do not.
    """

    loaded: tuple[str, ...]
    reinitialised: tuple[str, ...]
    unused: tuple[str, ...]
    classes_mapped: Mapping[str, str]
    classes_new: tuple[str, ...]


def start_from(
    base: Base,
    *,
    image_size_px: int,
    image_mode: ImageMode,
    classes: tuple[str, ...],
    class_map: Mapping[str, str],
    dropout: float,
    seed: int,
) -> tuple[UNet2DModel, Fit]:
    """Return a network that starts from a base, and what of the base fitted.

    Label len(classes) is the null class, as in `unet.build_unet`.

    Args:
        base: where to start from.
        image_size_px: side of our images.
        image_mode: L or RGB.
        classes: our class names, by label.
        class_map: our name -> the base's name, for classes that are called otherwise there.
        dropout: of the new network.
        seed: of what starts afresh.

    Raises:
        InputError: size or class names do not go with the base, or nothing of it fits.
    """
    sources = _class_sources(base, classes, class_map)
    _require_size(base, image_size_px)
    config = {
        **base.config,
        "sample_size": image_size_px,
        "in_channels": CHANNELS[image_mode],
        "out_channels": CHANNELS[image_mode],
        "dropout": dropout,
        "class_embed_type": None,
        "num_class_embeds": len(classes) + 1,
    }
    _require_forward(base, config)
    with seeded_initialisers(seed, "unet"):
        model = build_network(config)
    own = model.state_dict()
    rows = own.pop(CLASS_ROWS)
    loaded = {
        name
        for name, value in own.items()
        if name in base.tensors and base.tensors[name].shape == value.shape
    }
    _require_share(base, own, loaded)
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(base.tensors[name])
        if _fill_classes(rows, base, classes, sources, seed):
            loaded.add(CLASS_ROWS)
    fit = Fit(
        loaded=tuple(sorted(loaded)),
        reinitialised=tuple(sorted({*own, CLASS_ROWS} - loaded)),
        unused=tuple(sorted(set(base.tensors) - loaded)),
        classes_mapped={our: (base.classes or ())[row] for our, row in sorted(sources.items())},
        classes_new=tuple(sorted(set(classes) - set(sources))),
    )
    return model, fit


def _class_sources(
    base: Base, classes: tuple[str, ...], class_map: Mapping[str, str]
) -> dict[str, int]:
    """Return our class -> the base's row, for those of our classes that the base knows."""
    theirs = {name: row for row, name in enumerate(base.classes or ())}
    if class_map and not theirs:
        raise InputError(
            f"class_map: {base.source} does not know its classes by name; leave class_map empty"
        )
    for our, their in class_map.items():
        if our not in classes:
            raise InputError(f"class_map: {our!r} is none of our classes: {_listed(classes)}")
        if their not in theirs:
            raise InputError(
                f"class_map: {their!r} is no class of {base.source}: {_listed(tuple(theirs))}"
            )
    named = {name: class_map.get(name, name) for name in classes}
    sources = {our: theirs[their] for our, their in named.items() if their in theirs}
    if theirs and not sources:
        raise InputError(
            f"{base.source} has none of our classes: its own are {_listed(tuple(theirs))}, ours "
            f"{_listed(classes)}; say in class_map which of ours is which of its, or use "
            "another base"
        )
    return sources


def _fill_classes(
    rows: torch.Tensor,
    base: Base,
    classes: tuple[str, ...],
    sources: Mapping[str, int],
    seed: int,
) -> bool:
    """Fill our class rows (classes + 1, D); return whether any of them came from the base.

    Without a null row to start from, all start about zero: an unconditional network adds nothing
    to its time embedding, so that it begins as what it was.
    """
    theirs = base.tensors.get(CLASS_ROWS)
    known = theirs is not None and theirs.ndim == 2 and theirs.shape[1:] == rows.shape[1:]
    null = torch.zeros_like(rows[0])
    if theirs is not None and known and base.null_label is not None:
        null = theirs[base.null_label]
    rows[len(classes)].copy_(null)
    for label, name in enumerate(classes):
        if theirs is not None and known and name in sources:
            rows[label].copy_(theirs[sources[name]])
        else:
            # Seeded by name: one class more does not move where the others start.
            generator = torch_generator(seed, "unet", "class", name)
            noise = torch.randn(rows[label].shape, generator=generator)
            rows[label].copy_(null + _NEW_CLASS_SD * noise)
    return known and (base.null_label is not None or bool(sources))


def _require_size(base: Base, side: int) -> None:
    # Each level but the last halves the side, which the way up must meet again.
    levels = len(base.config.get("block_out_channels", (0,) * 4))  # diffusers' default has 4
    step = 2 ** (levels - 1)
    if side % step:
        near = [size for size in (side // step * step, (side // step + 1) * step) if size]
        raise InputError(
            f"{base.source}: its {levels} levels need an image side divisible by {step}, not "
            f"{side} px; set the image size to {' or '.join(str(size) for size in near)} px"
        )


def _require_forward(base: Base, config: Config) -> None:
    """Run the network once without memory: some blocks only fail when they are called."""
    shape = (1, config["in_channels"], config["sample_size"], config["sample_size"])
    try:
        with torch.device("meta"):
            label = torch.zeros(1, dtype=torch.long)
            found = build_network(config)(torch.zeros(shape), label, class_labels=label).sample
        if found.shape != shape:
            raise ValueError(f"it turns {shape} into {tuple(found.shape)}")
    except Exception as error:  # whatever a block of another kind raises
        raise InputError(
            f"{base.source}: its {ARCHITECTURE} does not run on {shape[1]} x {shape[2]} x "
            f"{shape[3]} images ({type(error).__name__}: {str(error)[:120]}); use another base"
        ) from None


def _require_share(base: Base, own: Mapping[str, torch.Tensor], loaded: set[str]) -> None:
    # Time layers fit for many networks that are otherwise strangers: they count for neither side.
    sizes = {k: v.numel() for k, v in own.items() if not k.startswith("time_")}
    share = sum(sizes.get(name, 0) for name in loaded) / sum(sizes.values())
    if share < _LEAST_SHARE:
        raise InputError(
            f"{base.source}: its weights fit {share:.0%} of the network that its config.json "
            f"describes, less than {_LEAST_SHARE:.0%}; config and weights belong to different "
            "networks, so fetch them again"
        )


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
