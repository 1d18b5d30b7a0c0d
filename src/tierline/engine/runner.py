"""Runs iterations: from the chunks that the scheduler names to the tokens drawn."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from tierline.core.instance_actions import Chunk, RunStep
from tierline.core.request import Request, Sampling, TokenLogprob
from tierline.engine import attention, host_memory
from tierline.engine.arena import KvArena
from tierline.engine.attention import Decodes, PromptChunk, StepLayout
from tierline.engine.cuda_graphs import DecodeGraphs
from tierline.engine.decoder import Decoder, can_fuse
from tierline.engine.families.text import Positions, TextFamily
from tierline.engine.packing import pack, pack_head
from tierline.engine.sampler import Row, draw
from tierline.engine.tiled import TiledHead, can_tile

WARM_UP, WARM_TOKENS = "", 8  # the request of a first batch, and its prompt
ROWS = 16  # more rows are padded to a multiple of this, where few sizes are better


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token drawn for an attempt."""

    request_id: str
    token: int
    logprob: TokenLogprob | None


@dataclass(slots=True)
class _Sequence:
    request: Request
    tokens: list[int]
    blocks: list[int]
    positions: Positions | None
    banned: tuple[int, ...]

    @property
    def made(self) -> list[int]:
        return self.tokens[len(self.request.prompt) :]


