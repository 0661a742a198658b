"""croissant.json: what is in an export, in the words of MLCommons Croissant 1.0.

The format is described at https://docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html. Its
recommended dates and licences are left out: Replenish does not know them, and no date may make two
exports of one store differ.
"""

from collections.abc import Callable, Mapping, Sequence
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
_Column = tuple[str, str, str, dict[str, Any]]  # name, type, description, where in its source


def _parquet(files: Mapping[str, FileEntry]) -> _Parts:
    distribution = [_file_set("shards", "data/*.parquet", "application/x-parquet")]
    image = {"extract": {"column": "image"}, "transform": {"jsonPath": "bytes"}}
    columns: list[_Column] = [
        *((n, t, d, {"extract": {"column": n}}) for n, t, d in _FIELDS),
        ("image", _IMAGE, "The image.", image),
    ]
    return distribution, [_record_set("rows", {"fileSet": {"@id": "shards"}}, columns)]


def _webdataset(files: Mapping[str, FileEntry]) -> _Parts:
    tars = [path for path in files if path.endswith(".tar")]
    distribution = [_file_object(path, files[path], "application/x-tar") for path in tars]
    inside = {"containedIn": [{"@id": path} for path in tars]}
    distribution.append({**_file_set("facts", "*.json", "application/json"), **inside})
    distribution.append({**_file_set("images", "*.png", "image/png"), **inside})
    # One text a row: mlcroissant 1.1 does not look into JSON files that lie in an archive.
    content = {"extract": {"fileProperty": "content"}}
    names = ", ".join(name for name, _, _ in _FIELDS)
    column = ("facts", _TEXT, f"JSON with {names} and further columns.", content)
    return distribution, [_record_set("rows", {"fileSet": {"@id": "facts"}}, [column])]


def _folder(files: Mapping[str, FileEntry]) -> _Parts:
    def columns(split: str) -> list[_Column]:
        fields = (("file_name", _TEXT, f"File of the image, below {split}/."), *_FIELDS)
        return [(n, t, d, {"extract": {"column": _CSV_NAMES.get(n, n)}}) for n, t, d in fields]

    tables = {one: one.partition("/")[0] for one in files if one.endswith("/metadata.csv")}
    return _tables(files, tables, "text/csv", "*/*/*.png", columns)


def _coco(files: Mapping[str, FileEntry]) -> _Parts:
    places = [(n, t, d, f"replenish.{n}") for n, t, d in _FIELDS]
    places.append(("file_name", _TEXT, "File of the image, below images/.", "file_name"))
    columns: list[_Column] = [
        (n, t, d, {"extract": {"jsonPath": f"$.images[*].{place}"}}) for n, t, d, place in places
    ]
    tables = {
        one: one.rpartition("_")[2].removesuffix(".json")
        for one in files
        if one.startswith("annotations/")
    }
    return _tables(files, tables, "application/json", "images/*/*.png", lambda _: columns)


def _tables(
    files: Mapping[str, FileEntry],
    tables: Mapping[str, str],
    kind: str,
    images: str,
    columns: Callable[[str], Sequence[_Column]],
) -> _Parts:
    """Return image files, and tables beside them (path -> split) with one record set each."""
    distribution = [_file_set("images", images, "image/png")]
    record_sets = []
    for path, split in tables.items():
        distribution.append(_file_object(path, files[path], kind))
        record_sets.append(_record_set(split, {"fileObject": {"@id": path}}, columns(split)))
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


def _record_set(name: str, source: dict[str, Any], columns: Sequence[_Column]) -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{name}-records/{column}",
            "name": column,
            "description": description,
            "dataType": kind,
            "source": {**source, **where},
        }
        for column, kind, description, where in columns
    ]
    return {"@type": "cr:RecordSet", "@id": f"{name}-records", "name": name, "field": fields}
