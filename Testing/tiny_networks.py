"""Networks of the real kind that cost nothing."""

from __future__ import annotations

from calid.heart.medformer import MedFormerConfig

TINY_MEDFORMER = MedFormerConfig(
    stem_width=4,
    widths=(4, 8, 8, 8, 8, 8, 4, 4),
    conv_blocks=(1, 0, 0, 0, 0, 0, 1, 1),
    attention_blocks=(0, 1, 1, 1, 1, 1, 0, 0),
    heads=(1, 2, 2, 2, 2, 2, 1, 1),
    fusion_width=8,
    fusion_heads=2,
    fusion_depth=1,
)
