"""The models of gpu_programs.py: a small conv net and a stack of transformer blocks, with the sizes they come in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Size:
    """`image` is the side in pixels, `channels` of the first stage, `width` of the transformer, `tokens` of a sequence."""

    image: int
    channels: int
    conv_batch: int
    width: int
    layers: int
    tokens: int
    train_batch: int
    serve_width: int
    serve_layers: int
    serve_batch: int
    classes: int = 100


SIZES = {
    "full": Size(32, 64, 512, 1024, 6, 512, 8, 2048, 12, 8),
    "check": Size(32, 32, 64, 512, 2, 128, 8, 512, 2, 8),
    "tiny": Size(8, 8, 4, 32, 1, 8, 2, 32, 1, 2, classes=10),
}


class ConvNet(nn.Module):
    """Three stages of two residual blocks with batch normalisation, and a classifier."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, size.channels, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        width = size.channels
        for stage in range(3):
            for block in range(2):
                wider = size.channels * 2**stage
                stages.append(Residual(width, wider, stride=2 if stage and not block else 1))
                width = wider
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(width, size.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, width: int, wider: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, wider, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(wider), nn.BatchNorm2d(wider)])
        self.skip = nn.Conv2d(width, wider, 1, stride, bias=False) if (width, stride) != (wider, 1) else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(self.norms[1](self.second(y)) + self.skip(x))


class Blocks(nn.Module):
    """A stack of transformer blocks over embeddings, with a classifier on the mean."""

    def __init__(self, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(x)).mean(1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(width // 64, 1)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.norms[1](x))
