"""Encoder-decoders: predictions after a source and the decoder's tokens so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx.decoding import check_characters
from captum_lrpx.models import find_model
from captum_lrpx.onlookers import hooked
from captum_lrpx.targets.head import ModelForward, last_token, output_of
from captum_lrpx.targets.inputs import of_row

if TYPE_CHECKING:
    from torch import Tensor, nn

    from captum_lrpx.targets.inputs import TokenIds


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a model, or one inside of a module, predicts the tokens of a decoder."""
    config: Any = getattr(find_model(model), "config", None)
    classifies = type(find_model(model)).__name__.endswith(("Classification", "QuestionAnswering"))
    return bool(getattr(config, "is_encoder_decoder", False)) and not classifies


class DecoderLogits(ModelForward):
    """Logits of an encoder-decoder after its tokens so far: ``target`` is a token id.

    Source and decoder tokens are both inputs, so relevance is attributed to both::

        forward = DecoderLogits(model)
        of_source, of_written = LRPx(forward).attribute((source_ids, decoder_ids), target=token)

    Args:
        model: An encoder-decoder with a head, or a module around one.

    Raises:
        ValueError: If the model has no decoder.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        if not is_encoder_decoder(model):
            raise ValueError(
                f"{type(find_model(model)).__name__} is no encoder-decoder that predicts tokens: "
                "explain TokenLogits(model), or ClassLogits(model), with a single input."
            )

    def forward(
        self,
        source: Tensor,
        written: Tensor,
        source_mask: Tensor | None = None,
        written_mask: Tensor | None = None,
        position: int | Tensor | None = None,
    ) -> Tensor:
        """Compute logits of the next token.

        Args:
            source: Input of the encoder: token ids ``[B, S]``, embeddings ``[B, S, D]``, or, for
                a model of speech or images, features.
            written: Token ids ``[B, T]`` of the decoder so far, start token included, or
                their embeddings ``[B, T, D]``.
            source_mask: ``[B, S]``, padding on either side.
            written_mask: ``[B, T]``, likewise.
            position: Index of the decoder's token, or one per row ``[B]``. Default: the last real
                token of each row.

        Returns:
            ``[B, V]``.

        Raises:
            AssertionError: If the numbers of rows differ.
            ValueError: If ``written_mask`` has a row without a real token.
            IndexError: If a position is out of range.
        """
        rows, length = written.shape[:2]
        if len(source) != rows:
            raise AssertionError(
                f"The source has {len(source)} rows and the decoder's tokens {rows}: give one of "
                "each for every example."
            )
        main: str = find_model(self.model).main_input_name  # type: ignore[assignment]
        kinds = {True: "inputs_embeds", False: "input_ids"}
        reads_text = main == "input_ids"
        keywords: dict[str, Any] = {
            kinds[source.is_floating_point()] if reads_text else main: source,
            f"decoder_{kinds[written.is_floating_point()]}": written,
            "use_cache": False,
        }
        if source_mask is not None:
            keywords["attention_mask"] = source_mask
        if written_mask is not None:
            keywords["decoder_attention_mask"] = written_mask
        logits = output_of(self.model(**keywords), "logits")
        at = _places(position, written_mask, rows, length).to(logits.device)
        return logits[torch.arange(rows, device=logits.device), at]


def _places(position: int | Tensor | None, mask: Tensor | None, rows: int, length: int) -> Tensor:
    """One position per row ``[B]``."""
    if position is None and mask is not None:
        return last_token(mask)
    at = torch.as_tensor(-1 if position is None else position).reshape(-1).expand(rows)
    if bool(((at < -length) | (at >= length)).any()):
        raise IndexError(
            f"position {position} is out of range for a decoder input of {length} tokens."
        )
    return at % length


def written_ids(
    model: Any, tokenizer: Any, source: Tensor, written: str | TokenIds | int
) -> tuple[int, ...]:
    """Token ids of the decoder's input, with its start token.

    Args:
        model: A Hugging Face encoder-decoder.
        tokenizer: Its tokenizer.
        source: What the encoder reads: token ids ``[1, S]``, or features.
        written: The text so far, its token ids ``[T]`` or ``[1, T]`` without the start token, or a
            number of tokens to generate, greedily.

    Raises:
        TypeError: If it is something else.
        ValueError: If the number is negative, the ids are no integers or several rows, or the model
            has no start token.
    """
    if isinstance(written, int):
        if written < 0:
            raise ValueError(f"`written` is a text or a number of tokens, not {written}.")
        if written:
            return _generated(model, source, written)
        written = ""
    if isinstance(written, str):
        check_characters(written)
        labels = list(tokenizer(text_target=written)["input_ids"])
    else:
        labels, _ = of_row(written, "written text")
    if labels[:1] == [_start(model)]:  # Whisper's tokenizer writes it, and shifting does again
        del labels[0]
    # Shifting drops the last label.
    if not labels or labels[-1] not in tokenizer.all_special_ids:
        labels.append(_end(model, tokenizer))
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None:
        return tuple(shift(labels=torch.tensor([labels], device=source.device))[0].tolist())
    start = _start(model)
    if start is None:
        raise ValueError(
            f"{type(model).__name__} has no start token for its decoder: set "
            "`config.decoder_start_token_id`."
        )
    return (int(start), *labels[:-1])


def _generated(model: Any, source: Tensor, count: int) -> tuple[int, ...]:
    """The decoder's input with generated tokens; ``generate`` does not always return its start."""
    given: list[Tensor] = []

    def keep(_module: nn.Module, args: Any, keywords: Any) -> None:
        given.append(keywords["input_ids"] if "input_ids" in keywords else args[0])

    with hooked([model.get_decoder()], before=keep), torch.no_grad():
        made = model.generate(
            source,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            num_beams=1,
            use_cache=False,
        )
    return (*given[-1][0].tolist(), int(made[0, -1]))


def _start(model: Any) -> int | None:
    """Start token of a decoder."""
    start: int | None = getattr(model.generation_config, "decoder_start_token_id", None)
    return getattr(model.config, "decoder_start_token_id", None) if start is None else start


def _end(model: Any, tokenizer: Any) -> int:
    """Token at the end of labels, which the decoder's input lacks."""
    end = getattr(tokenizer, "eos_token_id", None)
    return int(model.config.eos_token_id if end is None else end)
