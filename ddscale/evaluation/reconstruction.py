"""How well a pretrained autoencoder predicts hidden EEG of people it has not seen, beside methods that learn nothing.

Legend: W windows, T samples, C channels of a recording, K channels of a data set, M methods, F bands, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddscale import recipes
from ddscale.evaluation.bands import BandFilters, usable_bands
from ddscale.evaluation.intervals import Ratios, ratios
from ddscale.evaluation.results import number, write_json
from ddscale.models.baselines import channel_mean, cubic_spline, linear_interpolation
from ddscale.models.config import MAEConfig
from ddscale.models.encoder_folder import load_autoencoder
from ddscale.models.masked_autoencoder import MaskedAutoencoder
from ddscale.store import Store
from ddscale.store.identity import Split
from ddscale.stream.device import first_channels, materialise
from ddscale.stream.loader import Loader, open_stores
from ddscale.training.settings import PretrainRecipe

Floats = NDArray[np.float64]

MODEL = "model"
BASELINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear interpolation": linear_interpolation,
    "cubic spline": cubic_spline,
    "channel mean": channel_mean,
}
METHODS = [MODEL, *BASELINES]
ALL = "all"
"""Name of the unfiltered signal among the bands."""
MEASURES = ("correlation", "r_squared", "mse")
ENOUGH = 5
MICRO_BATCH = 32
NOTES = [
    "Masked samples alone count. Values are normalised as in pretraining, so an MSE of 1 is {one}.",
    "R² = 1 − Σ(x − p)² / Σ(x − x̄)² over all (window, channel) series, x̄ the series' own mean; the correlation is "
    "Pearson's r of each series, averaged.",
    "Bands: the window with its masked samples predicted is filtered as a whole, so the true samples around a gap "
    "help every method alike, the more the slower the band: what the channel mean scores there is their share.",
]


@dataclass(frozen=True)
class Window:
    """One window's sums over its masked samples."""

    dataset: str
    subject: str
    record: str
    channels: list[str]
    masked: int
    """Masked samples of each channel."""
    sums_MFC3: Floats
    """Pearson's r (NaN: the target does not vary), squared error, squared deviation of the target."""


