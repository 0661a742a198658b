"""README.md of an export: how to load this layout, and the store's own card where it has one."""

import json
from pathlib import Path
from typing import Any

import yaml

from pipeline.data.store import StoreInfo
from pipeline.errors import InputError
from pipeline.export.choices import Layout
from pipeline.export.manifests import read_bounded
from pipeline.folders import safe_join

README = "README.md"
_MAX_CARD_BYTES = 1 << 20
_CARD_LOADING = "## How to load it\n"

_SNIPPETS: dict[Layout, str] = {
    "store": """\
from datasets import load_dataset

data = load_dataset("path/to/this/folder")
real = data["train"].filter(lambda row: row["origin"] == "real")
""",
    "huggingface": """\
from datasets import load_dataset

data = load_dataset("path/to/this/folder")
real = data["train"].filter(lambda row: row["origin"] == "real")
""",
    "folder": """\
from torchvision.datasets import ImageFolder

train = ImageFolder("path/to/this/folder/train", allow_empty=True)
real = [path for path, label in train.samples if "-synthetic" not in path.rsplit("/")[-1]]
""",
    "webdataset": """\
import webdataset

train = (
    webdataset.WebDataset("path/to/this/folder/train-00000.tar", shardshuffle=False)
    .decode("pil")
    .to_tuple("png", "cls", "json")
)
""",
    "coco": """\
import json
from pathlib import Path

folder = Path("path/to/this/folder")
coco = json.loads((folder / "annotations/instances_train.json").read_text())
labels = {one["image_id"]: one["category_id"] - 1 for one in coco["annotations"]}
real = [one for one in coco["images"] if one["replenish"]["origin"] == "real"]
""",
}

_TOLD_APART: dict[Layout, str] = {
    "store": "the column `origin`",
    "huggingface": "the column `origin`",
    "folder": "`-synthetic` at the end of the file name, and the column `origin` of `metadata.csv`",
    "webdataset": "`-synthetic` at the end of the key, and `origin` in the `.json`",
    "coco": "`-synthetic` at the end of the file name, and `replenish.origin` of each image",
}


def read_card(store: Path) -> tuple[dict[str, Any], str]:
    """Return front matter and text of the store's README.md; both empty where it has none.

    Raises:
        InputError: the card leads out of the store, is larger than 1 MiB, or is not UTF-8.
    """
    path = store / README
    if not path.exists():
        return {}, ""
    safe_join(store, README)
    data = read_bounded(path, _MAX_CARD_BYTES)
    try:
        text = data.decode() if data is not None else None
    except UnicodeDecodeError:
        text = None
    if text is None:
        raise InputError(f"{path}: not UTF-8, or larger than 1 MiB; mend the card or remove it")
    front: Any = None
    if text.startswith("---\n") and "\n---\n" in text:
        matter, _, text = text[4:].partition("\n---\n")
        try:
            front = yaml.safe_load(matter)
        except (yaml.YAMLError, ValueError, RecursionError):
            front = None  # a damaged front matter is left out, the text kept
    return (front if isinstance(front, dict) else {}), text


def card(
    layout: Layout, info: StoreInfo, front: dict[str, Any], text: str, signed: str | None
) -> str:
    """Return README.md of an export.

    Args:
        layout: of the export.
        info: of the store.
        front: front matter of the store's card.
        text: the store's card.
        signed: fingerprint of the key that signs, None without.
    """
    front = {**front}
    front.pop("configs", None)  # names the store's own files
    splits = [split for split, counts in info.counts.items() if sum(counts.values())]
    if layout in ("store", "huggingface"):
        files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
        front["configs"] = [{"config_name": "default", "data_files": files}]
    parts = []
    if front:
        matter = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1_000_000)
        parts.append(f"---\n{matter}---\n")
    if not text:
        parts.append(_short(info))
    parts.append(text if layout in ("store", "huggingface") else _without_loading(text))
    trust = (
        f"Every file is signed (Ed25519). Fingerprint of the key: `{signed}`."
        if signed
        else "Nothing is signed: the manifests show damage, but not who wrote them."
    )
    parts.append(
        f"## This export\n\nLayout `{layout}`. Real and synthetic images are told apart by "
        f"{_TOLD_APART[layout]}; a synthetic PNG also says so itself (XMP, IPTC "
        "`trainedAlgorithmicMedia`).\n\n"
        f"```python\n{_SNIPPETS[layout]}```\n\n"
        f"{trust} Check it with `replenish verify path/to/this/folder`.\n"
    )
    return "\n".join(part for part in parts if part)


def _short(info: StoreInfo) -> str:
    # In a code block, as JSON: no text of a user's is taken for markup there, whatever it holds.
    names = json.dumps({"classes": list(info.classes), "rows": info.counts})
    colour = "grey" if info.image_mode == "L" else "colour"
    return (
        f"# Labelled images\n\n{len(info.classes)} classes of {info.image_size_px} px {colour} "
        f"images, written by Replenish from the store `{info.digest}`.\n\n```json\n{names}\n```\n"
    )


def _without_loading(text: str) -> str:
    """Return a card without its section on loading, which tells of the store's own layout."""
    before, found, after = text.partition(_CARD_LOADING)
    if not found:
        return text
    _, heading, rest = after.partition("\n## ")
    return f"{before}## {rest}" if heading else before
