"""Who judges the candidates: the ensemble, the encoder and the curator, made when needed."""

from collections.abc import Sequence
from functools import cached_property

import torch
from sklearn.metrics import balanced_accuracy_score

from pipeline.curation.curator import Curator
from pipeline.data.images import Images
from pipeline.data.store import Samples
from pipeline.features.encoders import Encoder
from pipeline.features.judge import Ensemble, fit_ensemble
from pipeline.params import SynthesizeParams
from pipeline.synthesis.encoding import FROM_FILES, choose_encoder, warn_of_mixed_classes
from pipeline.tracking.tracker import Tracker


class Judging:
    """The judges of one set of real rows; each part is trained once, when it is first asked for."""

    def __init__(
        self,
        params: SynthesizeParams,
        classes: Sequence[str],
        training: Samples,
        validation: Samples,
        pool: Images | None,
        device: torch.device,
        tracker: Tracker,
    ) -> None:
        """Take what the judges learn from; nothing is trained yet.

        Args:
            params: the section.
            classes: class names by label.
            training: real training rows.
            validation: real rows that limits are fitted on.
            pool: (N, H, W, C) uint8 unlabelled rows, for an encoder trained without labels.
            device: to train on.
            tracker: told of progress, and of classes that the encoder mixes up.
        """
        self._params, self._classes, self._pool = params, classes, pool
        self.training, self.validation = training, validation
        self.device, self.tracker = device, tracker

    @cached_property
    def ensemble(self) -> Ensemble:
        """Return the cross-fitted judges."""
        params = self._params
        total = params.judge_folds * params.judge_steps
        return fit_ensemble(
            self.training,
            len(self._classes),
            params.judge_steps,
            params.judge_folds,
            params.seed,
            self.device,
            lambda step: self.tracker.progress("judges", step, total, "steps"),
        )

    @cached_property
    def encoder(self) -> Encoder:
        """Return the encoder of realism, variety and quality."""
        return choose_encoder(
            self._params,
            lambda: self.ensemble,
            self.training,
            self._pool,
            self.device,
            lambda done, total: self.tracker.progress("encoder", done, total, "steps"),
        )

    def refuse_bad_weights(self) -> None:
        """Load an encoder that stands in files, so that bad ones are told before any training."""
        if self._params.encoder in FROM_FILES:
            _ = self.encoder

    @cached_property
    def warning(self) -> str | None:
        """Return which classes the encoder does not tell apart; told once."""
        found = warn_of_mixed_classes(
            self.encoder, self.training, self.validation, self._classes, self._params.seed
        )
        if found:
            self.tracker.note(f"synthesize: {found}")
        return found

    @property
    def accuracy(self) -> float:
        """Return the judges' balanced accuracy on validation rows; 0 where there are none."""
        if not len(self.validation):
            return 0.0
        predicted = self.ensemble.predict(self.validation.images).argmax(axis=1)
        return float(balanced_accuracy_score(self.validation.labels, predicted))

    def curator(self, real_ids: Sequence[str]) -> Curator:
        """Return who decides about candidates, with limits fitted on validation rows.

        Args:
            real_ids: of the real rows of any split; a candidate with the pixels of one of them is
                rejected unseen.
        """
        params = self._params
        return Curator(
            self.training,
            self.validation,
            self.ensemble,
            None if params.encoder == "domain" else self.encoder.embed,
            params.filters,
            quantile=params.filter_share,
            typical_share=params.typical_share,
            copy_ratio=params.copy_ratio,
            real_ids=real_ids,
        )
