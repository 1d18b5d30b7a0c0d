"""The training of train_digits.py in torch, on the GPU that Tierline gives it (CPU where CUDA is not to be had).

python train_digits_torch.py --lr 0.1 --width 512
"""

from __future__ import annotations

import argparse
import time

import torch

import tierline
from tierline.report import resuming
from train_digits import VALIDATION_ROWS, load_digits

CHECKPOINT = "mlp.pt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of training, all attempts together")
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    pixels, labels = load_digits()
    x, y = torch.from_numpy(pixels).to(device), torch.from_numpy(labels).to(device)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, options.width), torch.nn.ReLU(),
        torch.nn.Linear(options.width, options.width), torch.nn.ReLU(),
        torch.nn.Linear(options.width, 10),
    ).to(device)  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    step, spent_s = 0, 0.0
    if resuming() and (tierline.checkpoint_dir() / CHECKPOINT).exists():
        state = torch.load(tierline.checkpoint_dir() / CHECKPOINT, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent_s = state["step"], state["spent_s"]

    began_s, reported_s = time.monotonic() - spent_s, -1.0
    while (spent_s := time.monotonic() - began_s) < options.budget:
        rows = torch.randint(VALIDATION_ROWS, len(x), (options.batch,), device=device)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows] + 0.25 * torch.randn_like(x[rows])), y[rows]).backward()
        optimizer.step()
        step += 1
        if spent_s - reported_s >= 0.25:
            reported_s = spent_s
            with torch.no_grad():
                loss = torch.nn.functional.cross_entropy(model(x[:VALIDATION_ROWS]), y[:VALIDATION_ROWS]).item()
            tierline.report(step, loss=loss)
            print(f"step {step} loss {loss:.4f} after {spent_s:.1f} s on {device}", flush=True)
        if tierline.should_stop():
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent_s": spent_s}
            tierline.save_checkpoint(CHECKPOINT, lambda file: torch.save(parts, file))  # noqa: B023
            break


if __name__ == "__main__":
    main()
