"""Prompts, and answers that are given, as the policy reads them: tokenized here, once (token ids are truth)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jinja2
import numpy as np

from services.generator.engine import Finished, Request, UnusablePrompt
from tba_common.messages import Completion


def prompt_token_ids(request: Request, tokenizer: Any, context_tokens: int | None) -> tuple[int, ...]:
    """Tokenize a request's prompt with a Hugging Face tokenizer.

    Text gets the special tokens that the tokenizer adds by itself, such as BOS. A chat prompt is one user message,
    after the system's where there is one, in the tokenizer's template, with the header of the answer.

    Raises:
        UnusablePrompt: no tokens, no chat template, or no room for the completion in `context_tokens`.
    """
    is_chat = request.prompt_format == "chat"
    text = _rendered(request, tokenizer) if is_chat else request.text
    token_ids = tuple(tokenizer(text, add_special_tokens=not is_chat)["input_ids"])  # a template writes its own
    if not token_ids:
        raise UnusablePrompt("expected a prompt of at least one token, got none")
    if context_tokens is not None and len(token_ids) + request.max_new_tokens > context_tokens:
        raise UnusablePrompt(
            f"expected at most {context_tokens} tokens, the model's context, got a prompt of {len(token_ids)} "
            f"and {request.max_new_tokens} new ones"
        )
    return token_ids


def given_answers(
    request: Request,
    answers: Sequence[str],
    tokenizer: Any,
    *,
    context_tokens: int | None,
    eos_token_ids: Sequence[int],
    version: int,
) -> Finished:
    """Tokenize answers that nobody sampled: each up to its first EOS, which is added where there is none.

    Raises:
        UnusablePrompt: as `prompt_token_ids`, for the longest of them; or the policy has no EOS.
    """
    own = tokenizer.eos_token_id
    eos = own if own is not None else next(iter(eos_token_ids), None)
    if eos is None:
        raise UnusablePrompt("expected a policy with an EOS token to end given answers, got none")
    ends = {eos, *eos_token_ids}
    tokenized = [[*tokenizer(answer, add_special_tokens=False)["input_ids"], eos] for answer in answers]
    tokens = [ids[: next(i for i, token in enumerate(ids) if token in ends) + 1] for ids in tokenized]
    longest = replace(request, max_new_tokens=max(map(len, tokens)))
    completions = tuple(
        Completion(
            token_ids=np.array(ids),
            logprobs=np.zeros(len(ids)),
            text=answer,
            finish_reason="eos",
            policy_version=version,
        )
        for ids, answer in zip(tokens, answers, strict=True)
    )
    return Finished(request.request_id, prompt_token_ids(longest, tokenizer, context_tokens), completions)


def _rendered(request: Request, tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise UnusablePrompt("prompt_format chat: the policy's tokenizer has no chat template")
    system = [] if request.system is None else [{"role": "system", "content": request.system}]
    messages = [*system, {"role": "user", "content": request.text}]
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except jinja2.TemplateError as error:
        raise UnusablePrompt(f"the chat template refuses the prompt: {error}") from error
