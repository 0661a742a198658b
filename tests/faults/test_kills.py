"""A few random kills of both drivers; `python tests/faults/kills.py --kills 100` does more."""

import pytest
from faults.kills import torment

pytestmark = [pytest.mark.faults, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.mark.parametrize(("driver", "kills"), [("run", 3), ("flow", 2)])
def test_random_kills_lose_nothing_and_double_nothing(tmp_path, driver, kills):
    said: list[str] = []
    tally = torment(driver, kills, 1, tmp_path, said.append)
    assert tally.problems == [], said
    assert len(tally.kills) == kills
    assert tally.rounds >= 1
