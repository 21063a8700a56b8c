"""The denoiser of codes over time: temporal layers on a finished 2D model with a codec, whose own weights stay."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from calid.method.diffusion import EpsTheta, sample
from calid.method.motion import halfway
from calid.method.networks import DenoiserConfig, folded, unfolded
from calid.method.weights import below, config_from, read_tensors

from calid_training.cine_denoiser import cine_figures, joint_noise
from calid_training.code_denoiser import CodeDenoiserStage
from calid_training.denoiser import drawn_times
from calid_training.errors import UsageError
from calid_training.validation import log_slices_between

VALIDATION_STEPS = 2


class CineCodeStage(CodeDenoiserStage):
    """Trains the temporal layers.

    Args:
        base: file of the 2D model to extend, such as `calid-2d.safetensors`.
        alexnet: weights of LPIPS's AlexNet, see `lpips`.
        noise_shares: range of the share of the noise's power that the frames of a clip have in common.
        difference_weight: weight of the error of the prediction's frame-to-frame differences, beside its own error.
        learning_rate, warmup_steps, terminal_share, anneals: see `CodeDenoiserStage`.
    """

    def __init__(
        self,
        base: Path,
        alexnet: Path,
        noise_shares: tuple[float, float] = (0.0, 1.0),
        difference_weight: float = 1.0,
        learning_rate: float = 1e-3,
        warmup_steps: int = 50,
        terminal_share: float = 0.4,
        anneals: bool = True,
    ) -> None:
        state, metadata = read_tensors(base)
        config = json.loads(metadata["config"])
        super().__init__(
            codec=base,
            alexnet=alexnet,
            network=replace(config_from(DenoiserConfig, config["denoiser"]), temporal=True),
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            terminal_share=terminal_share,
            anneals=anneals,
        )
        self.noise_shares, self.difference_weight = tuple(noise_shares), difference_weight
        self.base_sha256 = hashlib.sha256(base.read_bytes()).hexdigest()
        fresh = {f"temporal.{key}": value for key, value in self.network.temporal.state_dict().items()}
        self.network.load_state_dict(below(state, "denoiser.") | fresh)
        self.network.requires_grad_(False)
        self.network.temporal.requires_grad_(True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which 2D model is extended."""
        checkpoint["base_sha256"] = self.base_sha256

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on.

        Raises:
            UsageError: if the run extends another 2D model.
        """
        if checkpoint["base_sha256"] != self.base_sha256:
            raise UsageError("this run extends another 2D model than --model.base; start a new run folder")

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Eq. 5 on the codes of clips, and the same on their frame-to-frame differences."""
        z_0, z_c, _ = self.coded(batch)
        t = drawn_times(self.schedule, len(z_0), terminal_share=self.terminal_share, device=self.device)
        shares = torch.empty(len(z_0), device=self.device).uniform_(*self.noise_shares)
        noise = joint_noise(shares, common=torch.randn_like(z_0[:, :, :1]), own=torch.randn_like(z_0))
        prediction = self.over_time(batch, z_c)(self.schedule.add_noise(z_0, noise, t), t).float()
        target = self.schedule.target(z_0, noise, t)
        error, flicker = F.mse_loss(prediction, target), F.mse_loss(prediction.diff(dim=2), target.diff(dim=2))
        self.log_dict({"train/loss": error, "train/difference": flicker}, batch_size=len(z_0))
        return error + self.difference_weight * flicker

    @torch.no_grad()
    def coded(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Codes and z_c of clips, (N, C, frames, h, w) each, and what D sees of their frames."""
        frames = batch["target"].shape[2]
        sides = (folded(batch[side]) for side in ("before", "after"))
        gap_mm = batch["gap_mm"].repeat_interleave(frames)
        sight = self.codec.see(*halfway(self.motion, *sides), gap_mm)
        z_0 = self.codec.encode(folded(batch["target"]), sight).float()
        z_c = self.network.tau1(sight.features[-1])
        return unfolded(z_0, frames=frames), unfolded(z_c, frames=frames), sight

    def over_time(self, batch: dict[str, torch.Tensor], z_c: torch.Tensor) -> EpsTheta:
        """The network under the condition z_c of clips."""
        return lambda z, t: self.network(z, t, z_c, is_periodic=bool(batch["is_periodic"]))

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        """Log figures of draws over time, of the same frame by frame, and of the true codes."""
        z_0, z_c, sight = self.coded(batch)
        frames, generator = z_0.shape[2], torch.Generator().manual_seed(index)
        common = torch.randn(z_0[:, :, :1].shape, generator=generator).to(self.device).expand_as(z_0)
        made = {}
        for name, model in (
            ("over_time", self.over_time(batch, z_c)),
            ("by_frame", lambda z, t: _frame_by_frame(self.network, z, t, z_c)),
        ):
            *_, code = sample(self.schedule, model, common, steps=VALIDATION_STEPS)
            made[name] = unfolded(self.codec.decode(folded(code), sight).float().clamp(-1, 1), frames=frames)
        made["truth"] = unfolded(self.codec.decode(folded(z_0), sight).float().clamp(-1, 1), frames=frames)
        log_slices_between(self, batch, made, index=index, figures_of=cine_figures)


def _frame_by_frame(network: torch.nn.Module, z: torch.Tensor, t: torch.Tensor, z_c: torch.Tensor) -> torch.Tensor:
    """What a model over time makes of frames that it is shown one at a time."""
    frames = z.shape[2]
    return unfolded(network(folded(z), t.repeat_interleave(frames), folded(z_c)), frames=frames)
