import base64
import json
import zlib

from pipeline.tracking.mlflow import MlflowClient, default_tracking_uri, open_experiment
from pipeline.tracking.views import GAINS_NAME, GAINS_VIEW, view_tags

TAG = f"mlflow.sharedViewState.{GAINS_VIEW}"


def state_of(tag):
    view = json.loads(tag)
    assert view["name"] == GAINS_NAME
    form, _, packed = view["state"].partition(";")
    assert form == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_the_view_sorts_by_gain_and_each_chart_has_its_place():
    state = state_of(view_tags()[TAG])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`evaluate/gain_points`", False)
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == 4
    assert len(view_tags()[TAG]) < 5000  # the most characters of an experiment's tag


def test_an_experiment_has_the_view_and_keeps_what_a_user_made_of_it(root):
    uri = default_tracking_uri(root)
    client = MlflowClient(uri)
    experiment = open_experiment(client, uri, "mine", root / "files")
    assert client.get_experiment(experiment).tags[TAG] == view_tags()[TAG]
    client.set_experiment_tag(experiment, TAG, "changed")
    assert open_experiment(client, uri, "mine", root / "files") == experiment
    assert client.get_experiment(experiment).tags[TAG] == "changed"


def test_an_older_experiment_is_given_the_view(root):
    uri = default_tracking_uri(root)
    client = MlflowClient(uri)
    older = client.create_experiment("older")
    assert open_experiment(client, uri, "older", None) == older
    assert TAG in client.get_experiment(older).tags
