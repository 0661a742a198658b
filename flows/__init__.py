"""Prefect flows: the same stage functions, scheduled, retried and shown in a page.

Importing this package does one thing: it sets environment defaults, because Prefect and torch read
them while they are imported themselves. What the user has set stands.
"""

import os

for _name, _value in {
    # A flow that is run by hand needs no server of the user's: Prefect starts one of its own on
    # 127.0.0.1 and stops it again. PREFECT_API_URL, where it is set, goes first.
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    # Its first start makes a database; the 20 s that Prefect allows are short on a busy machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # A sign of life of each flow run, by which runs of dead workers are told: see bootstrap.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # Nothing is told to anybody.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    # Threads of torch that wait without spinning: see pipeline/__main__.py.
    "OMP_WAIT_POLICY": "passive",
}.items():
    os.environ.setdefault(_name, _value)
