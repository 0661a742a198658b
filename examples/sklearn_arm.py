"""A scikit-learn classifier on the pixels, as an arm of `replenish evaluate`.

Reads the task.json that REPLENISH_TASK names, trains, and writes the predictions; docs/arms.md has
the contract. In params.yaml:

    evaluate:
      commands:
        svc:
          command: [python, "{project}/examples/sklearn_arm.py"]
        boosting:
          command: [python, "{project}/examples/sklearn_arm.py", --model, boosting]

Needs numpy, pillow, pyarrow and scikit-learn; nothing of Replenish's own.
"""

import argparse
import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.svm import SVC


def read_store(folder):
    """Return the columns of a sample store, and its images as (N, pixels) floats in [0, 1]."""
    files = sorted((Path(folder) / "data").glob("*.parquet"))
    columns = {}
    for file in files:
        for name, values in pq.read_table(file).to_pydict().items():
            columns.setdefault(name, []).extend(values)
    pixels = [
        np.asarray(Image.open(io.BytesIO(image["bytes"])), dtype=np.float32).ravel() / 255
        for image in columns["image"]
    ]
    return columns, np.stack(pixels)


def draw(weights, seed):
    """Return how often each row counts: drawn by its weight, so that repetitions differ."""
    weights = np.asarray(weights)
    return np.random.default_rng(seed).multinomial(3 * len(weights), weights / weights.sum())


def fit(kind, pixels, labels, counts, seed):
    """Return a classifier of the rows that were drawn, and whether it knows probabilities."""
    rows = counts > 0
    if kind == "boosting":
        model = HistGradientBoostingClassifier(max_iter=50, random_state=seed)
        model.fit(pixels[rows], labels[rows], sample_weight=counts[rows])
        return model, True
    model = SVC(C=10.0)
    model.fit(pixels[rows], labels[rows], sample_weight=counts[rows])
    return model, False


def main():
    """Train on the training store, and predict the two stores without labels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["svc", "boosting"], default="svc")
    options = parser.parse_args()
    task = json.loads(Path(os.environ["REPLENISH_TASK"]).read_text(encoding="utf-8"))

    columns, pixels = read_store(task["training"])
    labels = np.asarray(columns["label"])
    counts = draw(columns["sampling_weight"], task["seed"])
    model, has_probabilities = fit(options.model, pixels, labels, counts, task["seed"])

    classes = task["classes"]
    header = ["id", "label"]
    if has_probabilities:
        header += [f"probability_{name}" for name in classes]
    with Path(task["predictions"]).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for split in ("validation", "test"):
            columns, pixels = read_store(task[split])
            predicted = model.predict(pixels)
            rows = [
                [identity, classes[label]]
                for identity, label in zip(columns["id"], predicted, strict=True)
            ]
            if has_probabilities:
                table = np.zeros((len(rows), len(classes)))
                table[:, model.classes_] = model.predict_proba(pixels)  # 0 for classes without rows
                rows = [row + list(values) for row, values in zip(rows, table, strict=True)]
            writer.writerows(rows)


if __name__ == "__main__":
    main()
