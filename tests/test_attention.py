"""videomaker.attention's processors for other models, each against the usual repeated form of the same model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import adopters
import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from torch import Tensor

from videomaker import (
    InputError,
    ReferenceBank,
    SharedStyle,
    install_attention,
    install_pisa,
    install_reference_attention,
    install_style_aligned,
)
from videomaker.attention import is_spatial_self_attention

F, SIZE = 3, 8
LOW = [torch.bfloat16, torch.float16]


def tiny_sdxl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=tiny.TEXT_WIDTH,
        attention_head_dim=(1, 2),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )


def denoise(unet: torch.nn.Module, x: Tensor, **keywords: Any) -> Tensor:
    """One call of any UNet here: latents `[rows, C, h, w]`, or of `[B, C, F, h, w]` of a UNetMotionModel."""
    videos = len(x)
    text_rows = videos * x.shape[2] if x.ndim == 5 else videos
    text = torch.linspace(-1, 1, text_rows * 4 * tiny.TEXT_WIDTH, dtype=x.dtype).view(text_rows, 4, -1)
    extra = {"text_embeds": torch.ones(videos, 8, dtype=x.dtype), "time_ids": torch.ones(videos, 6, dtype=x.dtype)}
    if unet.config.get("addition_embed_type") == "text_time":
        keywords["added_cond_kwargs"] = extra
    return unet(x, 5, text, cross_attention_kwargs=keywords.pop("carried", None), **keywords).sample


def latents(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, 4, SIZE, SIZE).to(dtype)


def put_usual(unet: torch.nn.Module, make: Callable[[str], Any]) -> None:
    for name, module in unet.named_modules():
        if name.endswith("attn1") and is_spatial_self_attention(name):
            module.set_processor(make(name))


def losses(run: Callable[[], Tensor], parameters: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of a loss that feels every value of it."""
    out = run()
    weights = torch.arange(out.numel(), dtype=torch.float64).sin().view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), parameters)]


def assert_equal(found: list[Tensor], usual: list[Tensor], tolerance: float) -> None:
    for x, y in zip(found, usual, strict=True):
        assert torch.linalg.vector_norm(x - y) <= tolerance * torch.linalg.vector_norm(y) + 1e-30


def assert_as_exact(found: list[Tensor], usual: list[Tensor], exact: list[Tensor]) -> None:
    """No more than twice as far from float64 as the usual form in the same dtype."""
    for x, y, z in zip(found, usual, exact, strict=True):
        assert torch.linalg.vector_norm(x.double() - z) <= 2 * torch.linalg.vector_norm(y.double() - z)


