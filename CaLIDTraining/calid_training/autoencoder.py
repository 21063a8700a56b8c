"""Stage one: E and D (paper, Eq. 4 and "Implementation Details"): likelihood + KL + perceptual + PatchGAN."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import lightning as L
import torch
import torch.nn.functional as F
from calid.method.networks import Autoencoder, AutoencoderConfig, folded
from calid.method.weights import read_latent_space
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import PatchDiscriminator
from torch.optim.lr_scheduler import LRScheduler

from calid_training.lpips import lpips_network
from calid_training.rates import warmup
from calid_training.validation import log_pictures, mean_gradient

LPIPS_FRAME_STEP = 4


class AutoencoderStage(L.LightningModule):
    """Trains E and D against a PatchGAN.

    Args:
        network: widths of E and D.
        perceptual: "discriminator" compares the discriminator's own feature maps (no downloaded weights); "alex" is
            LPIPS as in the paper, from a file on this machine (see `calid_training.lpips`).
        alexnet: file of AlexNet's weights; None takes the one in CALID_ALEXNET.
        kl_weight: weight of the KL divergence summed over a latent, beside the L1 likelihood averaged over pixels; 1e-6
            already drowns the latents in noise.
        perceptual_weight, adversarial_weight: weights of the other terms.
        adversarial_start: training step from which the discriminator takes part.
        learning_rate, discriminator_learning_rate: learning rates of the two Adam optimizers.
        warmup_steps: steps over which both rise linearly.
        discriminator_channels: width of the PatchGAN.
        accumulate: batches whose gradients make one step, where a batch does not fit the device.
        gradient_clip: largest norm of the gradients, or None.
        refine: file written by `calid-train export autoencoder`, whose D alone is trained further. E stays, and with
            it the latents that a denoiser was trained on: sharpening D needs no new denoiser.
    """

    def __init__(
        self,
        network: AutoencoderConfig = AutoencoderConfig(),
        perceptual: Literal["discriminator", "alex"] = "discriminator",
        alexnet: Path | None = None,
        kl_weight: float = 1e-8,
        perceptual_weight: float = 0.5,
        adversarial_weight: float = 0.05,
        adversarial_start: int = 1000,
        learning_rate: float = 1e-4,
        discriminator_learning_rate: float = 1e-4,
        warmup_steps: int = 200,
        discriminator_channels: int = 32,
        accumulate: int = 1,
        gradient_clip: float | None = 1.0,
        refine: Path | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network", "alexnet", "refine"])
        self.automatic_optimization = False
        self.network = Autoencoder(network)
        self.kl_weight, self.perceptual_weight = kl_weight, perceptual_weight
        self.adversarial_weight, self.adversarial_start = adversarial_weight, adversarial_start
        self.learning_rate, self.discriminator_learning_rate = learning_rate, discriminator_learning_rate
        self.warmup_steps, self.accumulate, self.gradient_clip = warmup_steps, accumulate, gradient_clip
        self.refines = refine is not None
        if refine is not None:
            self.network.load_state_dict(read_latent_space(refine).autoencoder.state_dict())
            for part in (self.network.encoder, self.network.quant_conv_mu, self.network.quant_conv_log_sigma):
                part.requires_grad_(False)
        dims = network.spatial_dims
        self.discriminator = PatchDiscriminator(dims, discriminator_channels, 1, 1, num_layers_d=3)
        self.adversarial_loss = PatchAdversarialLoss(criterion="least_squares")
        self.steps_done = 0
        # Frozen, and none of this module's weights: a checkpoint need not hold it.
        self._lpips = None if perceptual == "discriminator" else (lpips_network(alexnet),)

    def on_fit_start(self) -> None:
        """Bring LPIPS, which is no part of this module, to its device."""
        if self._lpips is not None:
            self._lpips[0].to(self.device)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep the number of steps: Lightning counts those of both optimizers."""
        checkpoint["steps_done"] = self.steps_done

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Go on from that number."""
        self.steps_done = checkpoint.get("steps_done", checkpoint["global_step"])

    def configure_optimizers(self) -> tuple[list, list]:
        """Adam of E and D, and Adam of the discriminator, each with a warm-up."""
        optimizers = [
            torch.optim.Adam([p for p in self.network.parameters() if p.requires_grad], lr=self.learning_rate),
            torch.optim.Adam(self.discriminator.parameters(), lr=self.discriminator_learning_rate, betas=(0.5, 0.9)),
        ]
        return optimizers, [warmup(optimizer, self.warmup_steps) for optimizer in optimizers]

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        """A share of a step of E and D and, once it takes part, of the discriminator; see `accumulate`."""
        images = batch["images"]
        ends_step = (index + 1) % self.accumulate == 0 or index + 1 == self.trainer.num_training_batches
        optimizer, discriminator_optimizer = cast(list[torch.optim.Optimizer], self.optimizers())
        reconstruction, losses = self._reconstructed(images)
        total = losses["l1"] + self.kl_weight * losses["kl"]
        adversarial = self.steps_done >= self.adversarial_start
        if self._lpips is not None:
            losses["perceptual"] = self._perceptual(reconstruction, images)
            total = total + self.perceptual_weight * losses["perceptual"]
        if adversarial:
            total = total + self._adversarial_terms(images, reconstruction, losses)
        self._learn(optimizer, total, ends_step)
        if adversarial:
            losses["discriminator"] = self._discriminator_loss(images, reconstruction.detach())
            self._learn(discriminator_optimizer, losses["discriminator"], ends_step)
        if ends_step:
            self.steps_done += 1
            for scheduler, has_stepped in zip(
                cast(list[LRScheduler], self.lr_schedulers()), (True, adversarial), strict=True
            ):
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
        if self._lpips is None:
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

    def _perceptual(self, reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """LPIPS of slices; of clips that of every fourth frame, beginning with a drawn one."""
        if self._lpips is None:
            raise ValueError("the discriminator's features take the place of LPIPS")
        network, pair = self._lpips[0], [(x.float() + 1) / 2 for x in (images, reconstruction)]
        if images.ndim == 5:
            first = int(torch.randint(LPIPS_FRAME_STEP, ()))
            pair = [folded(x[:, :, first::LPIPS_FRAME_STEP]) for x in pair]
        with torch.autocast(self.device.type, enabled=False):
            return network(*pair).mean()

    def _learn(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor, ends_step: bool) -> None:
        """Add the loss's gradients to those that wait and, at the end of a step, learn from their mean."""
        self.manual_backward(loss / self.accumulate)
        if not ends_step:
            return
        if self.gradient_clip is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.gradient_clip, gradient_clip_algorithm="norm")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        """Log how well E and D make slices of themselves and, of the first batch, pictures."""
        images = batch["images"]
        reconstruction = self.network.reconstruct(images).float()
        error = F.mse_loss(reconstruction, images)
        metrics = {"val/l1": F.l1_loss(reconstruction, images), "val/psnr": 10 * torch.log10(4 / error)}
        metrics["val/sharpness"] = mean_gradient(reconstruction) / mean_gradient(images)
        self.log_dict(metrics, batch_size=images.shape[0], prog_bar=True, sync_dist=True)
        if index == 0:
            log_pictures(self, [images, reconstruction])


def kl_divergence(mean: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """D_KL(N(mean, sigma) || N(0, 1)) per image, averaged over the batch (Eq. 4)."""
    mean, variance = mean.float(), sigma.float().square()
    return 0.5 * (mean.square() + variance - variance.log() - 1).flatten(1).sum(1).mean()
