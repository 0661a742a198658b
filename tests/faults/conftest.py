from e2e.conftest import project  # noqa: F401
