"""The codec's stage: E and D of what the neighbors do not show (`calid.method.codec`).

Its loss is the paper's for E and D (Eq. 4 and "Implementation Details"): likelihood, KL and perceptual; and one for
texture, which takes the place of a discriminator: how strong fine detail is at every place, wherever exactly it lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from calid.method.codec import Codec, CodecConfig, Sight
from calid.method.motion import halfway
from calid.method.weights import read_codec, read_motion
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from calid_training.errors import UsageError
from calid_training.lpips import AlexNetLPIPS, lpips_network
from calid_training.rates import learning
from calid_training.validation import image_figures, log_slices_between

TEXTURE_BANDS = 2  # octaves: about 2 to 4 and 4 to 8 pixels a period
TEXTURE_WINDOW = 8  # pixels over which the strength of a band is averaged


WIDTHS = CodecConfig()
"""Those that ship."""


class CodecStage(L.LightningModule):
    """Trains E and D on triplets whose neighbors a finished motion brings half-way.

    Args:
        motion: file written by `calid-train export motion`, or a whole model's.
        alexnet: weights of LPIPS's AlexNet, see `lpips`.
        network: widths of E and D.
        likelihood_weight: weight of the mean absolute error.
        perceptual_weight: weight of LPIPS.
        texture_weight: weight of the difference in local strength of fine detail.
        kl_weight: weight of the code's KL divergence in nats per pixel.
        kl_rise: steps between which that weight rises from nothing: D has to find a use for the code first.
        zero_share: share of the slices that D makes from a code of zeros, so that this, too, is an answer.
        start: a codec's file whose D is trained on with a new E; blocks that it lacks begin by changing nothing.
        learning_rate, warmup_steps: Adam's rate and the steps over which it rises.
        muon_rate: Muon's rate for the weights of layers; 0 leaves them to Adam.
        anneals: whether the rate falls to nothing by the end of the run.
    """

    def __init__(
        self,
        motion: Path,
        alexnet: Path,
        network: CodecConfig = WIDTHS,
        likelihood_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        texture_weight: float = 1.0,
        kl_weight: float = 0.1,
        kl_rise: tuple[int, int] = (300, 1500),
        zero_share: float = 0.15,
        start: Path | None = None,
        learning_rate: float = 5e-4,
        warmup_steps: int = 100,
        muon_rate: float = 0.0,
        anneals: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network", "motion", "alexnet", "start"])
        self.network = Codec(network)
        if start is not None:
            self._go_on_from(start)
        self.motion = read_motion(motion).requires_grad_(False).eval()
        self.judge = Judge(lpips_network(alexnet), likelihood_weight, perceptual_weight, texture_weight)
        self.kl_weight, self.kl_rise, self.zero_share = kl_weight, kl_rise, zero_share
        self.learning_rate, self.warmup_steps, self.anneals = learning_rate, warmup_steps, anneals
        self.muon_rate = muon_rate

    def _go_on_from(self, start: Path) -> None:
        old = read_codec(start).state_dict()
        known = {key: value for key, value in old.items() if key.startswith(("look", "decoder"))}
        missing = self.network.load_state_dict(known, strict=False)
        if missing.unexpected_keys:
            raise UsageError(f"{start} has other parts than this codec: {', '.join(missing.unexpected_keys[:3])}")

    def train(self, mode: bool = True) -> CodecStage:
        """Switch the codec's mode; the motion stays in evaluation."""
        super().train(mode)
        self.motion.eval()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with a warm-up, Muon if asked for."""
        total = self.trainer.estimated_stepping_batches if self.anneals else math.inf
        return learning(self.network, self.learning_rate, self.warmup_steps, total=total, muon_rate=self.muon_rate)

    def seen(self, batch: dict[str, torch.Tensor]) -> Sight:
        """What D sees of a batch's neighbors, brought half-way."""
        with torch.no_grad():
            before, after = halfway(self.motion, batch["before"], batch["after"])
        return self.network.see(before, after, batch["gap_mm"])

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Likelihood, perceptual, texture and KL losses of a drawn code."""
        sight, truth = self.seen(batch), batch["target"]
        mean, sigma = self.network.posterior_of(truth, sight)
        code = mean + sigma * torch.randn_like(mean)
        code = code * (torch.rand(len(code), 1, 1, 1, device=self.device) >= self.zero_share)
        losses = self.judge(self.network.decode(code, sight), truth)
        kl = code_divergence(mean, sigma).mean() / truth[0].numel()
        self.log_dict({f"train/{name}": value for name, value in losses.items()} | {"train/nats_per_pixel": kl})
        first, last = self.kl_rise
        risen = min(max((self.global_step - first) / (last - first), 0), 1)
        return losses["total"] + self.kl_weight * risen * kl

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        """Log figures of slices made of codes: zeros, the prior's, the truth's own."""
        sight = self.seen(batch)
        mean = self.network.encode(batch["target"], sight)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(index)).to(self.device)
        codes = {"zero": torch.zeros_like(mean), "prior": noise, "truth": mean}
        made = {name: self.network.decode(code, sight).clamp(-1, 1) for name, code in codes.items()}
        made["moved"] = sight.images.mean(dim=1, keepdim=True)
        log_slices_between(self, batch, made, index=index, figures_of=self.figures)

    def figures(self, images: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
        """PSNR, sharpness and LPIPS."""
        return image_figures(images, truth) | {"lpips": self.judge.distances(images, truth).mean()}


class Judge(torch.nn.Module):
    """How far images are from the truth: likelihood, LPIPS and texture.

    Args:
        lpips: network that LPIPS compares features of.
        likelihood_weight, perceptual_weight, texture_weight: weights of the three.
    """

    def __init__(
        self, lpips: AlexNetLPIPS, likelihood_weight: float, perceptual_weight: float, texture_weight: float
    ) -> None:
        super().__init__()
        self.lpips = lpips
        self.weights = {"l1": likelihood_weight, "lpips": perceptual_weight, "texture": texture_weight}

    def forward(self, images: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
        """The three and their weighted "total", of images (N, 1, H, W) in [-1, 1]."""
        losses = {
            "l1": F.l1_loss(images, truth),
            "lpips": self.distances(images, truth).mean(),
            "texture": _total(F.l1_loss(a, b) for a, b in zip(strengths(images), strengths(truth), strict=True)),
        }
        return losses | {"total": _total(weight * losses[name] for name, weight in self.weights.items())}

    def energy(
        self, first: torch.Tensor, second: torch.Tensor, truth: torch.Tensor, *, spread_share: float
    ) -> dict[str, torch.Tensor]:
        """As `forward` of two draws, less `spread_share` of half their distance to each other."""
        draws = torch.cat([first, second])
        losses = self(draws, torch.cat([truth, truth]))
        apart = self.weights["l1"] * F.l1_loss(first, second)
        if self.weights["lpips"]:
            apart = apart + self.weights["lpips"] * self.lpips((first + 1) / 2, (second + 1) / 2).mean()
        return losses | {"apart": apart, "total": losses["total"] - spread_share / 2 * apart}

    def distances(self, images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """LPIPS (N,)."""
        with torch.no_grad():
            wanted = self.lpips.features((truth + 1) / 2)
        return self.lpips.between(wanted, self.lpips.features((images + 1) / 2)).float()


def _total(losses: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of at least one loss."""
    first, *others = losses
    return sum(others, first)


def strengths(images: torch.Tensor) -> list[torch.Tensor]:
    """Root mean square of each band of fine detail around every place of images (N, 1, H, W), finest first."""
    found, kernel = [], torch.tensor([0.25, 0.5, 0.25], device=images.device)
    kernel = (kernel[:, None] * kernel)[None, None]
    for _ in range(TEXTURE_BANDS):
        smooth = F.conv2d(F.pad(images, [1] * 4, mode="replicate"), kernel)
        power = F.avg_pool2d((images - smooth).square(), TEXTURE_WINDOW, stride=TEXTURE_WINDOW // 2)
        found.append((power + 1e-4).sqrt())
        images = F.avg_pool2d(smooth, 2)
    return found


def code_divergence(mean: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """D_KL(N(mean, sigma) || N(0, 1)) of every code (N,), in nats."""
    return 0.5 * (mean.square() + sigma.square() - 2 * sigma.log() - 1).flatten(1).sum(1)
