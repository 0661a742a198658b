"""croissant.json: what is in an export, in the words of MLCommons Croissant 1.0.

The format is described at https://docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html. Its
recommended dates and licences are left out: Replenish does not know them, and no date may make two
exports of one store differ.
"""

from collections.abc import Mapping
from typing import Any

from pipeline import __version__
from pipeline.data.store import StoreInfo
from pipeline.export.choices import Layout
from pipeline.export.manifests import FileEntry
from pipeline.export.names import one_line

CROISSANT = "croissant.json"
_CR = "http://mlcommons.org/croissant/"
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": _CR,
    "rai": f"{_CR}RAI/",
    "dct": "http://purl.org/dc/terms/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{
        term: f"cr:{term}"
        for term in (
            *("citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty"),
            *("fileObject", "fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key"),
            *("md5", "parentField", "path", "recordSet", "references", "regex", "repeated"),
            *("replace", "samplingRate", "separator", "source", "subField", "transform"),
        )
    },
    "conformsTo": "dct:conformsTo",
}
_TEXT, _INTEGER, _IMAGE = "sc:Text", "sc:Integer", "sc:ImageObject"
_FIELDS = (
    ("label", _INTEGER, "Index of the class; -1 in the pool, which has no labels."),
    ("id", _TEXT, "sha256 over the shape and pixels of the image."),
    ("split", _TEXT, "train, validation, test or pool."),
    ("origin", _TEXT, "real, or synthetic: drawn by a diffusion model."),
)
# How the columns are called where they are not called as above.
_CSV_NAMES = {"label": "label_index"}


def croissant(
    layout: Layout, info: StoreInfo, name: str, files: Mapping[str, FileEntry]
) -> dict[str, Any]:
    """Return the JSON-LD of an export.

    Args:
        layout: of the export.
        info: of the store.
        name: of the dataset.
        files: path -> what it is: the export's tables, tar or Parquet files.
    """
    records = {
        "store": _parquet,
        "huggingface": _parquet,
        "folder": _folder,
        "coco": _coco,
        "webdataset": _webdataset,
    }[layout]
    distribution, record_sets = records(files)
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": f"{_CR}1.0",
        "name": one_line(name),
        "description": (
            f"Labelled images in {len(info.classes)} classes, {info.image_size_px} px, mode "
            f"{info.image_mode}. The field origin tells real images from synthetic ones, which "
            f"stand in train only. Digest of the rows: {info.digest}. Written by Replenish "
            f"{__version__}."
        ),
        "version": "1.0.0",
        "keywords": [one_line(one) for one in info.classes],
        "distribution": distribution,
        "recordSet": record_sets,
    }


_Parts = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def _parquet(files: Mapping[str, FileEntry]) -> _Parts:
    distribution = [_file_set("shards", "data/*.parquet", "application/x-parquet")]
    source = {"fileSet": {"@id": "shards"}}
    fields = [_field("rows", n, t, d, {**source, "extract": {"column": n}}) for n, t, d in _FIELDS]
    image = {**source, "extract": {"column": "image"}, "transform": {"jsonPath": "bytes"}}
    fields.append(_field("rows", "image", _IMAGE, "The image.", image))
    return distribution, [_record_set("rows", fields)]


def _webdataset(files: Mapping[str, FileEntry]) -> _Parts:
    tars = [path for path in files if path.endswith(".tar")]
    distribution = [_file_object(path, files[path], "application/x-tar") for path in tars]
    inside = {"containedIn": [{"@id": path} for path in tars]}
    distribution.append({**_file_set("facts", "*.json", "application/json"), **inside})
    distribution.append({**_file_set("images", "*.png", "image/png"), **inside})
    # One text a row: mlcroissant 1.1 does not look into JSON files that lie in an archive.
    content = {"fileSet": {"@id": "facts"}, "extract": {"fileProperty": "content"}}
    names = ", ".join(name for name, _, _ in _FIELDS)
    field = _field("rows", "facts", _TEXT, f"JSON with {names} and further columns.", content)
    return distribution, [_record_set("rows", [field])]


def _folder(files: Mapping[str, FileEntry]) -> _Parts:
    distribution = [_file_set("images", "*/*/*.png", "image/png")]
    record_sets = []
    for path in (one for one in files if one.endswith("/metadata.csv")):
        split = path.partition("/")[0]
        distribution.append(_file_object(path, files[path], "text/csv"))
        source = {"fileObject": {"@id": path}}
        columns = [("file_name", _TEXT, f"File of the image, below {split}/."), *_FIELDS]
        fields = [
            _field(split, n, t, d, {**source, "extract": {"column": _CSV_NAMES.get(n, n)}})
            for n, t, d in columns
        ]
        record_sets.append(_record_set(split, fields))
    return distribution, record_sets


def _coco(files: Mapping[str, FileEntry]) -> _Parts:
    distribution = [_file_set("images", "images/*/*.png", "image/png")]
    record_sets = []
    for path in (one for one in files if one.startswith("annotations/")):
        split = path.rpartition("_")[2].removesuffix(".json")
        distribution.append(_file_object(path, files[path], "application/json"))
        source = {"fileObject": {"@id": path}}
        columns = [(n, t, d, f"$.images[*].replenish.{n}") for n, t, d in _FIELDS]
        file_name = ("file_name", _TEXT, "File of the image, below images/.")
        columns.append((*file_name, "$.images[*].file_name"))
        fields = [
            _field(split, n, t, d, {**source, "extract": {"jsonPath": json_path}})
            for n, t, d, json_path in columns
        ]
        record_sets.append(_record_set(split, fields))
    return distribution, record_sets


def _file_object(path: str, entry: FileEntry, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "contentSize": f"{entry.bytes} B",
        "encodingFormat": kind,
        "sha256": entry.sha256,
    }


def _file_set(name: str, includes: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "includes": includes,
        "encodingFormat": kind,
    }


def _record_set(name: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    return {"@type": "cr:RecordSet", "@id": f"{name}-records", "name": name, "field": fields}


def _field(
    record: str, name: str, kind: str, description: str, source: dict[str, Any]
) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{record}-records/{name}",
        "name": name,
        "description": description,
        "dataType": kind,
        "source": source,
    }
