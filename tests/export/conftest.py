"""Small stores, and a pair of keys."""

import pytest
from export_stores import parts, write

from pipeline.export.signing import keygen


@pytest.fixture(params=["L", "RGB"])
def mode(request):
    return request.param


@pytest.fixture
def store(tmp_path, mode):
    write(tmp_path / "store", parts(3 if mode == "RGB" else 1), mode)
    return tmp_path / "store"


@pytest.fixture
def grey(tmp_path):
    write(tmp_path / "grey", parts())
    return tmp_path / "grey"


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return keygen(tmp_path_factory.mktemp("keys"))
