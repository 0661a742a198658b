"""The settings that a recipe chooses, in a file of their own: later stages follow it alone."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import InputError
from pipeline.folders import write_json

SETTINGS = "settings.json"


class Settings(BaseModel):
    """What `auto` stands for in this run.

    Attributes:
        base: for `pretrain.base`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    base: Literal["none", "pool"] = "none"


def write_settings(folder: Path, settings: Settings) -> None:
    """Write `settings.json` into the folder of prepare."""
    write_json(folder / SETTINGS, settings.model_dump(mode="json"))


def read_settings(folder: Path) -> Settings:
    """Return the settings in the folder of prepare.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / SETTINGS
    try:
        return Settings.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        kind = "missing" if isinstance(error, OSError) else "damaged"
        raise InputError(f"{path}: {kind}; run `replenish prepare --force`") from None
