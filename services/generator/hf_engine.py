"""The door to torch and transformers: batched sampling with `model.generate`, weights swapped in place.

One logits processor draws every row's next token at the row's own temperature and top-p and notes its
log-probability, so that rows of different prompts and tasks share a batch and no logits are kept.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from services.generator.engine import Finished, LoadError, Request
from services.generator.hf_adapter import HotAdapters
from services.generator.hf_weights import copy_weights, read_snapshot
from services.generator.prompt_tokens import given_answers, prompt_token_ids
from tba_common.base_model import is_adapter
from tba_common.messages import Completion
from tba_common.weights import Snapshot

log = logging.getLogger(__name__)


@dataclass
class _Group:
    """A request on its way, and what it has so far."""

    request: Request
    prompt_token_ids: tuple[int, ...]
    completions: list[Completion] = field(default_factory=list)


class HfEngine:
    """`services.generator.engine.Engine` on transformers: samples what is queued when `collect` is called.

    `progress` is called with every token, so that a long batch is not mistaken for a dead process; what it raises
    breaks the batch off. Without a `seed`, one comes from the operating system: no two processes, nor two lives of
    one, repeat their samples.
    """

    def __init__(
        self,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        max_batch_completions: int = 256,
        progress: Callable[[], None] = lambda: None,
        seed: int | None = None,
    ) -> None:
        found = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(found if device == "auto" else device)
        low_precision = dtype == "bfloat16" or (dtype == "auto" and self._device.type == "cuda")
        self._dtype = torch.bfloat16 if low_precision else torch.float32
        self._max_batch_completions = max_batch_completions
        self._progress = progress
        self._random = torch.Generator(self._device)
        self._random.manual_seed(self._random.seed() if seed is None else seed)
        self.policy_version: int | None = None
        self._model: Any = None  # transformers.PreTrainedModel
        self._adapters: HotAdapters | None = None  # what is on the model, where versions are adapters
        self._tokenizer: Any = None
        self._eos_token_ids: list[int] = []
        self._pad_token_id = 0
        self._shares_prompts = False  # whether the attention cache can be dealt out, as a recurrent state cannot
        self._rows: deque[_Group] = deque()  # one entry per completion still to sample

    def submit(self, request: Request) -> None:
        token_ids = prompt_token_ids(request, self._tokenizer, self._context_tokens())
        self._rows.extend([_Group(request, token_ids)] * request.completions)

    def collect(self, timeout_seconds: float) -> list[Finished]:
        """Sample one batch; a request with more completions than fit takes several calls."""
        count = min(self._max_batch_completions, len(self._rows))
        if count == 0:
            return []
        rows = [self._rows.popleft() for _ in range(count)]
        for group, completion in zip(rows, self._sample(rows), strict=True):
            group.completions.append(completion)
        groups = {id(group): group for group in rows}.values()
        return [
            Finished(group.request.request_id, group.prompt_token_ids, tuple(group.completions))
            for group in groups
            if len(group.completions) == group.request.completions
        ]

    def read(self, request: Request, answers: Sequence[str]) -> Finished:
        assert self.policy_version is not None
        return given_answers(
            request,
            answers,
            self._tokenizer,
            context_tokens=self._context_tokens(),
            eos_token_ids=self._eos_token_ids,
            version=self.policy_version,
        )

    def load(self, snapshot: Snapshot) -> None:
        try:
            if is_adapter(snapshot.directory):
                self._load_adapter(snapshot)
            elif self._model is None:
                # Copied, because what was read is a map of files that the learner will delete.
                self._adopt(copy.deepcopy(read_snapshot(snapshot, self._dtype)), snapshot.directory)
            else:
                copy_weights(read_snapshot(snapshot, self._dtype), self._model)
        except (OSError, ValueError, SafetensorError) as error:
            raise LoadError(f"version {snapshot.version}: {error}") from error
        self.policy_version = snapshot.version

    def restore(self, snapshot: Snapshot) -> None:
        self.load(snapshot)  # nothing is sampled between two calls

    def logprobs(self, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> list[float]:
        return [self._logprob(*pair) for pair in zip(sequences, prompt_lengths, strict=True)]

    def close(self) -> None:
        self._rows.clear()

    def _context_tokens(self) -> int | None:
        tokens: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return tokens

    @torch.inference_mode()
    def _logprob(self, sequence: Sequence[int], prompt_length: int) -> float:
        token_ids = torch.tensor([sequence], device=self._device)  # [1, length]
        logits = self._model(input_ids=token_ids, use_cache=False).logits[0, prompt_length - 1 : -1].float()
        return float(logits.log_softmax(-1).gather(-1, token_ids[0, prompt_length:, None]).sum())

    def _load_adapter(self, snapshot: Snapshot) -> None:
        if self._adapters is not None:
            self._adapters.load(snapshot)
        elif self._model is None:
            adapters = HotAdapters(snapshot, self._dtype)
            self._adopt(adapters.model, snapshot.directory)
            self._adapters = adapters
        else:
            raise ValueError("expected whole weights, as were loaded first, got an adapter")

    def _adopt(self, fresh: Any, directory: Path) -> None:
        """Take the first model, and the tokenizer that stays."""
        self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        stops = fresh.generation_config.eos_token_id  # None, one, or a list
        stops = {*(stops if isinstance(stops, list) else [stops]), self._tokenizer.eos_token_id}
        self._eos_token_ids = sorted(stops - {None})
        pad = self._tokenizer.pad_token_id
        self._pad_token_id = pad if pad is not None else (self._eos_token_ids or [0])[0]
        # A folder may bring top_k, repetition penalties and the like; sampling is the task's to define.
        fresh.generation_config = GenerationConfig.from_dict({})
        layers = DynamicCache(config=fresh.config).layers
        self._shares_prompts = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        self._model = fresh.to(self._device).eval().requires_grad_(False)
        log.info("model built", extra={"device": str(self._device), "dtype": str(self._dtype)})

    def _sample(self, rows: Sequence[_Group]) -> list[Completion]:
        requests = [row.request for row in rows]
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(row.prompt_token_ids for row in rows))}
        which = torch.tensor([distinct[row.prompt_token_ids] for row in rows], device=self._device)
        input_ids, attention_mask = self._left_padded(list(distinct))
        limits = torch.tensor([request.max_new_tokens for request in requests], device=self._device)
        sampler = _Sampler(requests, random=self._random, progress=self._progress)
        output = self._generate(
            input_ids[which],
            attention_mask[which],
            past_key_values=self._read(input_ids, attention_mask, which),
            max_new_tokens=int(limits.max()),
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList([_RowLimits(input_ids.shape[1], limits)]),
        )
        tokens = output.sequences[:, input_ids.shape[1] :]  # [rows, steps]
        lengths = self._lengths(tokens, limits).tolist()
        logprobs = torch.stack(sampler.logprobs, dim=1).cpu().numpy()  # [rows, steps]
        token_ids = tokens.cpu().numpy()
        return [self._completion(token_ids[i, :length], logprobs[i, :length]) for i, length in enumerate(lengths)]

    def _read(self, input_ids: Tensor, attention_mask: Tensor, which: Tensor) -> Any:
        """Read each distinct prompt once, up to its last token, and deal the attention cache out to the rows.

        Sixteen completions of a long prompt would otherwise read it sixteen times.
        """
        if input_ids.shape[1] == 1 or not self._shares_prompts:
            return None
        cache = self._generate(input_ids[:, :-1], attention_mask[:, :-1], max_new_tokens=1).past_key_values
        cache.batch_select_indices(which)
        return cache

    def _generate(self, input_ids: Tensor, attention_mask: Tensor, *, max_new_tokens: int, **options: Any) -> Any:
        """`model.generate` without any sampling of its own: the sampler has drawn already."""
        configuration = GenerationConfig.from_dict(
            {
                "max_new_tokens": max_new_tokens,
                "do_sample": False,
                "eos_token_id": self._eos_token_ids or None,
                "pad_token_id": self._pad_token_id,
                "return_dict_in_generate": True,
            }
        )
        return self._model.generate(
            input_ids=input_ids, attention_mask=attention_mask, generation_config=configuration, **options
        )

    def _lengths(self, tokens: Tensor, limits: Tensor) -> Tensor:
        """How much of each row is its completion, EOS included once: behind it stands padding, maybe EOS too."""
        is_eos = torch.isin(tokens, torch.tensor(self._eos_token_ids, dtype=tokens.dtype, device=tokens.device))
        up_to_eos = torch.where(is_eos.any(dim=1), is_eos.int().argmax(dim=1) + 1, tokens.shape[1])
        return torch.minimum(up_to_eos, limits)

    def _completion(self, token_ids: Any, logprobs: Any) -> Completion:
        assert self.policy_version is not None
        return Completion(
            token_ids=token_ids,
            logprobs=logprobs,
            text=self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            finish_reason="eos" if int(token_ids[-1]) in self._eos_token_ids else "length",
            policy_version=self.policy_version,
        )

    def _left_padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, [rows, width]; the mask goes by length, for a prompt may hold the pad token."""
        width = max(map(len, prompts))
        ids = [[self._pad_token_id] * (width - len(prompt)) + [*prompt] for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)


