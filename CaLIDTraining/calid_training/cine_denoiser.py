"""Stage two over time: the 2D+T denoiser, as temporal layers on a finished 2D model or, as in the paper, anew."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from calid.method.networks import DenoiserConfig, folded
from calid.method.weights import below, config_from, read_tensors

from calid_training.denoiser import DenoiserStage
from calid_training.errors import UsageError
from calid_training.validation import image_figures


def cine_figures(images: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """`image_figures` and frame-to-frame change relative to the truth; clips (N, 1, frames, Y, X) in [-1, 1]."""
    flicker = images.diff(dim=2).abs().mean() / truth.diff(dim=2).abs().mean()
    return image_figures(folded(images), folded(truth)) | {"flicker": flicker}


class CineDenoiserStage(DenoiserStage):
    """Trains the interpolation of slices over time.

    With `base`, its networks are kept as they are and only the temporal layers learn; without,
    `network` is trained from scratch in the latent space of `autoencoder`.

    Args:
        base: file of the 2D model to extend, such as `calid-2d.safetensors`.
        autoencoder: file of the latent space, where there is no base.
        network: widths of the networks, where there is no base.
        noise_shares: range of the share of the noise's power that the frames of a clip have in common; drawn for each
            clip. CaLID wants much of it, the inverted starts of CaLID+ have some share of their own.
        difference_weight: weight of the error of the prediction's frame-to-frame differences, beside its own error.
            A whole slice that is a little off costs more than one that flickers; this says what flicker costs.
        learning_rate, warmup_steps, noise_draws, terminal_share: see `DenoiserStage`.
    """

    figures_of = staticmethod(cine_figures)

    def __init__(
        self,
        base: str | None = None,
        autoencoder: str | None = None,
        network: DenoiserConfig = DenoiserConfig(),
        noise_shares: tuple[float, float] = (0.0, 1.0),
        difference_weight: float = 1.0,
        learning_rate: float = 1e-3,
        warmup_steps: int = 50,
        noise_draws: int = 1,
        terminal_share: float = 0.1,
    ) -> None:
        space = base or autoencoder
        if space is None:
            raise UsageError("give the 2D model to extend as --model.base, or a latent space as --model.autoencoder")
        motion = None
        if base is not None:
            state, metadata = read_tensors(Path(base))
            config = json.loads(metadata["config"])
            network = replace(config_from(DenoiserConfig, config["denoiser"]), temporal=True)
            motion = Path(base) if "motion" in config else None
        super().__init__(
            Path(space),
            motion,
            network=network,
            prediction=network.prediction,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            noise_draws=noise_draws,
            terminal_share=terminal_share,
        )
        self.noise_shares, self.difference_weight = tuple(noise_shares), difference_weight
        self.base_sha256 = ""
        if base is not None:
            self._extend(below(state, "denoiser."))
            self.base_sha256 = hashlib.sha256(Path(base).read_bytes()).hexdigest()

    def _extend(self, state: dict[str, torch.Tensor]) -> None:
        """Start from the 2D model's weights, and leave them as they are."""
        fresh = {f"temporal.{key}": value for key, value in self.network.temporal.state_dict().items()}
        self.network.load_state_dict(state | fresh)
        self.network.requires_grad_(False)
        self.network.temporal.requires_grad_(True)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep which 2D model is extended; "" for none."""
        checkpoint["base_sha256"] = self.base_sha256

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Go on.

        Raises:
            UsageError: if the run extends another 2D model.
        """
        if checkpoint["base_sha256"] != self.base_sha256:
            raise UsageError("this run extends another 2D model than --model.base; start a new run folder")

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Eq. 5 on clips, and the same on their frame-to-frame differences."""
        prediction, target = self.predicted(batch)
        error = F.mse_loss(prediction, target)
        flicker = F.mse_loss(prediction.diff(dim=2), target.diff(dim=2))
        self.log_dict({"train/loss": error, "train/difference": flicker}, batch_size=len(target))
        return error + self.difference_weight * flicker

    def is_periodic(self, batch: dict[str, torch.Tensor]) -> bool:
        """Whether the clips' last frame is followed by their first."""
        return bool(batch["is_periodic"])

    def drawn_noise(self, z_0: torch.Tensor) -> torch.Tensor:
        """Noise with a drawn share common to the frames of each clip."""
        shares = torch.empty(len(z_0), device=self.device).uniform_(*self.noise_shares)
        return joint_noise(shares, common=torch.randn_like(z_0[:, :, :1]), own=torch.randn_like(z_0))

    def initial_noise(self, z_0: torch.Tensor, *, seed: int) -> torch.Tensor:
        """Noise with the largest share common to the frames, the same in every epoch."""
        shares = torch.full((len(z_0),), self.noise_shares[1], device=self.device)
        common = super().initial_noise(z_0[:, :, :1], seed=seed)
        return joint_noise(shares, common=common, own=super().initial_noise(z_0, seed=-1 - seed))


def joint_noise(shares: torch.Tensor, *, common: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Noise whose frames have a share of its power in common ("mixed noise", Ge et al. 2023), unit variance throughout.

    Args:
        shares: (N,) 0 to 1.
        common: (N, C, 1, ...) noise.
        own: (N, C, frames, ...) independent noise.
    """
    shares = shares.reshape(-1, *[1] * (own.ndim - 1))
    return shares.sqrt() * common + (1 - shares).sqrt() * own