class ModelRunner:
    """`embeddings`: content hash of an image -> [tokens, hidden], filled by the encoder and by peers."""

    def __init__(
        self,
        family: TextFamily,
        arena: KvArena,
        end_tokens: Sequence[int],
        embeddings: Mapping[str, torch.Tensor],
    ) -> None:
        self._family = family
        self._arena = arena
        self._end_tokens = tuple(end_tokens)
        self._embeddings = embeddings
        self._sequences: dict[str, _Sequence] = {}
        self._head = family.head
        self._graphs: DecodeGraphs | None = None
        self._decoder: Decoder | None = None
        self._device = family.embedding.weight.device
        self.few_sizes = self._device.type == "cpu" and family.embedding.weight.dtype is not torch.float32

    @property
    def embedding_weight(self) -> torch.Tensor:
        """[vocabulary, hidden], on the model's device and in its type."""
        weight: torch.Tensor = self._family.embedding.weight
        return weight

    def pack(self) -> None:
        """Bring the weights into the layout that is fastest on this CPU (`decoder.py`, `packing.py`). The backbone itself
        cannot be run any more."""
        if not self.fuse(lets_go=True):
            pack(self._family.backbone)
        head = self._family.head
        tiled = isinstance(head, torch.nn.Linear) and getattr(head, "bias", None) is None and can_tile(head.weight)
        self._head = TiledHead(head.weight) if tiled else pack_head(head)

    def fuse(self, *, lets_go: bool = False) -> bool:
        """Run the backbone in few native calls (`decoder.py`), where that is known to give the same; whether it is."""
        backbone = self._family.backbone
        if can_fuse(backbone):
            self._decoder = Decoder(backbone, lets_go)
        return self._decoder is not None

    def use_graphs(self, graphs: DecodeGraphs) -> None:
        """Iterations that only decode run as CUDA graphs, where they can."""
        self._graphs = graphs

    def add(self, request: Request) -> None:
        sampling = request.sampling
        banned = sampling.stop_token_ids if sampling.ignore_eos else (*self._end_tokens, *sampling.stop_token_ids)
        positions = self._family.positions(request)
        tokens = [*request.prompt, *request.made]
        self._sequences[request.request_id] = _Sequence(request, tokens, [], positions, banned)

    def drop(self, request_id: str) -> None:
        self._sequences.pop(request_id, None)

    def made(self, request_id: str, made: Sequence[int]) -> None:
        """An arriving attempt has these output tokens."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            sequence.tokens = [*sequence.request.prompt, *made]

    # --- memory

    def free_memory(self) -> None:
        """Give the arena up and move the weights to the host, where they are on a device of its own. No sequence is here."""
        assert not self._sequences
        if self._graphs is not None:
            self._graphs.forget()
        self._arena.free()
        host_memory.leave(self._family.model, self._device)

    def take_memory(self) -> None:
        """Have both again, and run a first batch. Raises what PyTorch raises where there is no room any more."""
        host_memory.come_back(self._family.model, self._device)
        self._arena.restore()
        self.warm_up()

    def warm_up(self) -> None:
        """A prompt and the token after it, of no request, in the first blocks of an empty arena: libraries set themselves up
        in their first calls, and nobody shall wait for that."""
        tokens = max(1, min(WARM_TOKENS, self._arena.block_tokens - 1))
        self.add(Request(WARM_UP, (0,) * tokens, Sampling(2, temperature=0.0)))
        for first, count, blocks in ((0, tokens, (0, 1)), (tokens, 1, ())):
            chunk = Chunk(WARM_UP, first, count, blocks, fresh=not first, samples=True)
            self.run(RunStep(0, (chunk,)))
        self.drop(WARM_UP)

    @torch.inference_mode()
    def run(self, step: RunStep) -> list[Sampled]:
        """Compute all chunks in one pass of the model; the tokens drawn are appended to their sequences."""
        decodes = [chunk for chunk in step.chunks if self._extend(chunk)]
        prompts = [chunk for chunk in step.chunks if chunk.tokens > 1 or not self._is_decode(chunk)]
        chunks = [*decodes, *prompts]
        hidden = self._forward(chunks, len(decodes))
        ends: list[int] = []
        row = 0
        for chunk in chunks:
            row += chunk.tokens
            if chunk.samples:
                ends.append(row - 1)
        if not ends:
            return []
        logits = self._head(hidden[torch.tensor(ends, device=self._device)])
        drawing = [chunk.request_id for chunk in chunks if chunk.samples]
        rows = []
        for request_id in drawing:
            sequence = self._sequences[request_id]
            rows.append(Row(sequence.request.sampling, sequence.request.prompt, sequence.made, sequence.banned))
        tokens, logprobs = draw(logits, rows)
        sampled = []
        for request_id, token, logprob in zip(drawing, tokens, logprobs, strict=True):
            self._sequences[request_id].tokens.append(token)
            sampled.append(Sampled(request_id, token, logprob))
        return sampled

    def _extend(self, chunk: Chunk) -> bool:
        """Bring the sequence's block table up to date; whether the chunk is one token of a decoding sequence."""
        sequence = self._sequences[chunk.request_id]
        if chunk.fresh:
            sequence.blocks = []
        sequence.blocks += chunk.new_blocks
        return self._is_decode(chunk)

    def _is_decode(self, chunk: Chunk) -> bool:
        return chunk.tokens == 1 and chunk.first > 0

    def _forward(self, chunks: Sequence[Chunk], decodes: int) -> torch.Tensor:
        """Last hidden states of all rows, [rows, hidden]."""
        ids: list[int] = []
        for chunk in chunks:
            ids += self._sequences[chunk.request_id].tokens[chunk.first : chunk.first + chunk.tokens]
        inputs = self._family.embedding(torch.tensor(ids, device=self._device).unsqueeze(0))
        self._put_images(inputs[0], chunks)
        positions, layout = self._positions(chunks), self._layout(chunks, decodes)
        if self._graphs is not None and (found := self._graphs.run(inputs, positions, layout)) is not None:
            return found
        if idle := self._rows(len(ids)) - len(ids):
            inputs, positions = pad(inputs, (0, 0, 0, idle)), pad(positions, (0, idle))
        if self._decoder is not None:
            return self._decoder(inputs[0], positions, layout)[: len(ids)]
        attention.use_layout(layout)
        try:
            output = self._family.backbone(
                inputs_embeds=inputs, position_ids=positions, attention_mask=None, use_cache=False
            )
        finally:
            attention.use_layout(None)
        hidden: torch.Tensor = output.last_hidden_state[0, : len(ids)]
        return hidden

    def _rows(self, rows: int) -> int:
        """So many rows the model is given for `rows`; those beyond are nobody's. oneDNN makes code for each number of rows
        that it meets, a megabyte and milliseconds for each matrix of 16-bit numbers, and keeps a thousand of them."""
        if not self.few_sizes or rows <= ROWS:
            return rows
        return -(-rows // ROWS) * ROWS

    def _put_images(self, rows: torch.Tensor, chunks: Sequence[Chunk]) -> None:
        """Overwrite the rows of placeholders with the images' embeddings. Between an image's placeholders other tokens may
        stand, as where it is cut into tiles."""
        row = 0
        for chunk in chunks:
            sequence, last = self._sequences[chunk.request_id], chunk.first + chunk.tokens
            for image in sequence.request.images:
                begin, end = max(image.start, chunk.first), min(image.end, last)
                if begin < end:
                    token = self._family.config.image_token_id
                    places = [at for at in range(image.start, end) if sequence.tokens[at] == token]
                    passed = bisect.bisect_left(places, begin)
                    part = self._embeddings[image.content_hash][passed : len(places)].to(rows.dtype)
                    rows[[row + at - chunk.first for at in places[passed:]]] = part
            row += chunk.tokens

    def _positions(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """[1, rows], or [axes, 1, rows] where the family's positions have several axes."""
        if not any(self._sequences[chunk.request_id].positions for chunk in chunks):
            flat = [position for chunk in chunks for position in range(chunk.first, chunk.first + chunk.tokens)]
            return torch.tensor(flat, device=self._device).unsqueeze(0)
        parts = []
        for chunk in chunks:
            positions, last = self._sequences[chunk.request_id].positions, chunk.first + chunk.tokens
            assert positions is not None
            axes, prompt = positions.prompt.shape
            after = torch.arange(max(chunk.first, prompt), max(last, prompt)) + positions.shift
            parts.append(torch.cat((positions.prompt[:, chunk.first : last], after.expand(axes, -1)), dim=1))
        return torch.cat(parts, dim=1).unsqueeze(1).to(self._device)

    def _layout(self, chunks: Sequence[Chunk], decodes: int) -> StepLayout:
        block = self._arena.block_tokens
        slots: list[int] = []
        tables: list[list[int]] = []
        prompts: list[PromptChunk] = []
        row = 0
        for place, chunk in enumerate(chunks):
            blocks, last = self._sequences[chunk.request_id].blocks, chunk.first + chunk.tokens
            slots += [blocks[p // block] * block + p % block for p in range(chunk.first, last)]
            if place < decodes:
                tables.append(blocks[: -(-last // block)])
            else:
                prompts.append(self._prompt(chunk, row, blocks))
            row += chunk.tokens
        return StepLayout(
            arena=self._arena,
            slots=torch.tensor(slots, device=self._device),
            decodes=self._decodes(tables, chunks) if tables else None,
            chunks=tuple(prompts),
        )

    def _decodes(self, tables: list[list[int]], chunks: Sequence[Chunk]) -> Decodes:
        most = max(map(len, tables))
        padded = [table + [0] * (most - len(table)) for table in tables]
        lengths = [chunk.first + 1 for chunk in chunks[: len(tables)]]
        table = torch.tensor(padded, dtype=torch.int32, device=self._device)
        return Decodes.of(self._arena, table, torch.tensor(lengths, dtype=torch.int32, device=self._device))

    def _prompt(self, chunk: Chunk, row: int, blocks: list[int]) -> PromptChunk:
        if not chunk.first:
            return PromptChunk(row, chunk.tokens, 0, torch.empty(0, dtype=torch.long), None)
        block, last = self._arena.block_tokens, chunk.first + chunk.tokens
        table = torch.tensor(blocks[: -(-last // block)], device=self._device)
        slots = (table.unsqueeze(1) * block + torch.arange(block, device=self._device)).view(-1)[:last]
        queries = torch.arange(chunk.first, last, device=self._device).unsqueeze(1)
        mask = torch.arange(last, device=self._device) <= queries
        return PromptChunk(row, chunk.tokens, chunk.first, slots, mask)
