"""Tokenizers and chat templates of Transformers models: tokens to text and back, and where images go."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="the text side of a model needs the extra 'serve'")
pytest.importorskip("torch", reason="the text side of a model needs the extra 'serve'")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tierline.core.errors import InvalidInput
from tierline.core.request import ServedModel
from tierline.engine.detokenize import WindowStream, token_bytes
from tierline.engine.text import TransformersText, open_text

SPECIAL = ["<s>", "</s>", "<image>", "<|user|>"]
WORDS = ["the cat sat on the mat", "中文 你好 世界", "emoji 😀 👩‍👩‍👧 é e\u0301", "the dog, the house"]
IMAGE = 2
STRINGS = "{% for m in messages %}<|user|>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
PARTS = (
    "{% for m in messages %}<|user|>{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}"
    "{% endif %}{% endfor %};{% endfor %}{% if shout is defined %}!{{ shout }}{% endif %}"
)
REFUSING = "{{ raise_exception('only one message, please') if messages|length > 1 else messages[0].content }}"


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    tokenizer.add_tokens(["<plain added>"])
    return tokenizer


def sentence_piece() -> Tokenizer:
    words = ["▁the", "▁cat", "▁", "s", "a", "t", "中", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, [], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def word_piece() -> Tokenizer:
    words = ["the", "cat", "##s", "mat", "."]
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="the"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>").save_pretrained(path)
    return path


def text_of(folder: Path, template: str | None = None, *, images: bool = True) -> TransformersText:
    model = ServedModel("small", 512, images, 400, (1,))
    row, end = (IMAGE,) * 3, (3,)
    two_rows = SimpleNamespace(tokens=(0, *row, *end, *row), image_token=IMAGE, grid=(2, 3))
    one = SimpleNamespace(tokens=row, image_token=IMAGE, grid=())
    more: dict[str, Any] = {"placeholder": IMAGE, "layout": lambda w, h: two_rows if h > w else one} if images else {}
    if template is not None:
        folder = Path(
            shutil.copytree(
                folder, folder.with_name(f"with-{hashlib.sha1(template.encode()).hexdigest()}"), dirs_exist_ok=True
            )
        )
        (folder / "chat_template.jinja").write_text(template)
    return TransformersText(str(folder), model, **more)


def streamed(text: TransformersText, tokens: Sequence[int]) -> list[str]:
    stream = text.stream()
    return [*(stream.push(token) for token in tokens), stream.finish()]


@settings(deadline=None)
@given(said=st.text() | st.sampled_from(WORDS))
def test_a_stream_says_what_decoding_at_once_says(folder_text: TransformersText, said: str) -> None:
    tokens = folder_text.encode(said, add_special_tokens=False)
    pieces = streamed(folder_text, tokens)
    assert "".join(pieces) == folder_text.decode(tokens)
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in said


@settings(deadline=None)
@given(tokens=st.lists(st.integers(4, 390), max_size=30))
def test_any_tokens_are_told_as_they_are_decoded_at_once(folder_text: TransformersText, tokens: list[int]) -> None:
    assert "".join(streamed(folder_text, tokens)) == folder_text.decode(tokens)


@pytest.fixture(scope="module")
def folder_text(folder: Path) -> TransformersText:
    return text_of(folder)


@pytest.mark.parametrize("said", ["😀", "中", "👩‍👩‍👧", "e\u0301"])
def test_no_character_is_cut(folder_text: TransformersText, said: str) -> None:
    alphabet = {folder_text.token_text(token)[1]: token for token in range(4, 260)}
    tokens = [alphabet[bytes([byte])] for byte in said.encode()]
    told = [piece for piece in streamed(folder_text, tokens) if piece]
    assert told == list(said)
    *unfinished, _ = tokens[-len(said[-1].encode()) :]
    assert streamed(folder_text, unfinished) == [""] * len(unfinished) + ["\ufffd"]


def test_special_tokens_are_told_only_when_asked_for(folder_text: TransformersText) -> None:
    tokens = [3, *folder_text.encode("the cat", add_special_tokens=False), 1]
    assert folder_text.decode(tokens) == "the cat"
    assert folder_text.decode(tokens, skip_special_tokens=False) == "<|user|>the cat</s>"
    stream = folder_text.stream(skip_special_tokens=False)
    assert "".join([*map(stream.push, tokens), stream.finish()]) == "<|user|>the cat</s>"
    assert "".join(streamed(folder_text, tokens)) == "the cat"
    (added,) = folder_text.encode("<plain added>", add_special_tokens=False)
    assert folder_text.token_text(added) == ("<plain added>", b"<plain added>")
    assert "".join(streamed(folder_text, [added])) == "<plain added>"


def test_sentence_piece_tokens_have_bytes_too() -> None:
    tokenizer = sentence_piece()
    of = token_bytes(tokenizer)
    assert of is not None
    ids = [tokenizer.token_to_id(word) for word in ("▁the", "▁cat", "s", "<0xE4>", "<0xB8>", "<0xAD>", "中")]
    assert b"".join(of(token) for token in ids).decode() == " the cats中中"
    assert tokenizer.decode(ids) == "the cats中中"


def test_other_tokenizers_are_decoded_by_window() -> None:
    tokenizer = word_piece()
    assert token_bytes(tokenizer) is None
    stream = WindowStream(tokenizer.decode, frozenset())
    tokens = [0, 1, 2, 3, 4, 0, 1]
    assert "".join([*map(stream.push, tokens), stream.finish()]) == tokenizer.decode(tokens)


def test_a_window_gives_up_on_what_never_becomes_a_character() -> None:
    stream = WindowStream(lambda tokens: "\ufffd" * len(tokens), frozenset())
    told = [stream.push(0) for _ in range(40)]
    assert "".join([*told, stream.finish()]) == "\ufffd" * 40
    assert any(told)


def test_a_template_of_strings_gets_strings(folder: Path) -> None:
    text = text_of(folder, STRINGS)
    parts = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    told = text.chat_prompt([{"role": "user", "content": parts}, {"role": "user", "content": "and?"}], {})
    assert told == "<|user|><image>\nwhat is it?\n<|user|>and?\nA:"
    assert not text.chat_prompt([{"role": "user", "content": "x"}], {"add_generation_prompt": False}).endswith("A:")


def test_a_template_of_parts_gets_parts(folder: Path) -> None:
    text = text_of(folder, PARTS)
    parts = [{"type": "text", "text": "what is "}, {"type": "image"}, {"type": "text", "text": "?"}]
    assert text.chat_prompt([{"role": "user", "content": parts}], {}) == "<|user|>what is <image>?;"
    assert text.chat_prompt([{"role": "user", "content": "plain"}], {}) == "<|user|>plain;"
    shouting = {"chat_template_kwargs": {"shout": "hey"}}
    assert text.chat_prompt([{"role": "user", "content": "plain"}], shouting) == "<|user|>plain;!hey"


def test_what_a_template_refuses_is_the_clients_fault(folder: Path) -> None:
    text = text_of(folder, REFUSING)
    with pytest.raises(InvalidInput, match="only one message, please"):
        text.chat_prompt([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], {})
    for name in ("tokenize", "chat_template", "conversation"):
        with pytest.raises(InvalidInput, match=name):
            text.chat_prompt([{"role": "user", "content": "a"}], {"chat_template_kwargs": {name: "{{ 1 }}"}})
    with pytest.raises(InvalidInput, match="no chat template"):
        text_of(folder).chat_prompt([{"role": "user", "content": "a"}], {})


def test_one_placeholder_becomes_an_images_tokens(folder: Path) -> None:
    text = text_of(folder)
    placed, spans = text.place_images([9, IMAGE, 8, IMAGE], [("a", 10, 5), ("b", 5, 10)])
    assert placed == (9, 2, 2, 2, 8, 0, 2, 2, 2, 3, 2, 2, 2)
    assert [(span.content_hash, span.start, span.tokens, span.grid) for span in spans] == [
        ("a", 1, 3, ()),
        ("b", 6, 7, (2, 3)),
    ]
    with pytest.raises(InvalidInput, match="2 placeholders for 1 image"):
        text.place_images([IMAGE, IMAGE], [("a", 10, 5)])
    assert text_of(folder, images=False).place_images([1, 2], []) == ((1, 2), ())
    with pytest.raises(InvalidInput, match="takes no images"):
        text_of(folder, images=False).place_images([1, 2], [("a", 1, 1)])


def test_what_is_no_tokenizer_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be opened"):
        TransformersText(str(tmp_path), ServedModel("none", 8, False, 8, ()))


def test_the_model_in_the_package() -> None:
    text = open_text("tiny-vlm", "mine", context=100)
    assert (text.model.name, text.model.context_tokens, text.model.takes_images) == ("mine", 100, True)
    parts = [{"type": "image"}, {"type": "text", "text": "How many circles?"}]
    prompt = text.encode(text.chat_prompt([{"role": "user", "content": parts}], {}), add_special_tokens=False)
    placed, (span,) = text.place_images(prompt, [("hash", 200, 100)])
    assert len(placed) == len(prompt) - 1 + span.tokens
    assert len(set(placed[span.start : span.end])) == 1
    assert text.decode(placed) == "How many circles?"
