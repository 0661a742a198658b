"""The sets that `gain.py` measures, each in a certain scarcity, and helpers from elsewhere."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image

from pipeline.hashing import digest_bytes
from pipeline.readers.arrays import write_arrays
from pipeline.readers.idx_files import find_idx, read_idx

SIDE_PX = 16  # of Fashion-MNIST, MNIST and emoji: a comparison of 28 px takes three times as long
_EMOJI_PX = 32  # kept in the file, from which `prepare` goes on
_EMOJI_MAKERS = ("apple", "facebook", "google", "twitter")
_HALVES = ("base", "beside")  # of emoji, neither a sign nor a maker is in both
_NAMES = [str(number) for number in range(10)]  # of classes in IDX files
_EMOJI_BESIDE = ("facebook", "twitter")
_NO_CLASS = "Component"  # hair and skin tones: no images of their own
_MARGIN_PX = 4  # of MNIST's images, around the box that its makers fitted each digit into
_POOL_IMAGES = 20_000

Folders = Mapping[str, Path | None]


@dataclass(frozen=True)
class Regime:
    """A set of images in a certain scarcity.

    Attributes:
        name: in the results.
        files: what it is made of: fashion, mnist, emoji, fashion-beside, emoji-beside, or none.
        prepare: params of the stage beside the defaults.
        base: set of the generator that this one starts from, of `BASES`.
        images: are that set's images at hand for a baseline, or the generator's weights alone?
        pool: is that set's place taken by its images, unlabelled, for generator and baselines?
        one_collection: are the base's images of the very collection, and not of others' making?
    """

    name: str
    files: str | None = None
    prepare: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    images: bool = False
    pool: bool = False
    one_collection: bool = False


@dataclass(frozen=True)
class Base:
    """A labelled set that a generator is trained on, for another set to start from.

    Attributes:
        name: of the folder of its run.
        files: what it is made of, as of a regime: mnist, fashion-base, emoji-base, or none.
        prepare: params of the stage beside the defaults.
        train: likewise.
    """

    name: str
    files: str | None
    prepare: dict[str, Any]
    train: dict[str, Any]


_CUT = {"source": "npz", "image_size_px": 8, "validation_fraction": 0.02}
BASES = {
    "mnist": Base("mnist", "mnist", _CUT, {"steps": 1500, "checks": 3}),
    "digits": Base("digits", None, {"source": "digits", "test_fraction": 0.02}, {}),
    "emoji": Base("emoji", "emoji-base", {**_CUT, "test_fraction": 0.02}, {}),
    "fashion": Base("fashion", "fashion-base", {**_CUT, "test_fraction": 0.02}, {}),
}


def hasty(base: Base) -> Base:
    """Return a base that is done in minutes, with a folder of its own."""
    return replace(base, name=f"{base.name}-hasty", train={"steps": 1500, "checks": 3})


def _thinned(most: int, least: int, pool: bool) -> dict[str, Any]:
    return {"imbalance": {"max": most, "min": least}, "keep_pool": pool}


def _sizes(most: int, least: int) -> str:
    return f"{most}-to-{least}" if least < most else str(most)


def _of(files: str, most: int, least: int, pool: bool) -> Regime:
    prepare = {"source": "idx", "image_size_px": SIDE_PX, "validation_fraction": 0.05}
    name = f"{files}-{_sizes(most, least)}" + ("-pool" if pool else "")
    return Regime(name, files, {**prepare, **_thinned(most, least, pool)})


def _emoji(most: int, least: int, pool: bool) -> Regime:
    """Drawings of four makers in colour, by category; those of one sign stay together."""
    prepare = {"source": "npz", "image_size_px": SIDE_PX, "test_fraction": 0.4}
    name = f"emoji-{_sizes(most, least)}" + ("-pool" if pool else "")
    return Regime(name, "emoji", {**prepare, **_thinned(most, least, pool)})


def _digits(most: int, least: int, base: str | None) -> Regime:
    name = f"digits-{_sizes(most, least)}-" + ("base" if base else "pool")
    return Regime(name, None, _thinned(most, least, base is None), base)


def _mnist_on_digits(each: int) -> Regime:
    """MNIST in 8 px, whose generator starts from the embedded digits, of other writers."""
    return Regime(f"mnist-{each}-base", "mnist", {**_CUT, **_thinned(each, each, False)}, "digits")


def _emoji_on_emoji(each: int) -> Regime:
    """Emoji of two makers in 8 px, whose generator starts from other signs by two other makers."""
    prepare = {"source": "npz", "image_size_px": 8, "test_fraction": 0.4}
    return Regime(
        f"emoji-{each}-base", "emoji-beside", {**prepare, **_thinned(each, each, False)}, "emoji"
    )


def _fashion_on_fashion(most: int, least: int) -> Regime:
    """Fashion-MNIST in 8 px, whose generator starts from the weights of one of its other half."""
    prepare = {"source": "npz", "image_size_px": 8, "validation_fraction": 0.05}
    name = f"fashion-{_sizes(most, least)}-base"
    thinned = _thinned(most, least, False)
    return Regime(name, "fashion-beside", {**prepare, **thinned}, "fashion", one_collection=True)


def _elsewhere_pool(each: int) -> Regime:
    """Digits beside MNIST without its labels: at hand for the generator and for every baseline."""
    return Regime(
        f"digits-{each}-mnist-pool", None, _thinned(each, each, False), base="mnist", pool=True
    )


def _with_images(regime: Regime) -> Regime:
    return replace(regime, name=f"{regime.name}-images", images=True)


REGIMES = (
    Regime("digits"),
    Regime("digits-no-pool", None, {"keep_pool": False}),
    *(
        _digits(most, least, base)
        for base in ("mnist", None)
        for most, least in ((5, 5), (10, 10), (25, 25), (30, 3), (60, 6), (100, 2))
    ),
    *(_elsewhere_pool(each) for each in (5, 10)),
    *(_mnist_on_digits(each) for each in (5, 10, 25, 50, 100, 250)),
    *(_emoji_on_emoji(each) for each in (5, 25)),
    *(_fashion_on_fashion(*sizes) for sizes in ((5, 5), (100, 10))),
    _with_images(_digits(5, 5, "mnist")),
    _with_images(_mnist_on_digits(5)),
    *(
        _of(files, most, least, pool)
        for files in ("fashion", "mnist")
        for most, least in ((5, 5), (10, 10), (25, 25), (100, 10), (100, 2), (100, 100), (250, 250))
        for pool in (True, False)
    ),
    *(
        _emoji(most, least, pool)
        for most, least in ((10, 10), (25, 25), (100, 10))
        for pool in (True, False)
    ),
)


def files_needed(regime: Regime) -> set[str]:
    """Return the names of the folders without which the regime cannot run."""
    of_base = BASES[regime.base].files if regime.base else None
    return {one.partition("-")[0] for one in (regime.files, of_base) if one}


def source_path(made: Regime | Base, folders: Folders, root: Path) -> Path | None:
    """Return where the images of a regime or a base are, made below `root` where they must be."""
    if made.files is None:
        return None
    name, _, half = made.files.partition("-")
    folder = folders[name]
    if folder is None:
        raise typer.BadParameter(f"{made.name}: give --{name} DIR")
    if name == "emoji":
        return emoji(folder, root, half)
    if half:
        return half_of(folder, root, name, half)
    return cut_mnist(folder, root) if made.prepare.get("source") == "npz" else folder


def cut_mnist(files: Path, root: Path) -> Path:
    """Return MNIST as an .npz file below `root`, cut to the 20 x 20 px that hold the digit.

    scikit-learn's digits fill their images; a base whose digits have a wide margin knows them
    badly (28 % of its images were what they should be, by a classifier of all digits).
    """
    path = root / "mnist-cut.npz"
    if path.exists():
        return path
    (images, labels), (tests, marks) = _idx(files, "train"), _idx(files, "t10k")
    inner = slice(_MARGIN_PX, -_MARGIN_PX)
    root.mkdir(parents=True, exist_ok=True)
    write_arrays(
        path,
        np.concatenate([images, tests])[:, inner, inner],
        np.concatenate([labels, marks]),
        _NAMES,
        [None] * len(labels) + ["test"] * len(marks),
    )
    return path


def half_of(files: Path, root: Path, name: str, half: str) -> Path:
    """Return half of a set in IDX files as an .npz file below `root`.

    Args:
        files: folder of the IDX files.
        root: where the file is kept.
        name: of the set, for the file's name.
        half: every second training image (base), or the others and the test images (beside).
    """
    path = root / f"{name}-{half}.npz"
    if path.exists():
        return path
    first = _HALVES.index(half)
    images, labels = (rows[first::2] for rows in _idx(files, "train"))
    splits: list[str | None] = [None] * len(labels)
    if half == "beside":
        tests, marks = _idx(files, "t10k")
        images, labels = np.concatenate([images, tests]), np.concatenate([labels, marks])
        splits += ["test"] * len(marks)
    root.mkdir(parents=True, exist_ok=True)
    write_arrays(path, images, labels, _NAMES, splits)
    return path


def _idx(files: Path, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    pixels, marks = find_idx(files, name, "images", 3), find_idx(files, name, "labels", 1)
    if pixels is None or marks is None:
        raise typer.BadParameter(f"{files}: no IDX files of {name}")
    return read_idx(pixels, 3), read_idx(marks, 1).astype(np.int64)


def pool_folder(base: Base, folders: Folders, root: Path) -> Path:
    """Return a folder below `root` with images of a base's set, and nothing that tells a label."""
    if base.name != "mnist":
        raise typer.BadParameter(f"{base.name}: its images were never made a pool")
    folder = root / f"pool-{base.name}"
    done = folder / "done"
    if done.exists():
        return folder / "images"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = source_path(base, folders, root)
    assert path is not None
    with np.load(path) as arrays:
        images = arrays["images"]
    chosen = np.random.default_rng(0).permutation(len(images))[:_POOL_IMAGES]
    for number, row in enumerate(chosen):
        Image.fromarray(images[row]).save(folder / "images" / f"{number:05d}.png")
    done.touch()
    return folder / "images"