class TestReferenceNet:
    """Two UNets: the ReferenceNet writes the bank, the denoising one reads it."""

    @pytest.fixture
    def nets(self) -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
        pair = tiny.tiny_unet2d(), tiny.tiny_unet2d()
        for unet in pair:
            install_reference_attention(unet)
        return pair

    def run(self, nets, rows: Tensor, reference: Tensor, *, num_references: int = 1, **options: Any) -> Tensor:
        bank, (referencenet, unet) = ReferenceBank(), nets
        denoise(referencenet, reference, carried=bank.write(num_references=num_references))
        return denoise(unet, rows, carried=bank.read(num_frames=F, **options))

    def parameters(self, nets) -> list[Tensor]:
        """Weights on both sides of the bank."""
        return [unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_k.weight for unet in nets]

    def losses(self, nets, dtype: torch.dtype, num_references: int = 1) -> list[Tensor]:
        """Two videos with guidance, the half without the reference first; rows that every dtype here can hold."""
        use = torch.tensor([False, False, True, True])
        options: dict[str, Any] = {"num_references": num_references, "use_reference": use}
        rows, reference = (torch.linspace(-2, 2, n * 4 * SIZE**2).sin().view(n, 4, SIZE, SIZE).bfloat16().to(dtype)
                           for n in (4 * F, 2 * num_references))  # fmt: skip
        for unet in nets:
            unet.to(dtype)
        return losses(lambda: self.run(nets, rows, reference, **options), self.parameters(nets))

    @pytest.mark.parametrize("num_references", [1, 2])
    def test_is_the_usual_repeated_form(self, nets, num_references: int) -> None:
        found = self.losses(nets, torch.float64, num_references)
        put_usual(nets[1], adopters.UsualBankProcessor)
        assert_equal(found, self.losses(nets, torch.float64, num_references), 1e-12)

    @pytest.mark.parametrize("dtype", LOW, ids=str)
    def test_is_as_exact_in_low_precision(self, nets, dtype: torch.dtype) -> None:
        for unet in nets:
            unet.bfloat16()  # whose weights both dtypes hold, nearly
        found = self.losses(nets, dtype)
        put_usual(nets[1], adopters.UsualBankProcessor)
        assert_as_exact(found, self.losses(nets, dtype), self.losses(nets, torch.float64))

    def test_gradient_checkpointing_and_training_mode(self, nets) -> None:
        rows, reference = latents(2 * F), latents(2)
        plain = losses(lambda: self.run(nets, rows, reference), self.parameters(nets))
        for unet in nets:
            unet.train()
            unet.enable_gradient_checkpointing()
        assert_equal(losses(lambda: self.run(nets, rows, reference), self.parameters(nets)), plain, 1e-6)

    def test_compiles_without_a_graph_break(self, nets) -> None:
        rows, reference, use = latents(2 * F), latents(2), torch.tensor([False, True])
        plain = losses(lambda: self.run(nets, rows, reference, use_reference=use), self.parameters(nets))

        def step(rows: Tensor, reference: Tensor, use: Tensor) -> Tensor:
            return self.run(nets, rows, reference, use_reference=use)

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert_equal(losses(lambda: compiled(rows, reference, use), self.parameters(nets)), plain, 1e-5)

    def test_a_projected_bank_gives_the_same(self, nets) -> None:
        referencenet, unet = nets
        bank, rows = ReferenceBank(), latents(2 * F)
        with torch.no_grad():
            denoise(referencenet, latents(1), carried=bank.write())
            once = bank.project(unet)
            plain, found = (denoise(unet, rows, carried=each.read(num_frames=F)) for each in (bank, once))
        assert set(once.states) == set(bank.states)
        torch.testing.assert_close(found, plain)

    def test_midup_leaves_the_down_blocks_alone(self, nets) -> None:
        reading = install_reference_attention(nets[1], blocks="midup")
        assert reading and not any(name.startswith("down_blocks") for name in reading)
        bank, rows = ReferenceBank(), latents(F)
        denoise(nets[0], latents(1), carried=bank.write())
        found = denoise(nets[1], rows, carried=bank.read(num_frames=F))
        put_usual(nets[1], lambda name: adopters.UsualBankProcessor(name))
        for name, module in nets[1].named_modules():
            if name.endswith("attn1") and name not in reading:
                module.set_processor(adopters.UsualPlainProcessor())
        torch.testing.assert_close(found, denoise(nets[1], rows, carried=bank.read(num_frames=F)), atol=1e-5, rtol=1e-4)

    def test_a_motion_model_reads_the_bank_of_a_picture_model(self, nets) -> None:
        unet, bank = tiny.tiny_unet(), ReferenceBank()
        install_reference_attention(unet)
        denoise(nets[0], latents(1), carried=bank.write())
        video = latents(2 * F).unflatten(0, (2, F)).transpose(1, 2)
        found = denoise(unet, video, carried=bank.read(num_frames=F))
        put_usual(unet, adopters.UsualBankProcessor)
        torch.testing.assert_close(found, denoise(unet, video, carried=bank.read(num_frames=F)), atol=1e-5, rtol=1e-4)

    def test_what_does_not_fit_is_named(self, nets) -> None:
        referencenet, unet = nets
        bank, rows = ReferenceBank(), latents(2 * F)
        with pytest.raises(InputError, match="the bank is empty"):
            bank.read(num_frames=F)
        denoise(referencenet, latents(2), carried=bank.write())
        with pytest.raises(InputError, match="num_frames must divide the 6 rows"):
            denoise(unet, rows, carried=bank.read(num_frames=4))
        with pytest.raises(InputError, match="the bank is of 2 videos and the UNet's batch of 3"):
            denoise(unet, latents(3 * F), carried=bank.read(num_frames=F))
        with pytest.raises(InputError, match="the bank has nothing for down_blocks"):
            denoise(unet, rows, carried=ReferenceBank({"other": rows}).read(num_frames=F))
        with pytest.raises(InputError, match="num_references must divide the 3 rows"):
            denoise(referencenet, latents(3), carried=bank.write(num_references=2))
        with pytest.raises(InputError, match="blocks must be"):
            install_reference_attention(unet, blocks="down")

    def test_a_replaced_processor_does_not_lose_the_reference(self, nets) -> None:
        bank, rows = ReferenceBank(), latents(F)
        denoise(nets[0], latents(1), carried=bank.write())
        nets[1].fuse_qkv_projections()
        with pytest.raises(InputError, match="install it again after fuse_qkv_projections"):
            denoise(nets[1], rows, carried=bank.read(num_frames=F))
        denoise(nets[1], rows)  # without a reference there is none to lose


