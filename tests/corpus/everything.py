"""The whole corpus."""

from functools import cache

from corpus import (
    archives,
    arrays_files,
    box_files,
    hub_sets,
    image_files,
    jpeg_files,
    other_files,
    places,
    png_files,
    settings_files,
    tables,
)
from corpus.case import Case


@cache
def corpus() -> tuple[Case, ...]:
    modules = (
        image_files,
        png_files,
        jpeg_files,
        other_files,
        places,
        tables,
        hub_sets,
        arrays_files,
        archives,
        box_files,
        settings_files,
    )
    return tuple(case for module in modules for case in module.cases())
