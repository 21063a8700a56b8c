"""The denoiser of codes: eps_theta, tau1 and tau2 in the code space of a finished codec, then together with its D.

First the paper's loss (Eq. 5) on frozen codes. Then, with `image_weight`, also on what becomes of them: two draws of
every slice, made by the steps that will be taken, decoded and judged as D's answers were. Their mean distance to the
truth counts, less a share of half their distance to each other: an energy score (Gneiting and Raftery 2007), whose
minimum at a full share is the true distribution, and which at no share makes all draws the same.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import lightning as L
import torch
import torch.nn.functional as F
from calid.method.codec import Codec, Sight
from calid.method.coded import cooled
from calid.method.diffusion import EpsTheta, Schedule, sample
from calid.method.motion import halfway
from calid.method.networks import Denoiser, DenoiserConfig
from calid.method.weights import below, read_codec, read_motion, read_tensors
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from calid_training.codec import Judge
from calid_training.denoiser import drawn_times
from calid_training.errors import UsageError
from calid_training.lpips import lpips_network
from calid_training.rates import learning
from calid_training.validation import image_figures, log_slices_between

VALIDATION_STEPS = (1, 2, 4)
Part = Literal["denoiser", "tau1", "decoder", "look"]


class CodeDenoiserStage(L.LightningModule):
    """Trains the denoiser of codes, and D with it where images are judged.

    Args:
        codec: file written by `calid-train export codec`, or a whole model's; with the motion.
        alexnet: weights of LPIPS's AlexNet, see `lpips`.
        start: a whole model's file whose denoiser is trained on; None starts from nothing.
        network: widths; `seen_channels` are those of the codec's coarsest level, of both neighbors.
        learning_rate, warmup_steps: Adam's rate and the steps over which it rises.
        muon_rate: Muon's rate for the weights of layers; 0 leaves them to Adam.
        noise_draws: times and noises drawn for each triplet.
        terminal_share: share of the draws at t = T-1, where the walk starts.
        learned: parts that learn, of "denoiser" or its "tau1", "decoder" and "look"; the codec's need judged draws.
        image_weight: weight of the judged draws beside Eq. 5; 0 judges none.
        draw_steps: DDIM steps of these draws.
        temperature: how far they go from the mean of all draws, see `calid.method.model.Departures`.
        spread_share: share of half the draws' distance to each other that is taken off, 0 to 1.
        likelihood_weight, perceptual_weight, texture_weight: weights of the judge, as in the codec's stage.
        anneals: whether the rate falls to nothing by the end of the run.

    Raises:
        UsageError: if a part of the codec is to learn, and no draws are judged.
    """

    def __init__(
        self,
        codec: Path,
        alexnet: Path,
        network: DenoiserConfig,
        start: Path | None = None,
        learning_rate: float = 4e-4,
        warmup_steps: int = 100,
        muon_rate: float = 0.0,
        noise_draws: int = 4,
        terminal_share: float = 0.25,
        learned: tuple[Part, ...] = ("denoiser",),
        image_weight: float = 0.0,
        draw_steps: int = 2,
        temperature: float = 1.0,
        spread_share: float = 0.5,
        likelihood_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        texture_weight: float = 1.0,
        anneals: bool = True,
    ) -> None:
        super().__init__()
        if not image_weight and {"decoder", "look"} & set(learned):
            raise UsageError(
                "D and what looks at the neighbors learn from judged draws: set model.image_weight above 0"
            )
        self.save_hyperparameters(ignore=["network", "codec", "alexnet", "start"])
        self.learning_rate, self.warmup_steps, self.anneals = learning_rate, warmup_steps, anneals
        self.muon_rate = muon_rate
        self.noise_draws, self.terminal_share = noise_draws, terminal_share
        self.image_weight, self.draw_steps, self.spread_share = image_weight, draw_steps, spread_share
        self.temperature = temperature
        self.schedule = Schedule(prediction=network.prediction, zero_terminal_snr=network.prediction == "velocity")
        self.network = Denoiser(network)
        if start is not None:
            self.network.load_state_dict(below(read_tensors(start)[0], "denoiser."))
        self.codec: Codec = read_codec(codec)
        self.network.requires_grad_(False)
        self.codec.requires_grad_(False)  # E stays, and with it what a code says
        for part in learned:
            self._parts()[part].requires_grad_(True)
        self.motion = read_motion(codec).requires_grad_(False).eval()
        self.judge = Judge(lpips_network(alexnet), likelihood_weight, perceptual_weight, texture_weight)

    def _parts(self) -> dict[Part, torch.nn.Module]:
        """What can learn, by the names in `learned`."""
        codec, network = self.codec, self.network
        return {"denoiser": network, "tau1": network.tau1, "decoder": codec.decoder, "look": codec.look}

    def train(self, mode: bool = True) -> CodeDenoiserStage:
        """Switch the mode; the motion stays in evaluation."""
        super().train(mode)
        self.motion.eval()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam of all that learns, with a warm-up, Muon if asked for."""
        total = self.trainer.estimated_stepping_batches if self.anneals else math.inf
        learned = torch.nn.ModuleList([self.network, self.codec])
        return learning(learned, self.learning_rate, self.warmup_steps, total=total, muon_rate=self.muon_rate)

    def seen(self, batch: dict[str, torch.Tensor]) -> Sight:
        """What D and tau1 see of a batch's neighbors."""
        with torch.no_grad():
            before, after = halfway(self.motion, batch["before"], batch["after"])
        return self.codec.see(before, after, batch["gap_mm"])

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Eq. 5 and, with `image_weight`, what becomes of two draws."""
        sight = self.seen(batch)
        z_c = self.network.tau1(sight.features[-1])
        loss = F.mse_loss(*self.predicted(batch, sight, z_c))
        self.log("train/loss", loss)
        if not self.image_weight:
            return loss
        first, second = (self.codec.decode(self.drawn(batch["target"], z_c), sight) for _ in range(2))
        losses = self.judge.energy(first, second, batch["target"], spread_share=self.spread_share)
        self.log_dict({f"train/{name}": value for name, value in losses.items()})
        return loss + self.image_weight * losses["total"]

    def predicted(
        self, batch: dict[str, torch.Tensor], sight: Sight, z_c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network predicts and what Eq. 5 asks for, at `noise_draws` new times and noises for each slice."""
        with torch.no_grad():
            z_0 = self.codec.encode(batch["target"], sight).float()
        z_0, z_c = (x.repeat_interleave(self.noise_draws, dim=0) for x in (z_0, z_c))
        t = drawn_times(self.schedule, len(z_0), terminal_share=self.terminal_share, device=self.device)
        noise = torch.randn_like(z_0)
        prediction = self.network(self.schedule.add_noise(z_0, noise, t), t, z_c)
        return prediction.float(), self.schedule.target(z_0, noise, t)

    def drawn(self, images: torch.Tensor, z_c: torch.Tensor) -> torch.Tensor:
        """A code for every image by `draw_steps` steps from noise."""
        z_T = torch.randn(self.codec.code_shape(images), device=self.device)
        return self.walked(z_T, z_c, steps=self.draw_steps)

    def walked(self, z_T: torch.Tensor, z_c: torch.Tensor, *, steps: int) -> torch.Tensor:
        """The codes where walks from z_T end, at the stage's temperature."""
        return cooled(*sample(self.schedule, self.model(z_c), z_T, steps=steps), temperature=self.temperature)

    def model(self, z_c: torch.Tensor) -> EpsTheta:
        """The network under the condition z_c."""
        return lambda z, t: self.network(z, t, z_c)

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        """Log figures of draws at several numbers of steps beside those of codes without a denoiser."""
        sight, truth = self.seen(batch), batch["target"]
        z_c = self.network.tau1(sight.features[-1])
        z_T = torch.randn(self.codec.code_shape(truth), generator=torch.Generator().manual_seed(index))
        z_T = z_T.to(self.device)
        codes = {"zero": torch.zeros_like(z_T), "prior": z_T / self.codec.scale}
        for steps in VALIDATION_STEPS:
            codes[f"steps{steps}"] = self.walked(z_T, z_c, steps=steps)
        made = {name: self.codec.decode(code, sight).clamp(-1, 1) for name, code in codes.items()}
        made["moved"] = sight.images.mean(dim=1, keepdim=True)
        log_slices_between(self, batch, made, index=index, figures_of=self.figures)
        wanted = self.codec.encode(truth, sight)
        explained = 1 - (codes["steps1"] - wanted).square().mean() / wanted.square().mean()
        self.log("val/explained", explained, batch_size=len(truth), sync_dist=True)

    def figures(self, images: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
        """PSNR, sharpness and LPIPS."""
        return image_figures(images, truth) | {"lpips": self.judge.distances(images, truth).mean()}
