"""Text -> token ids as a model was trained to read it; a reward model is trained and asked by the same function."""

from __future__ import annotations

from typing import Any, Literal

import jinja2

from tba_common.codec import BadMessage

TextFormat = Literal["chat", "text"]


def chat_token_ids(tokenizer: Any, *turns: tuple[str, str | None], asks: bool = False) -> list[int]:
    """Token ids of (role, text) turns in the tokenizer's chat template; turns without a text are left out.

    `asks` appends the header of the assistant's answer.

    Raises:
        BadMessage: the template refuses the turns, as some do with a system message.
    """
    messages = [{"role": role, "content": text} for role, text in turns if text is not None]
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=asks, tokenize=False)
    except jinja2.TemplateError as error:
        raise BadMessage(f"the model's chat template refuses these turns: {error}") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # a template writes its own


def answer_token_ids(
    tokenizer: Any,
    prompt: str,
    answer: str,
    *,
    text_format: TextFormat,
    system: str | None = None,
    ends_with_eos: bool = True,
) -> list[int]:
    """Token ids of a prompt and its answer: turns of the chat template, or one text after the other and EOS.

    Raises:
        BadMessage: as `chat_token_ids`.
    """
    if text_format == "chat":
        return chat_token_ids(tokenizer, ("system", system), ("user", prompt), ("assistant", answer))
    ids: list[int] = tokenizer(prompt + answer)["input_ids"]
    eos = tokenizer.eos_token_id if ends_with_eos else None
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]
