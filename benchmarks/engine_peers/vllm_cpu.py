"""Peer: vLLM's CPU build (`scripts/vllm-cpu-venv` makes its environment), offline, greedy, without prefix caching."""

import os

from protocol import measure, read_task


def main() -> None:
    task = read_task(__doc__ or "")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault(
        "VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0))[: task.threads]))
    )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
    import vllm  # reads the environment when it is imported

    model = vllm.LLM(
        str(task.model),
        dtype="bfloat16",
        max_model_len=2 * (task.prompt_tokens + task.output_tokens),
        max_num_seqs=max(task.batches),
        enable_prefix_caching=False,
        disable_log_stats=True,
    )

    def generate(prompts: list[list[int]], output_tokens: int) -> list[list[int]]:
        sampling = vllm.SamplingParams(temperature=0, max_tokens=output_tokens, ignore_eos=True, detokenize=False)
        outputs = model.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    measure("vllm", vllm.__version__, task, generate)


if __name__ == "__main__":
    main()
