"""Images in requests: formats, turning, limits, broken files, and what a repeated one costs."""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image, ImageOps

from tierline.core.errors import PixelsNeeded
from tierline.core.request import ServedModel
from tierline.server.openai import FrontOptions, ImageLimits
from tierline.server.openai.image_headers import read_header
from tierline.testing.instant import ByteText, InstantGenerator

from .conftest import Door, chat

pytestmark = pytest.mark.anyio


def picture(width: int = 8, height: int = 6, mode: str = "RGB") -> Image.Image:
    pixels = bytes((3 * x + 5 * y + 7 * c) % 256 for y in range(height) for x in range(width) for c in range(3))
    return Image.frombytes("RGB", (width, height), pixels).convert(mode)


def file(image: Image.Image, kind: str, **more: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, kind, **more)
    return made.getvalue()


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def asking(*uris: str, text: str = "what is it?") -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": each}} for each in uris]
    return chat([*parts, {"type": "text", "text": text}], max_tokens=1)


@pytest.fixture
def door(generator: InstantGenerator) -> Door:
    return Door(generator, ByteText(), FrontOptions(images=ImageLimits(max_pixels=10_000, max_bytes=100_000)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
async def test_formats_and_modes_become_the_rgb_that_transformers_makes(door: Door, kind: str, mode: str) -> None:
    try:
        data = file(picture(mode=mode), kind)
    except (OSError, ValueError):
        pytest.skip(f"{kind} has no {mode}")
    async with door.client() as client:
        answer = await client.post("/v1/chat/completions", json=asking(uri(data, "image/anything")))
    assert answer.status_code == 200, answer.text
    ((request, pictures),) = door.generator.requests
    name = hashlib.sha256(data).hexdigest()
    (span,) = request.images
    assert (span.content_hash, span.start, span.tokens, span.grid) == (name, len("user: "), 16, (6, 8))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    found = pictures[name]
    assert (found.width, found.height, found.rgb) == (8, 6, expected.tobytes())
    assert answer.json()["usage"]["prompt_tokens"] == len("user: what is it?\nassistant: ") + 16


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
async def test_a_picture_is_turned_as_its_exif_says(door: Door, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(picture(), kind, exif=exif)
    async with door.client() as client:
        assert (await client.post("/v1/chat/completions", json=asking(uri(data)))).status_code == 200
    ((request, pictures),) = door.generator.requests
    (found,) = pictures.values()
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert (found.width, found.height) == expected.size == ((6, 8) if orientation > 4 else (8, 6))
    assert found.rgb == expected.tobytes()
    assert request.images[0].grid == (found.height, found.width)


async def test_only_the_first_frame_of_many(door: Door) -> None:
    frames = [picture(), ImageOps.invert(picture())]
    data = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    async with door.client() as client:
        await client.post("/v1/chat/completions", json=asking(uri(data)))
    (found,) = door.generator.requests[0][1].values()
    assert found.rgb == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that says it has so many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def double_header() -> bytes:
    """A PNG whose second header is larger than its first."""
    data = bomb(4, 4)
    return data[:33] + bomb(20_000, 20_000)[8:33] + data[33:]


GOOD = file(picture(), "PNG")
JPEG = file(picture(60, 60), "JPEG")
BROKEN = {
    "0 bytes": (uri(b""), "0 bytes"),
    "no image": (uri(b"hello, this is no image at all"), "no PNG, JPEG"),
    "svg": (uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "no PNG, JPEG"),
    "cut png": (uri(GOOD[:-30]), "broken or cut short"),
    "cut jpeg": (uri(JPEG[: len(JPEG) // 2]), "broken or cut short"),
    "header only": (uri(GOOD[:20]), "ends within its header"),
    "jpeg header only": (uri(JPEG[:10]), "ends within its header"),
    "wrong base64": ("data:image/png;base64,!!!!", "base64 is wrong"),
    "cut base64": (uri(GOOD)[:-3], "base64 is wrong"),
    "garbage in base64": (uri(GOOD)[:40] + "\n" + uri(GOOD)[40:], "base64 is wrong"),
    "padding within": (uri(GOOD)[:40] + "====" + uri(GOOD)[40:], "base64 is wrong"),
    "not base64": ("data:image/png,hello", "no ';base64,'"),
    "no data": ("data:image/png;base64", "no ';base64,'"),
    "a path": ("/etc/passwd", "data URI"),
    "a file": ("file:///etc/passwd", "data URI"),
    "empty": ("", "data URI"),
    "remote": ("http://example.com/x.png", "fetches no images"),
    "20,000 x 20,000": (uri(bomb(20_000, 20_000)), "20000x20000 pixels; 10000"),
    "two headers": (uri(double_header()), "cannot be decoded|20000x20000"),
    "zero wide": (uri(bomb(0, 10)), "0x10"),
    "no pixels": (uri(bomb(50, 50)), "broken or cut short"),
    "many bytes": (uri(b"\x89PNG\r\n\x1a\n" + b"x" * 200_000), "bytes; 100000 are allowed"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_image_is_one_clear_sentence(door: Door, name: str) -> None:
    given, said = BROKEN[name]
    async with door.client() as client:
        for stream in (False, True):
            answer = await client.post("/v1/chat/completions", json=asking(given) | {"stream": stream})
            error = answer.json()["error"]
            assert answer.status_code == 400
            assert (error["type"], error["param"]) == ("invalid_request_error", "messages")
            assert any(part in error["message"] for part in said.split("|")), error["message"]
            assert error["message"].startswith("messages[0].content[0]")
            assert "\n" not in error["message"] and len(error["message"]) < 400
        good = await client.post("/v1/chat/completions", json=asking(uri(GOOD)))
    assert good.status_code == 200


@pytest.mark.parametrize("given", [5, None, {}, {"url": 7}, {"url": None}, [], "x", {"url": ["data:"]}, True])
async def test_an_image_url_of_another_type_is_refused(door: Door, given: Any) -> None:
    async with door.client() as client:
        answer = await client.post("/v1/chat/completions", json=chat([{"type": "image_url", "image_url": given}]))
        missing = await client.post("/v1/chat/completions", json=chat([{"type": "image_url"}]))
    assert (answer.status_code, missing.status_code) == (400, 400)
    assert answer.json()["error"]["message"].startswith("messages[0].content[0]")


async def test_an_address_may_stand_alone_and_be_escaped(door: Door) -> None:
    body = '{"messages":[{"role":"user","content":[{"type":"image_url","image_url":"%s"}]}]}'
    address = uri(file(picture(40, 40), "BMP"))
    late = f"{address[:300]}\\u{ord(address[300]):04x}{address[301:]}"
    async with door.client() as client:
        for escaped in (address, address.replace("/", "\\/"), address[:22] + address[22:].replace("/", "\\/"), late):
            answer = await client.post(
                "/v1/chat/completions", content=body % escaped, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 200, answer.text
    assert len({request.images for request, _ in door.generator.requests}) == 1


async def test_a_repeated_image_is_not_decoded_while_its_embeddings_are_cached(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    door.generator.caches_images = True
    async with door.client() as client:
        await client.post("/v1/chat/completions", json=asking(uri(GOOD)))
        monkeypatch.setattr(Image, "open", None)  # whoever decodes now fails
        again = await client.post("/v1/chat/completions", json=asking(uri(GOOD), text="and now?"))
        metrics = (await client.get("/metrics")).text
    assert again.status_code == 200
    (_, first), (request, second) = door.generator.requests
    assert (len(first), len(second)) == (1, 0)
    assert request.images[0].grid == (6, 8)
    assert 'tierline:front_images_total{cost="decoded",model_name="instant"} 1.0' in metrics
    assert 'tierline:front_images_total{cost="known",model_name="instant"} 1.0' in metrics


async def test_a_picture_that_was_dropped_meanwhile_is_decoded_after_all(door: Door) -> None:
    name = hashlib.sha256(GOOD).hexdigest()
    door.generator.caches_images = True
    async with door.client() as client:
        await client.post("/v1/chat/completions", json=asking(uri(GOOD)))
        door.generator.forgets.add(name)
        answer = await client.post("/v1/chat/completions", json=asking(uri(GOOD), text="again"))
        door.generator.cached.clear()
        wanted = await client.post("/v1/chat/completions", json=asking(uri(GOOD), text="again"))
    assert (answer.status_code, wanted.status_code) == (200, 200)
    assert [sorted(pictures) for _, pictures in door.generator.requests] == [[name], [], [name], [name]]


async def test_pictures_that_are_dropped_again_and_again_lose_the_request(door: Door) -> None:
    door.generator.fail = lambda request: PixelsNeeded((hashlib.sha256(GOOD).hexdigest(),))
    async with door.client() as client:
        answer = await client.post("/v1/chat/completions", json=asking(uri(GOOD)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "request_lost")


async def test_one_image_twice_is_decoded_once(door: Door) -> None:
    other = file(picture(9, 9), "PNG")
    async with door.client() as client:
        answer = await client.post("/v1/chat/completions", json=asking(uri(GOOD), uri(other), uri(GOOD)))
    assert answer.status_code == 200
    ((request, pictures),) = door.generator.requests
    hashes = [span.content_hash for span in request.images]
    assert hashes[0] == hashes[2] != hashes[1]
    assert set(pictures) == set(hashes)


async def test_how_many_images_and_pixels(generator: InstantGenerator) -> None:
    limits = ImageLimits(max_request_pixels=100)
    door = Door(generator, ByteText(), FrontOptions(images=limits))
    blind = Door(generator, ByteText(ServedModel("blind", 100, False, 258, (256,))), FrontOptions())
    many = [uri(file(picture(5 + number, 5), "PNG")) for number in range(5)]
    async with door.client() as client, blind.client() as other:
        five = await client.post("/v1/chat/completions", json=asking(*many))
        four = await client.post("/v1/chat/completions", json=asking(*many[:4]))
        three = await client.post("/v1/chat/completions", json=asking(*many[:3]))
        none = await other.post("/v1/chat/completions", json=asking(many[0]) | {"model": None})
    assert (five.status_code, five.json()["error"]["code"]) == (400, "too_many_images")
    assert "130 pixels; 100 in all" in four.json()["error"]["message"]
    assert three.status_code == 200
    assert (none.status_code, none.json()["error"]["code"]) == (400, "image_unsupported")


async def test_a_placeholder_in_the_text_does_not_pass_for_an_image(door: Door) -> None:
    async with door.client() as client:
        answer = await client.post("/v1/chat/completions", json=asking(uri(GOOD), text="<image>"))
        alone = await client.post("/v1/chat/completions", json=chat("<image>"))
    assert (answer.status_code, alone.status_code) == (400, 400)


async def test_a_format_can_be_left_out(generator: InstantGenerator) -> None:
    door = Door(generator, ByteText(), FrontOptions(images=ImageLimits(formats=("JPEG",))))
    async with door.client() as client:
        answer = await client.post("/v1/chat/completions", json=asking(uri(GOOD)))
    assert "PNG is not among" in answer.json()["error"]["message"]


async def test_what_is_in_memory_is_limited(generator: InstantGenerator) -> None:
    door = Door(generator, ByteText(), FrontOptions(max_held_bytes=3000))
    large = uri(file(picture(40, 40), "BMP"))
    async with door.client() as client:
        first = await client.post("/v1/chat/completions", json=asking(large))
        small = await client.post("/v1/chat/completions", json=asking(uri(GOOD)))
        status = (await client.get("/tierline/status")).json()
    assert (first.status_code, first.json()["error"]["code"]) == (503, "overloaded")
    assert small.status_code == 200
    assert status["front"]["held_bytes"] == 0


@pytest.mark.parametrize("progressive", [False, True])
def test_headers_are_read_as_pil_reads_them(progressive: bool) -> None:
    for kind, more in {
        "PNG": {}, "JPEG": {"progressive": progressive, "comment": b"x" * 50}, "GIF": {}, "BMP": {},
        "WEBP": {"lossless": progressive, "quality": 50},
    }.items():  # fmt: skip
        for size in ((1, 1), (17, 5), (300, 200)):
            assert read_header(file(picture(*size), kind, **more)) == (kind, *size)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_header(file(picture(17, 5, "RGBA"), "WEBP", exif=exif)) == ("WEBP", 17, 5)
