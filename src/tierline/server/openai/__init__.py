"""The OpenAI front door: chat and text completions over whatever generates, streamed or whole, with images.

`create_app(text, generator, options)` makes the application, `run(app, host, port)` serves it. It knows a model only as
`ModelText` and its instances only as `Generator` (`core/serving_contracts.py`).
"""

from tierline.server.openai.app import create_app
from tierline.server.openai.options import FrontOptions, ImageLimits
from tierline.server.openai.run import run, serve

__all__ = ["FrontOptions", "ImageLimits", "create_app", "run", "serve"]