def emoji(files: Path, root: Path, half: str = "") -> Path:
    """Return drawings of emoji as an .npz file below `root`, their class the Unicode category.

    `files` holds the npm packages emoji-datasource-apple, -facebook, -google and -twitter, of which
    img/MAKER/64 and emoji.json are read. Drawings of one sign are one group.

    Args:
        files: folder of the packages.
        root: where the file is kept.
        half: every second sign by apple and google (base), the others by facebook and twitter
            (beside), or all of them (empty).
    """
    path = root / ("emoji.npz" if not half else f"emoji-{half}.npz")
    if path.exists():
        return path
    images: list[npt.NDArray[np.uint8]] = []
    labels, groups = [], []
    for maker in _EMOJI_MAKERS:
        folder = files / f"emoji-datasource-{maker}"
        if not (folder / "emoji.json").is_file():
            raise typer.BadParameter(f"{folder}: no emoji.json; unpack the npm package there")
        for sign in json.loads((folder / "emoji.json").read_text(encoding="utf-8")):
            drawing = folder / "img" / maker / "64" / sign["image"]
            kept = not half or _half(maker, sign["unified"]) == half
            if kept and sign["category"] != _NO_CLASS and drawing.is_file():
                images.append(_on_white(drawing))
                labels.append(sign["category"])
                groups.append(sign["unified"])
    root.mkdir(parents=True, exist_ok=True)
    write_arrays(path, np.stack(images), labels, groups=groups)
    return path


def _half(maker: str, sign: str) -> str | None:
    """Return in which half a drawing is, by a hash of its sign, or None."""
    half = _HALVES[int(digest_bytes(sign.encode()), 16) % 2]
    return half if (half == "beside") == (maker in _EMOJI_BESIDE) else None


def _on_white(path: Path) -> npt.NDArray[np.uint8]:
    """Return a drawing as (`_EMOJI_PX`, `_EMOJI_PX`, 3), its clear parts white."""
    with Image.open(path) as opened:
        drawing = opened.convert("RGBA").resize((_EMOJI_PX, _EMOJI_PX), Image.Resampling.BOX)
    paper = Image.new("RGBA", drawing.size, "white")
    return np.asarray(Image.alpha_composite(paper, drawing).convert("RGB"))
