"""How well masked EEG is predicted: correlation and R², per data set, beside baselines on the same samples.

Legend: B windows, T samples, C channels (a recording's own, not the padded ones).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass
class ReconstructionScore:
    """Correlation and R² over masked samples, gathered window by window in memory independent of their number.

    Each (window, channel) counts as one series, its masked samples as that series' points:
    - R² = 1 − Σ(x − p)² / Σ(x − x̄)², sums over all series, x̄ the series' own mean, so 0 is what a perfect
      guess of each series' mean would score, and negative is worse than that;
    - correlation is Pearson's r of each series, averaged over the series in which the target varies; a
      prediction that does not vary has r = 0.
    """

    windows: int = 0
    _series: int = 0
    _sum_r: float = 0.0
    _sum_squared_error: float = 0.0
    _sum_squared_deviation: float = 0.0
    _values: int = 0

    def add(self, target_TC: Floats, prediction_TC: Floats, masked_T: NDArray[np.bool_]) -> None:
        """Add one window: target and prediction (T, C) in the same units, masked (T,) true where hidden."""
        target = np.asarray(target_TC, np.float64)[masked_T]
        prediction = np.asarray(prediction_TC, np.float64)[masked_T]
        deviation = target - target.mean(axis=0)
        predicted = prediction - prediction.mean(axis=0)
        variation = (deviation**2).sum(axis=0)
        varies = variation > 0
        predicted_variation = (predicted**2).sum(axis=0)
        # What is left of a constant after subtracting its rounded mean is not variation.
        predicted_variation[predicted_variation <= 1e-24 * (prediction**2).sum(axis=0)] = 0.0
        norm = np.sqrt(variation * predicted_variation)
        covariation = (deviation * predicted).sum(axis=0)
        r = np.divide(covariation, norm, out=np.zeros_like(norm), where=norm > 0)
        self.windows += 1
        self._series += int(varies.sum())
        self._sum_r += float(r[varies].sum())
        self._sum_squared_error += float(((target - prediction) ** 2).sum())
        self._sum_squared_deviation += float(variation.sum())
        self._values += target.size

    @property
    def correlation(self) -> float:
        return self._sum_r / self._series if self._series else float("nan")

    @property
    def r_squared(self) -> float:
        if self._sum_squared_deviation == 0:
            return float("nan")
        return 1.0 - self._sum_squared_error / self._sum_squared_deviation

    @property
    def mean_squared_error(self) -> float:
        return self._sum_squared_error / self._values if self._values else float("nan")
