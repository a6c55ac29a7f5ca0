"""Masked pretraining as a task for the loop: windows, the autoencoder's loss, held-out subjects, the encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddscale.models.baselines import channel_mean, linear_interpolation
from ddscale.models.encoder import EEGEncoder
from ddscale.models.encoder_folder import save_autoencoder, save_encoder
from ddscale.models.flops import training_flops
from ddscale.models.masked_autoencoder import MaskedAutoencoder
from ddscale.models.masking import random_mask
from ddscale.stream.collation import HostBatch
from ddscale.stream.device import OnDevice, to_device
from ddscale.stream.loader import Loader, open_stores
from ddscale.stream.settings import StreamSettings
from ddscale.training.export import load_full
from ddscale.training.faults import UnreadableRecords
from ddscale.training.loop import Terms
from ddscale.training.ranks import Ranks
from ddscale.training.runs import Display, run
from ddscale.training.settings import PretrainRecipe

# Which data is seen in which order decides the run; these decide only how fast it is read.
_MACHINERY = {
    "stores",
    "cache",
    "reader_threads",
    "reads_at_once",
    "prefetch",
    "max_unreadable",
    "max_unreadable_fraction",
    "retry_s",
    "sfreq",
}


def data_identity(data: StreamSettings) -> dict[str, Any]:
    """What of the stream's settings decides which windows a run sees."""
    # Said only of trials, so that runs begun before there were any can be resumed.
    of_trials = {"cut", "short_trials"} if data.cut == "sliding" else set()
    return data.model_dump(mode="json", exclude=_MACHINERY | of_trials)


def pretrain(recipe: PretrainRecipe, ranks: Ranks, display: Display) -> str | None:
    """Run or continue the recipe; None when it is done, or what stopped it: a signal or the stop file."""
    return run(recipe, lambda: Pretraining(recipe, ranks), ranks, display)


