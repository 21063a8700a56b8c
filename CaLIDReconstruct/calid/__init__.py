"""CaLID: whole hearts from sparse short-axis MR stacks, by latent interpolation diffusion."""

__version__ = "0.1.0"

STANDING_NOTE = "Generated slices are not acquired data; not for diagnosis."
