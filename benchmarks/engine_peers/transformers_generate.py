"""Peer: Transformers' own `generate` on a batch of equal prompts, greedy, bfloat16."""

import torch
import transformers
from protocol import measure, read_task


def main() -> None:
    task = read_task(__doc__ or "")
    torch.set_num_threads(task.threads)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.bfloat16).eval()

    def generate(prompts: list[list[int]], output_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=output_tokens,
                max_new_tokens=output_tokens,
            )
        return [row[ids.shape[1] :].tolist() for row in out]

    measure("transformers", transformers.__version__, task, generate)


if __name__ == "__main__":
    main()
