"""A store with ten runs of different settings, whose verdicts differ as the settings do."""

import itertools
import json

import pytest
from tracking.full_run import VERDICT, verdict

from pipeline.tracking.mlflow import MlflowClient, default_tracking_uri, open_run
from pipeline.tracking.recording import EXPERIMENT, MlflowTracker
from pipeline.tracking.verdict_facts import tell_verdict

GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0)
STEPS = (600, 2400)


def fill(root):
    """Write the runs to root/mlflow.db; return the client, the experiment's id and their gains."""
    uri = default_tracking_uri(root)
    gains = {}
    for number, (guidance, steps) in enumerate(itertools.product(GUIDANCE, STEPS)):
        client, run = open_run(uri, EXPERIMENT, f"run-{number}", artifact_root=root / "mlartifacts")
        tracker = MlflowTracker(client, run, pytest.fail)
        share = (0.25, 0.5, 0.75)[number % 3]
        # Best at guidance 2 and long training, so that the page has something to show.
        gain = round(2.0 - 1.5 * abs(guidance - 2.0) + (1.0 if steps == 2400 else 0.0), 2)
        gains[f"run-{number}"] = gain
        decision = "use" if gain - 1.0 > 0 else "do_not_use"
        arms = [*json.loads(json.dumps(VERDICT["arms"]))]
        arms[1]["share"] = share
        told = verdict(
            decision=decision,
            gain_points=gain,
            interval_points=[round(gain - 1.0, 2), round(gain + 1.0, 2)],
            winning_share=share,
            arms=arms,
        )
        settings = {
            "synthesize.guidance": guidance,
            "train.steps": steps,
            "synthesize.sampler_steps": (10, 20, 40)[number % 3],
        }
        tracker.params(settings)
        tracker.tags({"driver": "run"})
        tell_verdict(told, tracker)
        tracker.end("FINISHED")
    experiment = MlflowClient(uri).get_experiment_by_name(EXPERIMENT).experiment_id
    return client, experiment, gains