class TestStyleAligned:
    def losses(self, unet: UNet2DConditionModel, dtype: torch.dtype) -> list[Tensor]:
        """Two halves of three images; rows that every dtype here can hold."""
        rows = torch.linspace(-2, 2, 6 * 4 * SIZE**2).sin().view(6, 4, SIZE, SIZE).bfloat16().to(dtype)
        weights = [p for name, p in unet.to(dtype).named_parameters() if name.endswith("attn1.to_k.weight")]
        return losses(lambda: denoise(unet, rows, carried=SharedStyle(num_images=3).as_kwargs()), weights)

    @pytest.mark.parametrize("shift", [0.0, math.log(2)])
    def test_is_the_usual_repeated_form(self, shift: float) -> None:
        unet = tiny_sdxl()
        install_style_aligned(unet, score_shift=shift)
        found = self.losses(unet, torch.float64)
        put_usual(unet, lambda name: adopters.UsualStyleProcessor(shift))
        assert_equal(found, self.losses(unet, torch.float64), 1e-12)

    @pytest.mark.parametrize("dtype", LOW, ids=str)
    def test_is_as_exact_in_low_precision(self, dtype: torch.dtype) -> None:
        unet = tiny_sdxl().bfloat16()
        install_style_aligned(unet)
        found = self.losses(unet, dtype)
        put_usual(unet, lambda name: adopters.UsualStyleProcessor())
        assert_as_exact(found, self.losses(unet, dtype), self.losses(unet, torch.float64))

    def test_the_first_image_is_as_it_would_be_alone(self) -> None:
        unet, rows = tiny_sdxl(), latents(3)
        install_style_aligned(unet, score_shift=1.0)
        alone = denoise(unet, rows)
        together = denoise(unet, rows, carried=SharedStyle(num_images=3).as_kwargs())
        torch.testing.assert_close(together[0], alone[0], atol=1e-4, rtol=1e-3)
        assert not torch.allclose(together[1], alone[1], atol=1e-2)

    def test_gradient_checkpointing_and_training_mode(self) -> None:
        unet, rows, style = tiny_sdxl(), latents(4), SharedStyle(num_images=2).as_kwargs()
        install_style_aligned(unet, score_shift=0.5)
        weights = [unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_k.weight]
        plain = losses(lambda: denoise(unet, rows, carried=style), weights)
        unet.train()
        unet.enable_gradient_checkpointing()
        assert_equal(losses(lambda: denoise(unet, rows, carried=style), weights), plain, 1e-6)

    def test_a_layer_compiles_without_a_graph_break(self) -> None:
        unet, x = tiny_sdxl(), torch.randn(4, 9, 32)
        install_style_aligned(unet, score_shift=0.5)
        attn = unet.mid_block.attentions[0].transformer_blocks[0].attn1

        def attend(x: Tensor) -> Tensor:
            return attn(x, **SharedStyle(num_images=2).as_kwargs())

        compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
        weights = [attn.to_k.weight]
        assert_equal(losses(lambda: compiled(x), weights), losses(lambda: attend(x), weights), 1e-5)

    def test_rows_that_do_not_divide(self) -> None:
        unet = tiny_sdxl()
        install_style_aligned(unet)
        with pytest.raises(InputError, match="num_images must divide the 4 rows"):
            denoise(unet, latents(4), carried=SharedStyle(num_images=3).as_kwargs())


class TestPlain:
    @pytest.mark.parametrize("make", [tiny.tiny_unet2d, tiny.tiny_unet, tiny_sdxl], ids=["sd15", "animatediff", "sdxl"])
    def test_is_what_diffusers_computes(self, make: Callable[[], torch.nn.Module]) -> None:
        unet = make()
        x = latents(2 * F)
        x = x.unflatten(0, (2, F)).transpose(1, 2) if isinstance(unet, UNetMotionModel) else x
        weights = [p for name, p in unet.named_parameters() if is_spatial_self_attention(name)]
        usual = losses(lambda: denoise(unet, x), weights)
        installed = install_attention(unet)
        assert installed and all(is_spatial_self_attention(name) for name in installed)
        assert_equal(losses(lambda: denoise(unet, x), weights), usual, 2e-5)

    @pytest.mark.parametrize("shift", [math.nan, math.inf, "0.5", True])
    def test_a_shift_that_is_no_number_is_refused_at_once(self, shift: Any) -> None:
        with pytest.raises(InputError, match="score_shift is"):
            install_style_aligned(tiny_sdxl(), score_shift=shift)
        with pytest.raises(InputError, match="bias is"):
            ReferenceBank({"a": torch.zeros(1, 2, 3)}).read(num_frames=1, bias=shift)

    def test_what_is_no_such_unet_is_refused(self) -> None:
        with pytest.raises(InputError, match="no spatial self-attention"):
            install_attention(tiny.tiny_vae())
        for install in (install_attention, install_pisa, install_reference_attention, install_style_aligned):
            with pytest.raises(InputError, match="unet is a NoneType: give a UNet"):
                install(None)

    def test_pisa_goes_in_its_place_and_back(self) -> None:
        unet = tiny.tiny_unet()
        x = latents(F).unsqueeze(0).transpose(1, 2)
        before = denoise(unet, x)
        install_pisa(unet)
        install_attention(unet)
        torch.testing.assert_close(denoise(unet, x), before, atol=1e-5, rtol=1e-4)
