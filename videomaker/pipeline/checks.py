"""What the pipeline is called with, refused before the work where it cannot be used: one line, as an `InputError`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import UNetMotionModel

from videomaker.attention import PisaAttnProcessor, is_spatial_self_attention
from videomaker.attention.unet import check_backend
from videomaker.denoising import PREDICTION_TYPES
from videomaker.errors import MAX_COUNT, InputError, check_counts

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_modes(attention_backend: Any, **switches: Any) -> None:
    """Refuses what the pipeline cannot be made with, as a damaged `model_index.json` may say."""
    check_backend(attention_backend)
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} is {value!r}; it must be True or False")


def check_sizes(factor: int, **sizes: Any) -> None:
    """Refuses sides in pixels that the VAE cannot make."""
    for name, value in sizes.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 1 <= value < MAX_COUNT or value % factor:
            raise InputError(f"{name} is {value!r}; it must be a positive multiple of {factor}")


def refused_in_words(check: Callable[..., Any], *arguments: Any) -> None:
    """Runs a check of diffusers, whose refusals are plain ValueErrors of several lines."""
    try:
        check(*arguments)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise InputError(" ".join(str(error).split())) from error


def check_scheduler(scheduler: Any) -> None:
    """Refuses a scheduler of another kind of model, which would fail in its own words or make noise of anything.

    It needs the noise levels of discrete betas, a prediction that the UNet makes, and steps from what a loop has.

    Raises:
        InputError: says what goes.
    """
    levels = getattr(scheduler, "alphas_cumprod", None) is not None and not scheduler.config.get("use_flow_sigmas")
    predicted = scheduler.config.get("prediction_type") in PREDICTION_TYPES
    if not (levels and predicted and _required(scheduler.step) <= {"model_output", "timestep", "sample"}):
        raise InputError(
            f"{type(scheduler).__name__} is not for this model: give one with discrete betas that takes "
            f"{', '.join(PREDICTION_TYPES)}, such as DDIMScheduler or DPMSolverMultistepScheduler"
        )


def _required(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD}


def check_timesteps(scheduler: Any, num_inference_steps: int) -> None:
    """Refuses a number of steps that the scheduler does not make, and one that goes from picture to noise."""
    refused_in_words(scheduler.set_timesteps, num_inference_steps)
    if scheduler.timesteps[0] < scheduler.timesteps[-1]:
        raise InputError(f"{type(scheduler).__name__} adds noise instead of taking it away: give it without Inverse")


def check_prompts(prompt: Any, prompt_embeds: torch.Tensor | None) -> None:
    """Refuses no prompt and what is no text; an empty one asks for nothing in particular, as in diffusers."""
    if prompt is None and prompt_embeds is None:
        raise InputError("give a prompt or prompt_embeds")
    if prompt_embeds is not None:
        check_tensor("prompt_embeds", prompt_embeds, (None, None, None))
    if prompt is None:
        return
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if not prompts:
        raise InputError("the list of prompts is empty; give at least one")
    check_texts("prompt", prompts)


def check_texts(name: str, texts: list[Any]) -> None:
    """Refuses what no tokenizer reads."""
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{name} is a {type(text).__name__}; give a text or a list of texts")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{name} {text[:60]!r} is not UTF-8 text; type it again") from error


def check_negative(text: Any, embeds: Any, num_prompts: int, width: int) -> None:
    """Refuses a negative prompt that cannot be used, also where guidance does not ask for it."""
    texts = text if isinstance(text, list) else [] if text is None else [text]
    check_texts("negative_prompt", texts)
    if isinstance(text, list) and len(texts) != num_prompts:
        raise InputError(f"{len(texts)} negative prompts for {num_prompts} prompts; give one, or one for each")
    if embeds is not None:
        check_tensor("negative_prompt_embeds", embeds, ((1, num_prompts), None, width))


def check_conditioning(pipe: Any, cross_attention_kwargs: Any, callback_inputs: Any, *image: Any) -> None:
    """Refuses conditioning that nothing would hear: a picture for an IP-Adapter that is not there, odd options."""
    options = cross_attention_kwargs
    if options is not None and not (isinstance(options, dict) and all(isinstance(name, str) for name in options)):
        raise InputError(f"cross_attention_kwargs is {options!r}; give a dictionary of options by name")
    if callback_inputs is not None and not isinstance(callback_inputs, (list, tuple)):
        raise InputError(f"callback_on_step_end_tensor_inputs is {callback_inputs!r}; give a list of names")
    if any(one is not None for one in image) and getattr(pipe.unet, "encoder_hid_proj", None) is None:
        raise InputError("ip_adapter_image needs an IP-Adapter; load_ip_adapter() first, or give reference_image alone")


def check_generators(generator: Any, num_videos: int) -> None:
    """Refuses what is no generator, or a list of generators that is not one for each video."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, list) or not all(isinstance(one, torch.Generator) for one in generator):
        raise InputError(f"generator is a {type(generator).__name__}; give a torch.Generator or a list of them")
    if len(generator) != num_videos:
        raise InputError(f"{len(generator)} generators for {num_videos} videos; give one, or one for each video")


