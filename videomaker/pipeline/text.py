"""Prompts made into embeddings."""

import threading
from functools import partial
from inspect import signature
from typing import Any

import torch
from diffusers import AnimateDiffPipeline
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers

from videomaker.errors import InputError

from .checks import check_tensor
from .parts import Parts

ENDS = 2  # tokens of every text: its start and its end

# Pipelines in several threads may share a tokenizer, which keeps the padding and length that its last call asked for
# until it reads them, and a text encoder, which keeps LoRA's scale: each text is encoded from end to end by one thread.
_ENCODING = threading.RLock()


def one_for_each(text: str | list[str] | None, count: int) -> list[str]:
    """A negative prompt for each of `count` prompts, from one or from as many."""
    texts = text if isinstance(text, list) else [text or ""] * count
    if not all(isinstance(one, str) for one in texts):
        raise InputError("negative_prompt must be a text or a list of texts")
    if len(texts) != count:
        raise InputError(f"{len(texts)} negative prompts for {count} prompts; give one, or one for each")
    return texts


class TextMixin(Parts):
    """Encodes every different prompt once and alone, so that its numbers are the same in any batch."""

    def encode_text(
        self,
        prompt: str | list[str] | None,
        num_videos_per_prompt: int = 1,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Text embeddings: `[2B, L, E]` under guidance, the negative prompts first; else `[B, L, E]`.

        Embeddings that are given decide L; a negative prompt in words is encoded to their length, as in diffusers.

        Raises:
            InputError: embeddings that do not fit the model or one another.
        """
        text, negative = prompt_embeds, negative_prompt_embeds
        width = self.unet.config.cross_attention_dim
        if text is None:
            prompts = prompt if isinstance(prompt, list) else [prompt or ""]
            text = self._encode_prompts(prompts, self.clip_skip)
        else:
            check_tensor("prompt_embeds", text, (None, None, width))
        halves = [text]
        if self.do_classifier_free_guidance:
            if negative is None:
                negative = self._encode_negatives(one_for_each(negative_prompt, len(text)), text.shape[1])
            else:
                check_tensor("negative_prompt_embeds", negative, ((1, len(text)), text.shape[1], width))
            halves = [negative.expand(len(text), -1, -1), text]
        embeds = [half.to(self._execution_device, self.unet.dtype) for half in halves]
        return torch.cat([half.repeat_interleave(num_videos_per_prompt, dim=0) for half in embeds])

    def _encode_negatives(self, negatives: list[str], length: int) -> torch.Tensor:
        limit = self.tokenizer.model_max_length
        if length == limit:
            return self._encode_prompts(negatives, clip_skip=None)
        if not ENDS <= length < limit:
            raise InputError(
                f"prompt_embeds have {length} tokens and a negative prompt is encoded to {ENDS} to {limit}: give "
                f"negative_prompt_embeds of {length} tokens as well"
            )
        return self._encode_each(negatives, lambda text: self._last_hidden(text, length, None))

    def encode_prompt(self, prompt: Any, *args: Any, clip_skip: int | None = None, **kwargs: Any) -> Any:
        """As in diffusers, whose `clip_skip` fails with transformers 5: layers are skipped here.

        Raises:
            InputError: there are not so many layers to skip.
        """
        if clip_skip is not None and kwargs.get("prompt_embeds") is None:
            texts = prompt if isinstance(prompt, list) else [prompt]
            embeds = torch.cat([self._last_hidden(text, self.tokenizer.model_max_length, clip_skip) for text in texts])
            prompt, kwargs = None, {**kwargs, "prompt_embeds": embeds}
        with _ENCODING:
            prompt_embeds, negative_prompt_embeds = super().encode_prompt(prompt, *args, **kwargs)
        return prompt_embeds, negative_prompt_embeds  # diffusers' own tests read these names in the source

    def _encode_prompts(self, prompts: list[str], clip_skip: int | None) -> torch.Tensor:
        """Embeddings `[B, L, E]`."""
        encode = partial(
            self.encode_prompt,
            device=self._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            lora_scale=(self.cross_attention_kwargs or {}).get("scale"),
            clip_skip=clip_skip,
        )
        if clip_skip is None:
            return self._encode_each(prompts, lambda text: encode(text)[0])
        # Skipping layers asks the text encoder for other outputs, which is not what was compiled.
        with torch.compiler.set_stance("force_eager"):
            return self._encode_each(prompts, lambda text: encode(text)[0])

    @staticmethod
    def _encode_each(prompts: list[str], encode: Any) -> torch.Tensor:
        embeds = {text: encode(text) for text in dict.fromkeys(prompts)}
        return torch.cat([embeds[text] for text in prompts])

    def _last_hidden(self, text: str, length: int, clip_skip: int | None) -> torch.Tensor:
        """`[1, length, E]` after the text encoder's last norm, of the layer before the `clip_skip` last ones."""
        layers = self.text_encoder.config.num_hidden_layers
        if clip_skip is not None and (isinstance(clip_skip, bool) or clip_skip not in range(layers)):
            raise InputError(f"clip_skip is {clip_skip!r}; this text encoder has 0 to {layers - 1} layers to skip")
        with _ENCODING:
            output = self._encoded(self.maybe_convert_prompt(text, self.tokenizer), length, clip_skip is not None)
        if clip_skip is None:
            return output[0]
        model: Any = getattr(self.text_encoder, "text_model", self.text_encoder)
        return model.final_layer_norm(output.hidden_states[-(clip_skip + 1)])

    def _encoded(self, text: str, length: int, every_layer: bool) -> Any:
        """What the text encoder says of `length` tokens, LoRA scaled as the call asks."""
        tokens = self.tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        masked = getattr(self.text_encoder.config, "use_attention_mask", None)
        device = self._execution_device
        scale = (getattr(self, "_cross_attention_kwargs", None) or {}).get("scale")
        scaled = scale is not None and USE_PEFT_BACKEND
        if scaled:
            scale_lora_layers(self.text_encoder, scale)
        try:
            return self.text_encoder(
                tokens.input_ids.to(device),
                attention_mask=tokens.attention_mask.to(device) if masked else None,
                output_hidden_states=every_layer,
            )
        finally:
            if scaled:
                unscale_lora_layers(self.text_encoder, scale)


# diffusers' own tests, and programs that fill arguments in by name, read it from there.
TextMixin.encode_prompt.__signature__ = signature(AnimateDiffPipeline.encode_prompt)  # type: ignore[attr-defined]
