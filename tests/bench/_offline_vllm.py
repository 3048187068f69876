"""vLLM's own offline generation, the measure of what the service adds. Runs where vLLM is installed.

    .venv-vllm/bin/python -m tests.bench._offline_vllm --model FOLDER

Reads prompts and lengths from standard input as JSON; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time


def main() -> None:
    """Generate what standard input asks for, and print tokens a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    model = parser.parse_args().model
    asked = json.load(sys.stdin)

    from vllm import LLM, SamplingParams

    options = {"dtype": asked["dtype"], "max_num_seqs": asked["at_once"]}
    if asked["dtype"] == "float32":  # a CPU, where the service does the same
        options |= {"enforce_eager": True, "kv_cache_memory_bytes": 2**30}
    llm = LLM(model, **options)
    prompts = [{"prompt_token_ids": token_ids} for token_ids in asked["prompts"]]
    parameters = SamplingParams(n=asked["completions"], temperature=1.0, max_tokens=asked["tokens"])
    llm.generate(prompts[:2], parameters, use_tqdm=False)
    began = time.perf_counter()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    seconds = time.perf_counter() - began
    tokens = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
    print(json.dumps({"tokens_per_second": tokens / seconds, "tokens": tokens}))


if __name__ == "__main__":
    main()