class _Sampler(LogitsProcessor):
    """Draws the next token of every row and leaves `generate` no choice but to take it."""

    def __init__(self, requests: Sequence[Request], *, random: torch.Generator, progress: Callable[[], None]) -> None:
        device = random.device
        self._greedy = torch.tensor([request.temperature == 0 for request in requests], device=device)
        self._temperature = torch.tensor([request.temperature or 1.0 for request in requests], device=device)
        self._top_p = torch.tensor([request.top_p for request in requests], device=device)
        self._narrowed = ((self._top_p < 1) & ~self._greedy).nonzero().squeeze(1)
        self._random = random
        self._progress = progress
        self.logprobs: list[Tensor] = []  # per step, [rows] float32

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logprobs = (scores.float() / self._temperature[:, None]).log_softmax(-1)  # [rows, vocabulary]
        if len(self._narrowed):
            logprobs[self._narrowed] = _nucleus(logprobs[self._narrowed], self._top_p[self._narrowed])
        drawn = torch.multinomial(logprobs.exp(), 1, generator=self._random).squeeze(1)
        tokens = torch.where(self._greedy, scores.argmax(-1), drawn)[:, None]  # [rows, 1]
        self.logprobs.append(logprobs.gather(-1, tokens).squeeze(1))
        self._progress()
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens, 0.0)


class _RowLimits(StoppingCriteria):
    """Ends each row at its own number of new tokens."""

    def __init__(self, width: int, limits: Tensor) -> None:
        self._width = width
        self._limits = limits

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return self._limits <= input_ids.shape[1] - self._width


def _nucleus(logprobs: Tensor, top_p: Tensor) -> Tensor:
    """Keep each row's fewest likeliest tokens whose mass reaches top_p, renormalised; [rows, vocabulary]."""
    descending, order = logprobs.sort(dim=-1, descending=True)
    probabilities = descending.exp()
    mass_before = probabilities.cumsum(-1) - probabilities
    cut = descending.masked_fill(mass_before >= top_p[:, None], -torch.inf)
    return torch.empty_like(cut).scatter_(-1, order, cut).log_softmax(-1)
