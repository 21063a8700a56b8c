"""Stage two: eps_theta, tau1 and tau2, jointly and from scratch on the frozen latents (paper, Eq. 5)."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from calid.diffusion import Schedule, sample
from calid.networks import Denoiser, DenoiserConfig, Prediction
from calid.weights import read_latent_space

from calid_training.autoencoder import gradient_magnitude, warmup
from calid_training.pictures import log_pictures

VALIDATION_STEPS = 8


class DenoiserStage(L.LightningModule):
    """Trains the interpolation in the latent space of a finished autoencoder.

    Args:
        autoencoder: file written by `calid-train export autoencoder`.
        network: widths of the networks; its prediction target is `prediction`.
        prediction: "epsilon" is the paper's target, "velocity" goes with a schedule of zero terminal signal.
        learning_rate, warmup_steps: Adam's rate and the steps over which it rises ("Training Details").
        noise_draws: times and noises drawn for each triplet; E and tau1 run once for all of them.
        terminal_share: share of the draws at t = T-1, where a velocity model predicts the posterior mean in one step.
    """

    def __init__(
        self,
        autoencoder: Path,
        network: DenoiserConfig = DenoiserConfig(),
        prediction: Prediction = "velocity",
        learning_rate: float = 1e-4,
        warmup_steps: int = 500,
        noise_draws: int = 2,
        terminal_share: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network", "autoencoder"])
        self.schedule = Schedule(prediction=prediction, zero_terminal_snr=prediction == "velocity")
        self.network = Denoiser(network)
        self.latent_space = read_latent_space(Path(autoencoder)).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DenoiserStage:
        super().train(mode)
        self.latent_space.eval()
        return self

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.hparams.learning_rate)
        scheduler = {"scheduler": warmup(optimizer, self.hparams.warmup_steps), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        draws = self.hparams.noise_draws
        with torch.no_grad():
            z_0 = self.latent_space.encode(batch["target"]).float().repeat_interleave(draws, dim=0)
        z_c = self.network.condition(batch["before"], batch["after"]).repeat_interleave(draws, dim=0)
        t = self._draw_times(z_0.shape[0])
        noise = torch.randn_like(z_0)
        prediction = self.network(self.schedule.add_noise(z_0, noise, t), t, z_c)
        loss = F.mse_loss(prediction.float(), self.schedule.target(z_0, noise, t))
        self.log("train/loss", loss)
        return loss

    def _draw_times(self, count: int) -> torch.Tensor:
        last = self.schedule.num_times - 1
        t = torch.randint(0, last + 1, (count,), device=self.device)
        terminal = torch.rand(count, device=self.device) < self.hparams.terminal_share
        return torch.where(terminal, last, t)

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        truth, linear = batch["target"], (batch["before"] + batch["after"]) / 2
        z_c = self.network.condition(batch["before"], batch["after"])
        generator = torch.Generator().manual_seed(index)
        z_T = torch.randn(self.latent_space.encode(truth).shape, generator=generator).to(self.device)
        made = {"linear": linear}
        for name, steps in (("one_step", 1), ("detail", VALIDATION_STEPS)):
            *_, z_0 = sample(self.schedule, lambda z, t: self.network(z, t, z_c), z_T, steps=steps)
            made[name] = self.latent_space.decode(z_0).float().clamp(-1, 1)
        for name, images in made.items():
            psnr = 10 * torch.log10(4 / (images - truth).square().mean(dim=(1, 2, 3)))
            sharpness = gradient_magnitude(images) / gradient_magnitude(truth)
            figures = {f"val/psnr_{name}": psnr.mean(), f"val/sharpness_{name}": sharpness}
            self.log_dict(figures, batch_size=len(truth), sync_dist=True)
        if index == 0:
            log_pictures(self, "validation", [batch["before"], truth, *made.values(), batch["after"]])
