"""What is read back from a stage's JSON file: plain, checked, and blind to other keys."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of what pages and cards read."""

    model_config = ConfigDict(frozen=True, extra="ignore")
