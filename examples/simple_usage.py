"""Step two of three: serve a model with images, ask it over OpenAI's API, see who did what.

On the command line: tierline serve tiny-vlm --instances 2 --policy adaptive, then
tierline chat -m "What is in this picture?" --image shapes.png and tierline top http://127.0.0.1:8000
"""

import base64
import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator

import httpx
from PIL import Image, ImageDraw

SERVE = ["serve", "tiny-vlm", "--instances", "2", "--policy", "adaptive", "--dtype", "fp32", "--port", "0"]


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The address of a server that is ready; it ends with the block."""
    command = [sys.executable, "-m", "tierline.cli.main", *SERVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            listening = server.stdout.readline()  # "Listening on http://127.0.0.1:34567"
            if not server.stdout.readline():  # "Ready after 5.1 s: 2 instances of tiny-vlm."
                sys.exit(2)  # it has said why on stderr
            yield listening.split()[-1]
        finally:
            server.terminate()


def picture() -> str:
    """A red circle beside a blue square, as a data URI."""
    image = Image.new("RGB", (112, 112), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 42, 36, 70), fill="red")
    draw.rectangle((80, 42, 108, 70), fill="blue")
    png = io.BytesIO()
    image.save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def ask(url: str, question: str, image: str = "") -> str:
    text = {"type": "text", "text": question}
    content = [{"type": "image_url", "image_url": {"url": image}}, text] if image else [text]
    body = {
        "model": "tiny-vlm",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 30,
    }
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"])


with served() as url:
    image = picture()
    print("What is in the picture?", ask(url, "What is in the picture?", image))
    print("What colour is the square?", ask(url, "What colour is the square?", image))
    print("Without a picture:", ask(url, "Hello!"))

    status = httpx.get(f"{url}/tierline/status").json()
    print(f"\n{len(status['instances'])} instances, policy {status['deployment']['policy']}")
    for instance in sorted(status["instances"], key=lambda each: each["name"]):
        print(f"{instance['name']} may do {instance['roles']} for {instance['group']} requests")
    print(f"{status['image_queries']} images looked up, {status['image_hits']} of them found encoded already")
