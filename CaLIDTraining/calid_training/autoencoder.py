"""Stage one: E and D (paper, Eq. 4 and "Implementation Details"): likelihood + KL + perceptual + PatchGAN."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import lightning as L
import torch
import torch.nn.functional as F
from calid.method.networks import Autoencoder, AutoencoderConfig
from calid.method.weights import read_latent_space
from monai.losses import PatchAdversarialLoss, PerceptualLoss
from monai.networks.nets import PatchDiscriminator

from calid_training.rates import warmup
from calid_training.validation import gradient_magnitude, log_pictures


class AutoencoderStage(L.LightningModule):
    """Trains E and D against a PatchGAN.

    Args:
        network: widths of E and D.
        perceptual: "discriminator" compares the discriminator's own feature maps (no downloaded weights);
            "squeeze", "alex" or "vgg" are LPIPS as in the paper and need torchvision's weights at hand.
        kl_weight: of the KL divergence summed over a latent, beside the L1 likelihood averaged over pixels; 1e-6
            already drowns the latents in noise.
        perceptual_weight, adversarial_weight: of the other terms.
        adversarial_start: training step from which the discriminator takes part.
        learning_rate, discriminator_learning_rate: of the two Adam optimisers.
        warmup_steps: over which both rise linearly.
        discriminator_channels: width of the PatchGAN.
        refine: file written by `calid-train export autoencoder`, whose D alone is trained further. E stays, and with
            it the latents that a denoiser was trained on: sharpening D needs no new denoiser.
    """

    def __init__(
        self,
        network: AutoencoderConfig = AutoencoderConfig(),
        perceptual: Literal["discriminator", "squeeze", "alex", "vgg"] = "discriminator",
        kl_weight: float = 1e-8,
        perceptual_weight: float = 0.5,
        adversarial_weight: float = 0.05,
        adversarial_start: int = 1000,
        learning_rate: float = 1e-4,
        discriminator_learning_rate: float = 1e-4,
        warmup_steps: int = 200,
        discriminator_channels: int = 32,
        refine: Path | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network", "refine"])
        self.automatic_optimization = False
        self.network = Autoencoder(network)
        self.kl_weight, self.perceptual_weight = kl_weight, perceptual_weight
        self.adversarial_weight, self.adversarial_start = adversarial_weight, adversarial_start
        self.learning_rate, self.discriminator_learning_rate = learning_rate, discriminator_learning_rate
        self.warmup_steps = warmup_steps
        self.refines = refine is not None
        if refine is not None:
            self.network.load_state_dict(read_latent_space(refine).autoencoder.state_dict())
            for part in (self.network.encoder, self.network.quant_conv_mu, self.network.quant_conv_log_sigma):
                part.requires_grad_(False)
        dims = network.spatial_dims
        self.discriminator = PatchDiscriminator(dims, discriminator_channels, 1, 1, num_layers_d=3)
        self.adversarial_loss = PatchAdversarialLoss(criterion="least_squares")
        self.lpips = None
        if perceptual != "discriminator":
            self.lpips = PerceptualLoss(dims, network_type=perceptual, is_fake_3d=dims == 3, fake_3d_ratio=0.25)

    def configure_optimizers(self) -> tuple[list, list]:
        optimizers = [
            torch.optim.Adam([p for p in self.network.parameters() if p.requires_grad], lr=self.learning_rate),
            torch.optim.Adam(self.discriminator.parameters(), lr=self.discriminator_learning_rate, betas=(0.5, 0.9)),
        ]
        return optimizers, [warmup(optimizer, self.warmup_steps) for optimizer in optimizers]

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        images = batch["images"]
        optimizer, discriminator_optimizer = self.optimizers()
        reconstruction, losses = self._reconstructed(images)
        total = losses["l1"] + self.kl_weight * losses["kl"]
        adversarial = self.global_step >= self.adversarial_start
        if self.lpips is not None:
            losses["perceptual"] = self.lpips(reconstruction.float(), images)
            total = total + self.perceptual_weight * losses["perceptual"]
        if adversarial:
            total = total + self._adversarial_terms(images, reconstruction, losses)
        self._step(optimizer, total)
        if adversarial:
            losses["discriminator"] = self._discriminator_loss(images, reconstruction.detach())
            self._step(discriminator_optimizer, losses["discriminator"])
        for scheduler, has_stepped in zip(self.lr_schedulers(), (True, adversarial), strict=True):
            if has_stepped:
                scheduler.step()
        self.log_dict({f"train/{name}": value for name, value in losses.items()})

    def _reconstructed(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """D(z) with its likelihood and KL terms; z is drawn, or E's mean where only D learns (as at inference)."""
        mean, sigma = self.network.encode(images)
        z = mean if self.refines else self.network.sampling(mean, sigma)
        reconstruction = self.network.decode(z)
        return reconstruction, {"l1": F.l1_loss(reconstruction.float(), images), "kl": kl_divergence(mean, sigma)}

    def _adversarial_terms(
        self, images: torch.Tensor, reconstruction: torch.Tensor, losses: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        self.discriminator.requires_grad_(False)
        fake = self.discriminator(reconstruction)
        losses["generator"] = self.adversarial_loss(fake[-1].float(), target_is_real=True, for_discriminator=False)
        total = self.adversarial_weight * losses["generator"]
        if self.lpips is None:
            with torch.no_grad():
                real = self.discriminator(images)
            pairs = zip(fake[:-1], real[:-1], strict=True)
            losses["perceptual"] = torch.stack([F.l1_loss(a.float(), b.float()) for a, b in pairs]).mean()
            total = total + self.perceptual_weight * losses["perceptual"]
        self.discriminator.requires_grad_(True)
        return total

    def _discriminator_loss(self, images: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        terms = [
            self.adversarial_loss(self.discriminator(x)[-1].float(), target_is_real=real, for_discriminator=True)
            for x, real in ((images, True), (reconstruction, False))
        ]
        return sum(terms) / 2

    def _step(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        images = batch["images"]
        reconstruction = self.network.reconstruct(images).float()
        error = F.mse_loss(reconstruction, images)
        metrics = {"val/l1": F.l1_loss(reconstruction, images), "val/psnr": 10 * torch.log10(4 / error)}
        metrics["val/sharpness"] = gradient_magnitude(reconstruction) / gradient_magnitude(images)
        self.log_dict(metrics, batch_size=images.shape[0], prog_bar=True, sync_dist=True)
        if index == 0:
            log_pictures(self, [images, reconstruction])


def kl_divergence(mean: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """D_KL(N(mean, sigma) || N(0, 1)) per image, averaged over the batch (Eq. 4)."""
    mean, variance = mean.float(), sigma.float().square()
    return 0.5 * (mean.square() + variance - variance.log() - 1).flatten(1).sum(1).mean()
