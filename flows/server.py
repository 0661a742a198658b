"""The Prefect server that commands and flows ask: is it there, and does anybody work for a pool?

Prefect's own client tries a silent address for minutes. A person who mistyped one should know at
once, so these questions have limits of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings

from pipeline.errors import InputError

ANSWER_SECONDS = 10.0
_START = (
    "start one (`make ui`, or `prefect server start`) and name it: "
    "export PREFECT_API_URL=http://127.0.0.1:4200/api"
)


def server_url() -> str:
    """Return the address of the server's API.

    Raises:
        InputError: none is named; the temporary one that runs have would forget at once.
    """
    url = get_current_settings().api.url  # of the environment, or of Prefect's profile
    if not url:
        raise InputError(
            f"PREFECT_API_URL is not set, and this needs a server that stays; {_START}"
        )
    return str(url).rstrip("/")


def need_server(answer_seconds: float = ANSWER_SECONDS) -> str:
    """Return the address of a server that answers, after one question to it.

    Args:
        answer_seconds: how long to wait for the connection, and for the answer.

    Raises:
        InputError: none is named, nothing answers there, or something else than Prefect does.
    """
    url = server_url()
    try:
        # The address is the user's own: proxies of the environment hold for it as for Prefect.
        answer = httpx.get(f"{url}/health", timeout=answer_seconds, follow_redirects=True)
        healthy = answer.status_code == 200 and answer.json() is True
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = str(error) or type(error).__name__
        raise InputError(f"PREFECT_API_URL = {url}: no answer ({why}); {_START}") from None
    except ValueError:  # an answer, but no JSON: a page
        healthy = False
    if not healthy:
        hint = "" if url.endswith("/api") else f"; an API's address ends in /api: {url}/api?"
        raise InputError(
            f"PREFECT_API_URL = {url}: what answers there is no Prefect API (HTTP status "
            f"{answer.status_code}){hint}; {_START}"
        )
    return url


@contextmanager
def server_client() -> Iterator[SyncPrefectClient]:
    """Give a client of the server, once it has answered.

    Raises:
        InputError: see `need_server`; or the server wants another log-in.
    """
    url = need_server()
    with refusals_told(url), get_client(sync_client=True) as client:
        yield client


@contextmanager
def refusals_told(url: str) -> Iterator[None]:
    """Turn the server's refusals into errors that say what to do.

    Raises:
        InputError: the server wants another log-in, or cannot be reached any more.
    """
    try:
        yield
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise InputError(
                f"PREFECT_API_URL = {url}: not allowed (HTTP status {status}); set "
                "PREFECT_API_AUTH_STRING to the server's, or PREFECT_API_KEY"
            ) from None
        raise InputError(
            f"PREFECT_API_URL = {url}: HTTP status {status}; see the server's log, then try again"
        ) from None
    except httpx.TransportError as error:
        raise InputError(f"PREFECT_API_URL = {url}: lost ({error}); {_START}") from None


def need_workers(client: SyncPrefectClient, pool: str) -> int:
    """Return how many workers of a work pool are online.

    Raises:
        InputError: there is no such pool, it is paused, or nobody works for it: runs sent there
            would wait for ever.
    """
    found = _pool(client, pool)
    if found.is_paused:
        raise InputError(
            f"work pool {pool}: paused, so that nothing starts there; resume it: "
            f"prefect work-pool resume {pool}"
        )
    workers = client.read_workers_for_work_pool(pool)
    online = sum(1 for one in workers if str(getattr(one.status, "value", one.status)) == "ONLINE")
    if not online:
        raise InputError(
            f"work pool {pool}: no worker is online ({len(workers)} known); start one: "
            f"prefect worker start --pool {pool}"
        )
    return online


def _pool(client: SyncPrefectClient, pool: str) -> Any:
    try:
        return client.read_work_pool(pool)
    except ObjectNotFound:
        names = ", ".join(sorted(one.name for one in client.read_work_pools())) or "none"
        raise InputError(
            f"work pool {pool}: there is none of this name (known: {names}); `replenish bootstrap` "
            "makes those of Replenish"
        ) from None