def check_output(output_type: Any, decode_chunk_size: Any, callback: Any) -> None:
    """Refuses results in a form that there is not."""
    if output_type not in OUTPUT_TYPES:
        raise InputError(f"output_type is {output_type!r}; choose {', '.join(OUTPUT_TYPES)}")
    if decode_chunk_size is not None:
        check_counts(decode_chunk_size=decode_chunk_size)
    if callback is not None and not callable(callback):
        raise InputError(f"callback_on_step_end is a {type(callback).__name__}; give a function")


def check_tensor(name: str, value: Any, shape: tuple) -> None:
    """Refuses a tensor of another shape, kind or with numbers that are not finite.

    Args:
        name: what messages call it.
        value: the tensor.
        shape: its sizes; a tuple of sizes where several will do, None where all from 1 will, `...` where all will.
    """
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{name} is a {type(value).__name__}; give a tensor")
    allowed = [(size,) if isinstance(size, int) else size for size in shape]
    fits = value.ndim == len(shape) and all(
        a is ... or (n > 0 if a is None else n in a) for n, a in zip(value.shape, allowed, strict=True)
    )
    if not fits:
        names = {None: "1 or more", ...: "0 or more"}
        wanted = [names[a] if a in names else " or ".join(map(str, dict.fromkeys(a))) for a in allowed]
        raise InputError(f"{name} has shape {tuple(value.shape)}; it must be [{', '.join(wanted)}]")
    if not value.is_floating_point():
        raise InputError(f"{name} holds {value.dtype}; give floating numbers")
    if value.layout != torch.strided or value.is_meta:
        kind = "meta" if value.is_meta else value.layout
        raise InputError(f"{name} is a {kind} tensor; give a dense one with numbers")
    if not value.isfinite().all():
        raise InputError(f"{name} holds numbers that are not finite; give others")


def check_components(pipe: Any, needed: Mapping[str, bool]) -> None:
    """Refuses to make videos without a part that they need."""
    for name, wanted in needed.items():
        if wanted and getattr(pipe, name, None) is None:
            raise InputError(f"this pipeline has no {name}; load it with one to make videos")


def check_fit(pipe: Any) -> None:
    """Refuses parts of other sizes than the UNet's, as one that was put in another's place may have."""
    unet = pipe.unet.config
    pairs = {
        "text_encoder": (
            getattr(getattr(pipe.text_encoder, "config", None), "hidden_size", None),
            "cross_attention_dim",
        ),
        "vae": (getattr(getattr(pipe.vae, "config", None), "latent_channels", None), "in_channels"),
    }
    for name, (size, wanted) in pairs.items():
        if size is not None and size != unet[wanted]:
            raise InputError(f"{name} of size {size} does not fit the UNet's {wanted} of {unet[wanted]}: give its own")


def check_processors(unet: UNetMotionModel, *, use_pisa: bool) -> None:
    """Refuses a UNet whose spatial self-attention does not see the reference: the subject would be left out.

    diffusers' own methods (`set_attn_processor`, `fuse_qkv_projections`, …) replace every processor of a UNet.

    Raises:
        InputError: a PISA processor is gone, or is there in spite of `use_pisa=False`.
    """
    spatial = {name: kind for name, kind in unet.attn_processors.items() if is_spatial_self_attention(name)}
    lost = [type(kind).__name__ for kind in spatial.values() if not isinstance(kind, PisaAttnProcessor)]
    if not use_pisa and len(lost) < len(spatial):
        raise InputError(
            "this pipeline was made with use_pisa=False and its UNet has PISA processors, as another pipeline that "
            "shares it needs: load a UNet for each"
        )
    if use_pisa and lost:
        raise InputError(
            f"{len(lost)} of {len(spatial)} spatial self-attentions have lost their PISA processor to {lost[0]}, so "
            "the reference would not be seen: call videomaker.install_pisa(pipe.unet), or use_pisa=False"
        )


def check_compute_dtypes(unet: torch.nn.Module) -> None:
    """Refuses a UNet with weights of several precisions, which no matrix product takes."""
    kinds = {value.dtype for value in unet.parameters() if value.is_floating_point() and value.element_size() > 1}
    if len(kinds) > 1:
        raise InputError(
            f"the UNet has weights of {', '.join(sorted(map(str, kinds)))}: cast it with pipe.unet.to(dtype)"
        )