def reconstruct(
    run: str | Path,
    *,
    windows: int = 512,
    split: Split = "val",
    mask_ratio: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate RUN/mae on held-out windows of the run's stores and write RUN/evaluation/reconstruction.json.

    windows: how many, drawn by the data's seed; split: val or test. mask_ratio: hide this part of the tokens instead
    of the one the model was trained with, so that models trained with different ones can be compared.
    Returns what the file holds. Raises FileNotFoundError when the run has no autoencoder yet, ValueError when it is
    no pretraining run, its stores have no such windows, or none of them can be read.
    """
    folder = Path(run)
    recipe = _recipe_of(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_autoencoder(folder / "mae").to(device)
    if mask_ratio is not None:
        # Neither encoder nor decoder has weights that know how many tokens are hidden.
        model.config = recipes.check(
            {**model.config.model_dump(), "mask_ratio": mask_ratio}, MAEConfig, "--mask-ratio"
        )
    stores = open_stores(recipe.data)
    bands, seen = _measure(recipe, model, device, stores, split, windows, on_progress)
    found = {
        "run": str(folder),
        "split": split,
        "windows": len(seen),
        "window_s": recipe.data.window_samples / stores[0].sfreq,
        "mask_ratio": model.config.mask_ratio,
        "patch_samples": model.config.patch,
        "bands_hz": {name: list(edges) for name, edges in bands.items()},
        "methods": METHODS,
        "stores": [{"path": str(store.path), "fingerprint": store.fingerprint} for store in stores],
        "overall": _summary(seen, [ALL, *bands], by_channel=False),
        "datasets": {name: _summary(group, [ALL, *bands]) for name, group in _by_dataset(seen).items()},
        "notes": [NOTES[0].format(one=_one(recipe)), *NOTES[1:]],
    }
    write_json(folder / "evaluation" / "reconstruction.json", found)
    return found


def _one(recipe: PretrainRecipe) -> str:
    normalisation = recipe.data.normalisation
    if normalisation.kind == "zscore":
        return "a channel's own variance"
    return (
        f"{normalisation.by_uv**2:g} µV², whatever the channel's own variance: compare methods with each other, and "
        "not the MSE of one split or person with another's"
    )


def _recipe_of(run: Path) -> PretrainRecipe:
    path = run / "recipe.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} has no recipe.yaml, so it is no run's folder: name one that training wrote."
        )
    tree = recipes.read(path)
    if recipes.stage_of(tree, path) != "pretrain":
        raise ValueError(
            f"{run} is a run of stage {tree['stage']}: only a pretraining run has an autoencoder to reconstruct with."
        )
    return recipes.check(tree, PretrainRecipe, str(path))


def _measure(
    recipe: PretrainRecipe,
    model: MaskedAutoencoder,
    device: torch.device,
    stores: list[Store],
    split: Split,
    windows: int,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, tuple[float, float]], list[Window]]:
    """Bands (name -> Hz) and every readable window's sums."""
    data, filters = recipe.data, stores[0].content.filters
    seen: list[Window] = []
    with Loader.fixed(data, split, windows=windows, micro_batch_size=MICRO_BATCH, stores=stores) as loader:
        edges = (filters.get("l_freq"), filters.get("h_freq"))
        bands = usable_bands(loader.sfreq, loader.window_s, *edges)
        band_filters = BandFilters(bands, loader.sfreq)
        names = _Names(stores)
        total = min(windows, loader.windows_per_epoch)
        for (batch,) in loader:
            x_BTC = materialise(batch, device, loader.step_uv, data.n_channels, data.normalisation)
            predicted_BTC, masked_BN = model.reconstruct(x_BTC, batch.mask_seeds.to(device))
            predictions = [predicted_BTC, *(predict(x_BTC, masked_BN) for predict in BASELINES.values())]
            arrays = [prediction.cpu().numpy().astype(np.float64) for prediction in predictions]
            original = x_BTC.cpu().numpy().astype(np.float64)
            masked_BT = masked_BN.repeat_interleave(model.config.patch, dim=1).cpu().numpy()
            first_C = first_channels(batch.mask_seeds, batch.channels, data.n_channels)
            samples = np.flatnonzero(batch.valid.numpy())
            located = loader.locate(batch.positions[samples].numpy())
            for place, sample in enumerate(samples):
                # A recording's own channels: the copies that fill the model's would count some of them twice.
                own = min(int(batch.channels[sample]), data.n_channels)
                first, row = int(first_C[sample]), int(located.row[place])
                store = int(located.store[place])
                channels = stores[store].channels_of(row)[first : first + own]
                seen.append(
                    Window(
                        dataset=loader.datasets[int(batch.datasets[sample])],
                        subject=names.subject(store, row),
                        record=f"{store}/{row}",
                        channels=[channel.standard or channel.name for channel in channels],
                        masked=int(masked_BT[sample].sum()),
                        sums_MFC3=window_sums(
                            original[sample, :, :own],
                            [array[sample, :, :own] for array in arrays],
                            masked_BT[sample],
                            band_filters,
                        ),
                    )
                )
            if on_progress is not None:
                on_progress(len(seen), total)
        if not seen:
            cause = loader.faults[0].cause if loader.faults else "no window is valid"
            raise ValueError(f"none of {total} held-out windows could be read: {cause}")
    return bands, seen


class _Names:
    """Whose a record is, by store and row; each store's column is read once."""

    def __init__(self, stores: list[Store]) -> None:
        self._stores = stores
        self._subjects: dict[int, Any] = {}

    def subject(self, store: int, row: int) -> str:
        if store not in self._subjects:
            self._subjects[store] = self._stores[store].table(["subject"])["subject"]
        return str(self._subjects[store][row].as_py())


def window_sums(
    target_TC: Floats, predictions: list[Floats], masked_T: NDArray[np.bool_], filters: BandFilters
) -> Floats:
    """(M, 1 + F, C, 3): r, squared error and squared deviation over masked samples, unfiltered and in each band."""
    bands = [target_TC, *filters(target_TC)]
    result = np.empty((len(predictions), len(bands), target_TC.shape[1], 3))
    for m, prediction_TC in enumerate(predictions):
        for f, (target, predicted) in enumerate(
            zip(bands, [prediction_TC, *filters(prediction_TC)], strict=True)
        ):
            result[m, f] = _series_sums(target[masked_T], predicted[masked_T])
    return result


def _series_sums(target_TC: Floats, predicted_TC: Floats) -> Floats:
    """(C, 3) of one band; a prediction that does not vary has r = 0, as in metrics.reconstruction."""
    deviation = target_TC - target_TC.mean(axis=0)
    predicted = predicted_TC - predicted_TC.mean(axis=0)
    variation, predicted_variation = (deviation**2).sum(axis=0), (predicted**2).sum(axis=0)
    # What is left of a constant after subtracting its rounded mean is not variation.
    predicted_variation[predicted_variation <= 1e-24 * (predicted_TC**2).sum(axis=0)] = 0.0
    norm = np.sqrt(variation * predicted_variation)
    r = np.divide((deviation * predicted).sum(axis=0), norm, out=np.zeros_like(norm), where=norm > 0)
    r[variation == 0] = np.nan
    return np.stack([r, ((target_TC - predicted_TC) ** 2).sum(axis=0), variation], axis=-1)


def _by_dataset(seen: list[Window]) -> dict[str, list[Window]]:
    return {name: [w for w in seen if w.dataset == name] for name in sorted({w.dataset for w in seen})}


def _summary(windows: list[Window], bands: list[str], by_channel: bool = True) -> dict[str, Any]:
    """Measures by band and by channel, each baseline's with the model's lead over it."""
    groups, what = _independent(windows)
    names = sorted({channel for window in windows for channel in window.channels})
    a_GS, b_GS = _group_sums(windows, groups, names)  # (G, M, F, K, measures)
    pooled = ratios(_flat(a_GS.sum(axis=3)), _flat(b_GS.sum(axis=3)))
    summary = {
        "windows": len(windows),
        "subjects": len({window.subject for window in windows}),
        "intervals": f"95 %, bootstrap over {len(set(groups))} {what}",
        "bands": _described(pooled, (len(METHODS), len(bands)), bands),
    }
    if by_channel:
        single = ratios(_flat(a_GS[:, :, 0]), _flat(b_GS[:, :, 0]))
        summary["channels"] = _described(single, (len(METHODS), len(names)), names)
    return summary


def _independent(windows: list[Window]) -> tuple[list[str], str]:
    """The group of each window, and what the groups are: people where there are enough of them to draw from."""
    subjects, records = [window.subject for window in windows], [window.record for window in windows]
    if len(set(subjects)) >= ENOUGH:
        return subjects, "people"
    if len(set(records)) >= ENOUGH:
        return records, "records (too few people to draw people: others may differ by more)"
    each = [str(number) for number in range(len(windows))]
    return each, "windows (too few people and records: neighbouring windows are alike, so this is too narrow)"


def _group_sums(windows: list[Window], groups: list[str], names: list[str]) -> tuple[Floats, Floats]:
    """Numerators and denominators of the measures by group, method, band and channel."""
    order = {name: number for number, name in enumerate(sorted(set(groups)))}
    place = {name: number for number, name in enumerate(names)}
    M, F = windows[0].sums_MFC3.shape[:2]
    a = np.zeros((len(order), len(names), M, F, len(MEASURES)))
    b = np.zeros_like(a)
    for window, group in zip(windows, groups, strict=True):
        r, error, deviation = np.moveaxis(window.sums_MFC3, -1, 0)
        counted = np.isfinite(r)
        # 1 − error / deviation = (deviation − error) / deviation: R² is a ratio of sums too.
        a_MFCS = np.stack([np.where(counted, r, 0.0), deviation - error, error], axis=-1)
        b_MFCS = np.stack([counted.astype(float), deviation, np.full_like(error, window.masked)], axis=-1)
        # Channels of one recording may share a name: add.at adds them all.
        channels = np.array([place[name] for name in window.channels])
        at = (np.full(len(channels), order[group]), channels)
        np.add.at(a, at, np.moveaxis(a_MFCS, 2, 0))
        np.add.at(b, at, np.moveaxis(b_MFCS, 2, 0))
    return np.moveaxis(a, 1, 3), np.moveaxis(b, 1, 3)


def _flat(values_G: Floats) -> Floats:
    return values_G.reshape(len(values_G), -1)


def _described(found: Ratios, shape: tuple[int, int], names: list[str]) -> dict[str, Any]:
    """name -> method -> measure -> value and interval; `models_lead`: model minus that method, paired."""
    low, high = found.interval()
    view = (*shape, len(MEASURES))
    value, low, high = (part.reshape(view) for part in (found.value, low, high))
    draws = found.draws.reshape(len(found.draws), *view)
    described: dict[str, Any] = {}
    for f, name in enumerate(names):
        described[name] = {
            method: {
                measure: _estimate(value[m, f, s], low[m, f, s], high[m, f, s])
                for s, measure in enumerate(MEASURES)
            }
            for m, method in enumerate(METHODS)
        }
        for m, method in enumerate(METHODS[1:], start=1):
            lead = Ratios(value[0, f] - value[m, f], draws[:, 0, f] - draws[:, m, f])
            lead_low, lead_high = lead.interval()
            described[name][method]["models_lead"] = {
                measure: _estimate(lead.value[s], lead_low[s], lead_high[s])
                for s, measure in enumerate(MEASURES)
            }
    return described


def _estimate(value: float, low: float, high: float) -> dict[str, float | None]:
    return {"value": number(value), "low": number(low), "high": number(high)}
