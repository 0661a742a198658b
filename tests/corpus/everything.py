"""The whole corpus."""

from functools import cache

from corpus import image_files, jpeg_files, other_files, places, png_files
from corpus.case import Case


@cache
def corpus() -> tuple[Case, ...]:
    modules = (image_files, png_files, jpeg_files, other_files, places)
    return tuple(case for module in modules for case in module.cases())
