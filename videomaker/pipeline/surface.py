"""diffusers' methods that would take the reference out of the video: here they work, or are refused in words."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from videomaker.attention import (
    PisaAttnProcessor,
    drop_layout,
    fuse_pisa_projections,
    install_pisa,
    is_spatial_self_attention,
    leaves_reference_out,
)
from videomaker.errors import InputError

from .parts import Parts


class SurfaceMixin(Parts):
    """What diffusers does to the processors of a whole UNet, done around PISA's."""

    def _install_pisa(self) -> None:
        if self.unet is None:
            return
        self._unet_seen = weakref.ref(self.unet)
        if not self.config.use_pisa:
            drop_layout(self.unet)
        else:
            install_pisa(
                self.unet,
                backend=self.config.attention_backend,
                reference_cross_attention=self.config.reference_cross_attention,
            )

    def _adopt_unet(self) -> None:
        """Gives a UNet that was put in another's place its PISA processors, as the constructor does.

        So does one that another pipeline shares, which was made with another `reference_cross_attention`.
        One that has any of its own is left to `checks.check_processors`.
        """
        processors = self.unet.attn_processors
        frames_only = any(map(leaves_reference_out, processors.values()))
        if self._unet_seen() is self.unet and frames_only != self.config.reference_cross_attention:
            return
        kinds = {type(kind) for name, kind in processors.items() if is_spatial_self_attention(name)}
        if kinds <= {AttnProcessor, AttnProcessor2_0, PisaAttnProcessor}:
            self._install_pisa()

    @contextmanager
    def _default_processors(self) -> Iterator[None]:
        """For diffusers' code that makes every processor anew from its class, without arguments."""
        self.unet.set_attn_processor(AttnProcessor2_0())
        try:
            yield
        finally:
            self._install_pisa()

    def load_ip_adapter(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; the PISA layers stay as they are."""
        if not self.config.reference_cross_attention:
            raise InputError("an IP-Adapter needs reference_cross_attention=True, this pipeline was made with False")
        with self._default_processors():
            super().load_ip_adapter(*args, **kwargs)

    def unload_ip_adapter(self) -> None:
        """As in diffusers; the PISA layers stay as they are."""
        with self._default_processors():
            super().unload_ip_adapter()

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """One matrix product for query, key and value: of the PISA layers in the UNet, as in diffusers in the VAE."""
        self.fusing_unet, self.fusing_vae = unet, vae
        if unet:
            fuse_pisa_projections(self.unet)
        if vae:
            self.vae.fuse_qkv_projections()

    def unfuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Undoes `fuse_qkv_projections`."""
        if unet:
            fuse_pisa_projections(self.unet, False)
        if vae and getattr(self, "fusing_vae", False):
            self.vae.unfuse_qkv_projections()
        self.fusing_unet, self.fusing_vae = False, False

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Any = None) -> None:
        """xformers for every attention but PISA's, which never holds the attention matrix anyway; and back."""
        try:
            super().set_use_memory_efficient_attention_xformers(valid, attention_op)
        finally:
            self._install_pisa()

    def set_attention_slice(self, slice_size: str | int | None) -> None:
        """Slices the attention of every part that offers it but the UNet, whose PISA layers need no slices."""
        for name, part in self.components.items():
            if name != "unet" and hasattr(part, "set_attention_slice"):
                part.set_attention_slice(slice_size)

    def enable_free_noise(self, *args: Any, **kwargs: Any) -> None:
        """Not available: its windows inside the motion modules leave the reference out; see `pipeline.windows`."""
        raise NotImplementedError(
            "FreeNoise does not go with a reference frame: ask for the frames that you want, such as num_frames=64; "
            "they are made in overlapping windows that all see the reference (window_frames, window_overlap)"
        )

    def enable_free_noise_split_inference(self, *args: Any, **kwargs: Any) -> None:
        """Not available, as `enable_free_noise`."""
        self.enable_free_noise()
