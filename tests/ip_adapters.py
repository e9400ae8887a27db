"""Random weights of an IP-Adapter in the published layout."""

from __future__ import annotations

import torch


def ip_adapter_state(unet) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights in the published layout of an IP-Adapter with 4 image tokens from an embedding of width 8."""
    rng, text_width = torch.Generator().manual_seed(7), unet.config.cross_attention_dim
    projection = {
        "proj.weight": torch.randn(4 * text_width, 8, generator=rng),
        "proj.bias": torch.zeros(4 * text_width),
        "norm.weight": torch.ones(text_width),
        "norm.bias": torch.zeros(text_width),
    }
    keys, index = {}, 1
    for name, module in unet.named_modules():
        if name.endswith("attn2") and "motion" not in name:
            for part in ("to_k_ip", "to_v_ip"):
                keys[f"{index}.{part}.weight"] = torch.randn(module.inner_dim, text_width, generator=rng)
            index += 2
    return {"image_proj": projection, "ip_adapter": keys}
