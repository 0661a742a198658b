"""The layouts that a dataset can be given away in; light, for the command line reads it."""

from typing import Literal

Layout = Literal["store", "folder", "webdataset", "huggingface", "coco"]
LAYOUTS: tuple[Layout, ...] = ("store", "folder", "webdataset", "huggingface", "coco")
