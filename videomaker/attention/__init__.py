"""The spatial self-attention of diffusers' UNets, by this project's kernels.

`pisa` is the method's own; `plain`, `reference_net` and `style_aligned` bring the kernels to other models.
"""

from .pisa import (
    EACH_ROW_ALONE,
    FramesOnlyCrossAttnProcessor,
    PisaAttnProcessor,
    ReferenceLayout,
    drop_layout,
    fuse_pisa_projections,
    fused_projections,
    install_pisa,
    leaves_reference_out,
    set_pisa_backend,
    trainable_names,
)
from .plain import PlainAttnProcessor, install_attention
from .reference_net import ReferenceAttnProcessor, ReferenceBank, install_reference_attention
from .style_aligned import SharedStyle, StyleAlignedAttnProcessor, install_style_aligned
from .unet import is_spatial_self_attention

__all__ = [
    "EACH_ROW_ALONE",
    "FramesOnlyCrossAttnProcessor",
    "PisaAttnProcessor",
    "PlainAttnProcessor",
    "ReferenceAttnProcessor",
    "ReferenceBank",
    "ReferenceLayout",
    "SharedStyle",
    "StyleAlignedAttnProcessor",
    "drop_layout",
    "fuse_pisa_projections",
    "fused_projections",
    "install_attention",
    "install_pisa",
    "install_reference_attention",
    "install_style_aligned",
    "is_spatial_self_attention",
    "leaves_reference_out",
    "set_pisa_backend",
    "trainable_names",
]
