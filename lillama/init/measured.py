"""Measure what cutting each matrix alone costs, for ``strategy=measured``."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lillama.config import FactorForm, MeasuredRanksConfig
from lillama.data.calibration import Calibration
from lillama.init.energy import energies_of
from lillama.init.feature import feature_spectra
from lillama.init.spectra import FactorCache
from lillama.model.inputs import Batch
from lillama.model.prediction import NOT_PREDICTED, predictions
from lillama.model.student import Student
from lillama.model.surgery import low_rank_modules, matrix

BATCH = 2  # sequences at a time: the logits of many are large


def measured_energies(
    teacher: nn.Module,
    names: Sequence[str],
    data: Calibration,
    config: MeasuredRanksConfig,
    *,
    form: FactorForm = FactorForm.plain,
    cache: FactorCache | None = None,
    progress: bool = False,
) -> dict[str, list[float]]:
    """Scale every named matrix's output spectrum so that its tail at the probed rank is the measured KL, in nats.

    Each matrix is replaced alone by its factors of ``init=feature`` at ``config.probe`` of the largest rank at which
    plain factors save, and the dense model's predictions are compared with those of the model that results.
    """
    batches = _first(data, config.sequences, next(teacher.parameters()).device)
    dense = [_log_probabilities(teacher, batch) for batch in batches]
    seen = data.head(config.tokens)
    options: dict[str, Any] = {"floor": config.floor, "form": form, "cache": cache, "progress": progress}
    made = feature_spectra(teacher, dict.fromkeys(names, 1), seen, **options)
    found = {}
    for name, spectrum in tqdm(made, total=len(names), desc="measured", unit="matrix", disable=not progress):
        rank = _probed(matrix(teacher, name), config.probe)
        student = Student(teacher, low_rank_modules(teacher, [(name, spectrum.cut(rank))]))
        with student.in_place() as cut:
            kl = sum(_kl(own, _log_probabilities(cut, batch)) for own, batch in zip(dense, batches, strict=True))
        values = energies_of(spectrum)
        tail = sum(values[rank:])
        scale = kl / sum(len(own) for own in dense) / tail if tail > 0 else 0.0
        found[name] = [value * scale for value in values]
    return {name: found[name] for name in names}


def _first(data: Calibration, sequences: int, device: torch.device) -> list[Batch]:
    """Return the first sequences, in batches."""
    taken: list[Batch] = []
    for batch in data.batches(BATCH, device):
        left = sequences - sum(map(len, taken))
        if left <= 0:
            break
        taken.append(batch.rows(0, left))
    return taken


def _probed(weight: Tensor, probe: float) -> int:
    out_features, in_features = weight.shape[-2:]
    return max(1, round(probe * out_features * in_features / (out_features + in_features)))


@torch.no_grad()
def _log_probabilities(model: nn.Module, batch: Batch) -> Tensor:
    """Return the log-probabilities [n, V] at the positions that predict a token."""
    arguments, targets = predictions(model, batch)
    logits = model(**arguments).logits
    return F.log_softmax(logits[targets != NOT_PREDICTED].float(), -1)


def _kl(dense: Tensor, cut: Tensor) -> float:
    return float(F.kl_div(cut, dense, reduction="sum", log_target=True))