class Pretraining:
    """Windows of EEG, most tokens hidden: see `ddscale.training.loop.Task` for what each part is for.

    Raises ValueError or OSError when a store cannot be opened or has no held-out windows to validate on.
    """

    label = "dataset"
    builds_whole = False

    def __init__(self, recipe: PretrainRecipe, ranks: Ranks) -> None:
        self.recipe = recipe
        self.ranks = ranks
        self._loader = Loader(
            recipe.data,
            "train",
            global_batch_size=recipe.global_batch_size,
            micro_batch_size=recipe.micro_batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            stores=open_stores(recipe.data, check_index=ranks.local_rank == 0),
        )
        self._held_out = self._open_held_out()
        self._baselines: dict[str, float] | None = None
        self._unreadable = UnreadableRecords()
        self.names = list(self._loader.datasets)
        self.hours_per_sample = recipe.data.window_samples / self._loader.sfreq / 3600
        self.flops_per_sample: float | None = float(training_flops(recipe.model))

    def make_model(self) -> MaskedAutoencoder:
        return MaskedAutoencoder(self.recipe.model)

    def describe(self, model: nn.Module) -> list[str]:
        return []

    def identity(self) -> dict[str, Any]:
        model = self.recipe.model.model_dump(mode="json", exclude={"preset", "activation_checkpointing"})
        return {"model": model, "data": data_identity(self.recipe.data)}

    def state(self) -> dict[str, Any]:
        return self._loader.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._loader.restore(state)

    def steps(self) -> Iterator[list[HostBatch]]:
        return iter(self._loader)

    def weight(self, batch: HostBatch) -> float:
        return float(batch.valid.sum()) * self._values_per_window

    def positions(self, batch: HostBatch) -> list[int]:
        return [int(position) for position in batch.positions]

    def loss(self, engine: Any, batch: HostBatch) -> Terms:
        given = self._on_device(batch)
        output = engine(given.x_BTC, given.mask_seeds_B, given.valid_B)
        squared_B = torch.where(given.valid_B, output.per_sample_mse, 0.0).double()
        by_name = torch.zeros(len(self.names), 2, dtype=torch.float64, device=self.ranks.device)
        by_name[:, 0].index_add_(0, given.datasets_B, squared_B)
        by_name[:, 1].index_add_(0, given.datasets_B, given.valid_B.double())
        return Terms(output.sum_squared_error, by_name)

    def new_faults(self) -> list[dict[str, Any]]:
        return self._unreadable.new(self._loader, self._held_out)

    def unreadable_windows(self) -> int:
        return self._unreadable.windows(self._loader, self._held_out)

    @torch.no_grad()
    def validate(self, engine: Any) -> dict[str, float]:
        """Loss on the held-out windows, always the same ones, beside two predictions that learn nothing.

        val_windows: how many could be read; without any there is no loss.
        """
        assert self._held_out is not None, "validation is only asked for with held-out windows at hand"
        sums = torch.zeros(6, dtype=torch.float64, device=self.ranks.device)
        lost_before = self._held_out.unreadable_windows
        for micro_batches in self._held_out:
            for batch in micro_batches:
                given = self._on_device(batch)
                output = engine(given.x_BTC, given.mask_seeds_B, given.valid_B)
                sums[0] += output.sum_squared_error
                sums[1] += output.masked_values
                sums[2] += given.valid_B.sum()
                if self._baselines is None:
                    sums[4:] += self._baseline_errors(given)
        sums[3] = self._held_out.unreadable_windows - lost_before
        error, count, windows, lost, mean_error, line_error = self.ranks.sum_(sums).tolist()
        if not count:
            return {"val_windows": 0}
        baselines = self._baselines or {
            "val_loss_channel_mean": mean_error / count,
            "val_loss_interpolation": line_error / count,
        }
        if not lost:  # those of a part would stand beside losses over all
            self._baselines = baselines
        return {"val_loss": error / count, **baselines, "val_windows": int(windows)}

    def export(self, weights: Mapping[str, Tensor], folder: Path, facts: dict[str, Any]) -> list[str]:
        """`encoder/` for everything that comes after, `mae/` (with the decoder) for reconstructions."""
        model = load_full(MaskedAutoencoder(self.recipe.model), weights)
        encoder = EEGEncoder.from_autoencoder(self.recipe.model, model.state_dict())
        facts = {**facts, **self._loader.of_windows(), "datasets": self.names}
        save_autoencoder(model, folder / "mae", facts)
        return [f"encoder: {save_encoder(encoder, folder / 'encoder', facts)}"]

    def close(self) -> None:
        self._loader.close()
        if self._held_out is not None:
            self._held_out.close()

    @property
    def _values_per_window(self) -> int:
        return self.recipe.model.n_masked * self.recipe.model.patch_values

    def _open_held_out(self) -> Loader | None:
        recipe, ranks = self.recipe, self.ranks
        if not recipe.validation.every:
            return None
        try:
            return Loader.fixed(
                recipe.data,
                "val",
                windows=recipe.validation.windows,
                micro_batch_size=recipe.micro_batch_size,
                rank=ranks.rank,
                world_size=ranks.world_size,
                stores=self._loader.stores,
                to_the_end=True,
            )
        except ValueError as error:
            raise ValueError(
                f"{error} (To train without held-out subjects, set validation.every: 0.)"
            ) from error

    def _on_device(self, batch: HostBatch) -> OnDevice:
        data = self.recipe.data
        return to_device(batch, self.ranks.device, self._loader.step_uv, data.n_channels, data.normalisation)

    def _baseline_errors(self, given: OnDevice) -> Tensor:
        x_BTC = given.x_BTC
        model = self.recipe.model
        _, masked_BM = random_mask(given.mask_seeds_B, model.n_tokens, model.n_visible)
        masked_BN = torch.zeros(len(x_BTC), model.n_tokens, dtype=torch.bool, device=x_BTC.device)
        masked_BN.scatter_(1, masked_BM, True)
        errors = [
            (predict(x_BTC, masked_BN) - x_BTC)[given.valid_B].double().square().sum()
            for predict in (channel_mean, linear_interpolation)
        ]
        return torch.stack(errors)
