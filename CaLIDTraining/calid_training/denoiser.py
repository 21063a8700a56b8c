"""Stage two: eps_theta, tau1 and tau2, jointly and from scratch on the frozen latents (paper, Eq. 5)."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from calid.method.diffusion import Model, Prediction, Schedule, sample
from calid.method.motion import halfway
from calid.method.networks import Denoiser, DenoiserConfig
from calid.method.weights import below, read_latent_space, read_motion, read_tensors
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from calid_training.rates import adam
from calid_training.validation import image_figures, log_slices_between

VALIDATION_STEPS = 8


class DenoiserStage(L.LightningModule):
    """Trains the interpolation in the latent space of a finished autoencoder.

    Args:
        autoencoder: file written by `calid-train export autoencoder`, or a whole model's.
        motion: file written by `calid-train export motion`, or a whole model's, which brings the neighbors half-way
            first; None shows them as they are, as in the paper.
        start: file of a finished model whose denoiser is trained on; None starts from nothing, as in the paper.
        network: widths of the networks; its prediction target is `prediction`.
        prediction: "epsilon" is the paper's target, "velocity" goes with a schedule of zero terminal signal.
        learning_rate, warmup_steps: Adam's rate and the steps over which it rises ("Training Details").
        noise_draws: times and noises drawn for each triplet; E and tau1 run once for all of them.
        terminal_share: share of the draws at t = T-1, where a velocity model predicts the posterior mean in one step.
        anneals: whether the rate falls to nothing by the end of the run.
    """

    figures_of = staticmethod(image_figures)

    def __init__(
        self,
        autoencoder: Path,
        motion: Path | None = None,
        start: Path | None = None,
        network: DenoiserConfig = DenoiserConfig(),
        prediction: Prediction = "velocity",
        learning_rate: float = 1e-4,
        warmup_steps: int = 500,
        noise_draws: int = 2,
        terminal_share: float = 0.1,
        anneals: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network", "autoencoder", "motion", "start"])
        self.learning_rate, self.warmup_steps, self.anneals = learning_rate, warmup_steps, anneals
        self.noise_draws, self.terminal_share = noise_draws, terminal_share
        self.schedule = Schedule(prediction=prediction, zero_terminal_snr=prediction == "velocity")
        self.network = Denoiser(network)
        if start is not None:
            self.network.load_state_dict(below(read_tensors(start)[0], "denoiser."))
        self.latent_space = read_latent_space(Path(autoencoder)).requires_grad_(False).eval()
        self.motion = None if motion is None else read_motion(motion).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DenoiserStage:
        super().train(mode)
        self.latent_space.eval()
        if self.motion is not None:
            self.motion.eval()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        total = self.trainer.estimated_stepping_batches if self.anneals else math.inf
        return adam(self.network, self.learning_rate, self.warmup_steps, total=total)

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        loss = F.mse_loss(*self.predicted(batch))
        self.log("train/loss", loss)
        return loss

    def predicted(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network predicts and what Eq. 5 asks for, at `noise_draws` new times and noises for each slice."""
        z_0, z_c = self.encoded(batch["target"]), self.condition(*self.neighbors(batch))
        z_0, z_c = (x.repeat_interleave(self.noise_draws, dim=0) for x in (z_0, z_c))
        t = self._draw_times(len(z_0))
        noise = self.drawn_noise(z_0)
        prediction = self.model(batch, z_c)(self.schedule.add_noise(z_0, noise, t), t)
        return prediction.float(), self.schedule.target(z_0, noise, t)

    def encoded(self, images: torch.Tensor) -> torch.Tensor:
        """Latents of images, without a gradient."""
        with torch.no_grad():
            return self.latent_space.encode(images).float()

    def condition(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """z_c of neighbors as `neighbors` makes them."""
        latents = (self.encoded(before), self.encoded(after)) if self.network.config.anchored else None
        return self.network.condition(before, after, latents)

    def neighbors(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The images that the networks are shown, without a gradient: half-way where there is a motion."""
        before, after = batch["before"], batch["after"]
        if self.motion is None:
            return before, after
        with torch.no_grad():
            return halfway(self.motion, before, after)

    def model(self, batch: dict[str, torch.Tensor], z_c: torch.Tensor) -> Model:
        """The network under the condition z_c of a batch."""
        del batch  # clips say whether they are periodic
        return lambda z, t: self.network(z, t, z_c)

    def drawn_noise(self, z_0: torch.Tensor) -> torch.Tensor:
        """Noise for clean latents."""
        return torch.randn_like(z_0)

    def initial_noise(self, z_0: torch.Tensor, *, seed: int) -> torch.Tensor:
        """Noise of the shape of z_0 that a validated slice starts from, the same in every epoch."""
        return torch.randn(z_0.shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def _draw_times(self, count: int) -> torch.Tensor:
        last = self.schedule.num_times - 1
        t = torch.randint(0, last + 1, (count,), device=self.device)
        terminal = torch.rand(count, device=self.device) < self.terminal_share
        return torch.where(terminal, last, t)

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        before, after = self.neighbors(batch)
        model = self.model(batch, self.condition(before, after))
        z_T = self.initial_noise(self.encoded(batch["target"]), seed=index)
        made = {"linear": (batch["before"] + batch["after"]) / 2, "mean": (before + after) / 2}
        for name, steps in (("one_step", 1), ("detail", VALIDATION_STEPS)):
            *_, z_0 = sample(self.schedule, model, z_T, steps=steps)
            made[name] = self.latent_space.decode(z_0).float().clamp(-1, 1)
        log_slices_between(self, batch, made, index=index, figures_of=self.figures_of)
