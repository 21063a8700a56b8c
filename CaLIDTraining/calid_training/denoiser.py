"""Stage two: eps_theta, tau1 and tau2, jointly and from scratch on the frozen latents (paper, Eq. 5)."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from calid.method.diffusion import Prediction, Schedule
from calid.method.model import CaLID
from calid.method.networks import Denoiser, DenoiserConfig
from calid.method.weights import below, read_latent_space, read_motion, read_tensors
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from calid_training.rates import learning
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
        """Switch the denoiser's mode; latent space and motion stay in evaluation."""
        super().train(mode)
        self.latent_space.eval()
        if self.motion is not None:
            self.motion.eval()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with a warm-up."""
        total = self.trainer.estimated_stepping_batches if self.anneals else math.inf
        return learning(self.network, self.learning_rate, self.warmup_steps, total=total)

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Eq. 5: the mean squared error of what the network predicts."""
        loss = F.mse_loss(*self.predicted(batch))
        self.log("train/loss", loss)
        return loss

    @property
    def calid(self) -> CaLID:
        """The networks put together as the engine puts them, which asks them the same way."""
        return CaLID(self.latent_space, self.network, self.schedule, self.motion)

    def predicted(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network predicts and what Eq. 5 asks for, at `noise_draws` new times and noises for each slice."""
        with torch.no_grad():
            z_0 = self.calid.encode(batch["target"])
            seen = self.calid.halfway(batch["before"], batch["after"])
        z_c = self.calid.condition(*seen)
        z_0, z_c = (x.repeat_interleave(self.noise_draws, dim=0) for x in (z_0, z_c))
        t = drawn_times(self.schedule, len(z_0), terminal_share=self.terminal_share, device=self.device)
        noise = self.drawn_noise(z_0)
        z_t = self.schedule.add_noise(z_0, noise, t)
        prediction = self.network(z_t, t, z_c, is_periodic=self.is_periodic(batch))
        return prediction.float(), self.schedule.target(z_0, noise, t)

    def is_periodic(self, batch: dict[str, torch.Tensor]) -> bool:
        """Whether the last frame of a batch's clips is followed by the first."""
        del batch  # slices have no frames
        return False

    def drawn_noise(self, z_0: torch.Tensor) -> torch.Tensor:
        """Noise for clean latents."""
        return torch.randn_like(z_0)

    def initial_noise(self, z_0: torch.Tensor, *, seed: int) -> torch.Tensor:
        """Noise of the shape of z_0 that a validated slice starts from, the same in every epoch."""
        return torch.randn(z_0.shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        """Log figures of slices made in one step and in several, beside linear and moved means."""
        before, after = batch["before"], batch["after"]
        calid, seen = self.calid, self.calid.halfway(before, after)
        z_T = self.initial_noise(calid.encode(batch["target"]), seed=index)
        made = {"linear": (before + after) / 2, "mean": (seen[0] + seen[1]) / 2}
        for name, steps in (("one_step", 1), ("detail", VALIDATION_STEPS)):
            made[name] = calid.between(before, after, z_T, steps=steps, is_periodic=self.is_periodic(batch))
        log_slices_between(self, batch, made, index=index, figures_of=self.figures_of)


def drawn_times(schedule: Schedule, count: int, *, terminal_share: float, device: torch.device) -> torch.Tensor:
    """Times (count,) of the schedule, drawn evenly, but for a share that is the last one, where every walk starts."""
    last = schedule.num_times - 1
    t = torch.randint(0, last + 1, (count,), device=device)
    return torch.where(torch.rand(count, device=device) < terminal_share, last, t)
