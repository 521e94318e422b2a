"""The servers of the integration tests."""

from tests.integration.conftest import (  # noqa: F401  fixtures
    _common_url,
    database,
    pipeline,
    servers,
)
