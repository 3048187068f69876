"""The door to vLLM: continuous batching in the background, weights swapped under requests in flight.

vLLM's `AsyncLLM` lives on an event loop in a thread of its own; the worker's thread hands requests in and takes
finished ones out. Every load gets a label that no other load had: it marks the tokens that were sampled with it,
and keeps vLLM's prefix cache from mixing what different weights computed. Where versions are adapters, the label
names the adapter, nothing stands still for a new one, and requests in flight end with the one they began with.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import queue
import secrets
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Literal, TypeVar

from transformers import AutoConfig, AutoTokenizer

from services.generator.engine import Finished, LoadError, Request
from services.generator.prompt_tokens import given_answers, prompt_token_ids
from services.generator.vllm_folders import Shapes, base_of, check_fit, eos_token_ids, lora_options, tensor_shapes
from tba_common import metrics
from tba_common.base_model import BaseModel, is_adapter
from tba_common.messages import Completion
from tba_common.weights import Snapshot

# Bound to cores, the threads of two engines on one machine would share them while other cores idle.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from vllm import AsyncEngineArgs, SamplingParams  # reads the environment when imported
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")
_CPU_CACHE_BYTES: Final = 2**30
_BEAT_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The weights that new requests get: a label, and the adapter where versions are adapters."""

    label: str
    adapter: LoRARequest | None = None

    def version_of(self, label: str) -> int:
        """The version of some tokens, given the label that vLLM put on them: an adapter's are all of one."""
        return int((label if self.adapter is None else self.label).partition(".")[0])


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """A request in the engine, and the weights that it began with."""

    request: Request
    prompt_token_ids: tuple[int, ...]
    weights: _Loaded
    answer: Future[RequestOutput]

    def ended_with(self, label: str) -> bool:
        """Whether it has been answered, and weights of this label had a part in it."""
        if not self.answer.done() or self.answer.exception() is not None:
            return False
        completions = self.answer.result().outputs
        spans = {span.version for completion in completions for span in completion.weight_versions or ()}
        return label in {self.weights.label} | spans


class VllmEngine:
    """`services.generator.engine.Engine` on vLLM: requests run from `submit` on, also while nobody collects.

    `progress` is called while an engine starts, so that a long start is not mistaken for a dead process.
    `cache_bytes` of 0 leaves the attention cache to vLLM on a GPU, and takes one GiB on a CPU.
    """

    def __init__(
        self,
        *,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        max_batch_completions: int = 256,
        cache_bytes: int = 0,
        tensor_parallel: int = 1,
        progress: Callable[[], None] = lambda: None,
        worker_extension: str = "services.generator.vllm_worker.VersionLoader",
    ) -> None:
        on_cpu = current_platform.is_cpu()
        self._options: dict[str, Any] = {
            "dtype": ("float32" if on_cpu else "bfloat16") if dtype == "auto" else dtype,
            "max_num_seqs": max_batch_completions,
            "kv_cache_memory_bytes": cache_bytes or (_CPU_CACHE_BYTES if on_cpu else None),
            "enforce_eager": on_cpu,  # compiling takes a minute and a C++ compiler, and gains little on a CPU
            "tensor_parallel_size": tensor_parallel,
            "distributed_executor_backend": "uni" if tensor_parallel == 1 else "mp",
            "seed": secrets.randbits(31),  # no two processes, nor two lives of one, repeat their samples
            "logprobs_mode": "processed_logprobs",  # of the distribution really sampled from
            "generation_config": "vllm",  # sampling is the task's to define, not the folder's
            "worker_extension_cls": worker_extension,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        self._progress = progress
        self.policy_version: int | None = None
        self._llm: Any = None  # AsyncLLM
        self._tokenizer: Any = None
        self._context_tokens: int | None = None
        self._eos_token_ids: list[int] = []
        self._shapes: Shapes = {}
        self._base_digest = ""
        self._loads = itertools.count(1)
        self._loaded = _Loaded("")
        self._call_ids = itertools.count()
        self._flights: dict[int, _Flight] = {}  # by request_id
        self._ended: queue.SimpleQueue[_Flight] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        self._start(request, prompt_token_ids(request, self._tokenizer, self._context_tokens))

    def collect(self, timeout_seconds: float) -> list[Finished]:
        """Return what has finished.

        Raises:
            vllm.v1.engine.exceptions.EngineDeadError: vLLM's process is gone, and what was in flight with it.
        """
        found: list[Finished] = []
        while True:
            try:
                flight = self._ended.get(timeout=0 if found else timeout_seconds)
            except queue.Empty:
                return found
            request_id = flight.request.request_id
            if self._flights.get(request_id) is not flight:  # given up since, and begun anew
                continue
            del self._flights[request_id]
            completions = sorted(flight.answer.result().outputs, key=lambda completion: completion.index)
            answers = tuple(self._completion(completion, flight.weights) for completion in completions)
            found.append(Finished(request_id, flight.prompt_token_ids, answers))

    def read(self, request: Request, answers: Sequence[str]) -> Finished:
        assert self.policy_version is not None
        return given_answers(
            request,
            answers,
            self._tokenizer,
            context_tokens=self._context_tokens,
            eos_token_ids=self._eos_token_ids,
            version=self.policy_version,
        )

    def load(self, snapshot: Snapshot) -> None:
        shapes, number = tensor_shapes(snapshot), next(self._loads)
        label, first = f"{snapshot.version}.{number}", self._llm is None
        if first:
            self._run(self._open(snapshot, base_of(snapshot)))
            self._shapes = shapes
        check_fit(snapshot.version, self._shapes, shapes)
        adapter = None
        if is_adapter(snapshot.directory):
            adapter = LoRARequest(label, number, str(snapshot.directory))
            self._add(snapshot, adapter)
        else:
            self._run(self._llm.update_weight_version(label) if first else self._swap(snapshot, label))
        self._loaded, self.policy_version = _Loaded(label, adapter), snapshot.version

    def restore(self, snapshot: Snapshot) -> None:
        refused = self._loaded.label
        again = [flight for flight in self._flights.values() if flight.answer.cancel() or flight.ended_with(refused)]
        self.load(snapshot)
        for flight in again:
            self._start(flight.request, flight.prompt_token_ids)
        log.warning("sampling anew what unproven weights touched", extra={"requests": len(again)})

    def logprobs(self, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> list[float]:
        return [self._run(self._logprob(*pair)) for pair in zip(sequences, prompt_lengths, strict=True)]

    def close(self) -> None:
        """End vLLM's process and the thread; what is in flight is given up."""
        for flight in self._flights.values():
            flight.answer.cancel()
        if self._llm is not None:
            self._run(self._stop_listening())  # or the end of vLLM's process would look like a crash
            self._llm.shutdown(timeout=1.0)
            self._llm = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self, request: Request, token_ids: tuple[int, ...]) -> None:
        sampling = self._answer(token_ids, self._parameters(request), self._loaded)
        answer = asyncio.run_coroutine_threadsafe(sampling, self._loop)
        flight = self._flights[request.request_id] = _Flight(request, token_ids, self._loaded, answer)
        answer.add_done_callback(lambda _: self._ended.put(flight))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work on the loop, with signs of life."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while True:
            self._progress()
            done, _ = wait([future], _BEAT_SECONDS)
            if done:
                return future.result()

    async def _open(self, snapshot: Snapshot, base: Path) -> None:
        """Start vLLM on the first version, and take the tokenizer that stays."""
        self._tokenizer = AutoTokenizer.from_pretrained(
            snapshot.directory, local_files_only=True, trust_remote_code=False
        )
        config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
        self._context_tokens = getattr(config.get_text_config(), "max_position_embeddings", None)
        self._eos_token_ids = eos_token_ids(base, self._tokenizer)
        options = self._options | lora_options(snapshot.directory)
        arguments = AsyncEngineArgs(model=str(base), tokenizer=str(snapshot.directory), **options)
        self._llm = AsyncLLM.from_engine_args(arguments)

    async def _stop_listening(self) -> None:
        listening = self._llm.output_handler
        if listening is not None:
            listening.cancel()
            await asyncio.wait([listening])

    def _add(self, snapshot: Snapshot, adapter: LoRARequest) -> None:
        digest = BaseModel.of(snapshot.directory).digest
        if digest != (self._base_digest or digest):
            raise LoadError(f"version {snapshot.version}: expected base {self._base_digest}, got {digest}")
        self._run(self._llm.add_lora(adapter))
        self._base_digest = digest

    async def _swap(self, snapshot: Snapshot, label: str) -> None:
        await self._llm.pause_generation(mode="keep", clear_cache=False)
        paused = perf_counter()
        for read in await self._llm.collective_rpc("load_version", args=(str(snapshot.directory),)):
            if sorted(read) != sorted(snapshot.tensors):
                raise RuntimeError(f"version {snapshot.version}: expected {len(snapshot.tensors)} tensors read")
        await self._llm.update_weight_version(label)
        await self._llm.resume_generation()
        metrics.GENERATOR_PAUSE_SECONDS.observe(perf_counter() - paused)

    def _parameters(self, request: Request) -> SamplingParams:
        return SamplingParams(
            n=request.completions,
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_new_tokens,
            stop_token_ids=self._eos_token_ids,
            ignore_eos=True,  # vLLM knows one of them only
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    async def _logprob(self, sequence: Sequence[int], prompt_length: int) -> float:
        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        output = await self._answer(sequence, parameters, self._loaded)
        assert output.prompt_logprobs is not None
        pairs = list(zip(sequence, output.prompt_logprobs, strict=True))[prompt_length:]
        return float(sum(position[token].logprob for token, position in pairs if position is not None))

    async def _answer(self, token_ids: Sequence[int], parameters: SamplingParams, weights: _Loaded) -> RequestOutput:
        prompt = tokens_input(list(token_ids), cache_salt=weights.label)
        name = str(next(self._call_ids))
        last: RequestOutput | None = None
        async for output in self._llm.generate(prompt, parameters, name, lora_request=weights.adapter):
            last = output
        assert last is not None
        return last

    def _completion(self, output: CompletionOutput, began: _Loaded) -> Completion:
        token_ids = list(output.token_ids)
        spans = tuple((began.version_of(span.version), span.end - span.start) for span in output.weight_versions)
        return Completion(
            token_ids=token_ids,
            logprobs=output.logprobs.logprobs,
            text=self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            finish_reason="eos" if token_ids[-1] in self._eos_token_ids else "length",
            policy_version=min(version for version, _ in spans),
            spans=spans if len(spans) > 1 else (),
        )
