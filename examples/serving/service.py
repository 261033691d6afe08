"""Serves an exported ONNX file over HTTP, without PyTorch and without prenas.

Needs what `classify.py` beside it needs, and a web framework:

    pip install onnxruntime numpy pillow fastapi uvicorn
    python service.py runs/photos/subnets/00/onnx
    curl --data-binary @a.jpg 'http://127.0.0.1:8000/predict?top=3'

It listens on this machine only. Put a server with TLS and a login in front before others use it.
"""

import argparse
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool

from classify import Classifier, PictureError

MOST_BYTES = 10 * 2**20


def create_app(folder: Path, most_bytes: int = MOST_BYTES) -> FastAPI:
    """The service for one exported folder.

    Args:
        folder: what `prenas export --format onnx` wrote.
        most_bytes: the longest upload that is accepted.
    """
    classifier = Classifier(folder)
    app = FastAPI(title="Picture classifier")

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "classes": classifier.class_names}

    @app.post("/predict")
    async def predict(request: Request, top: Annotated[int, Query(ge=1)] = 3) -> dict[str, Any]:
        content = await body_of(request, most_bytes)
        try:
            # In a thread, so that other requests are answered meanwhile.
            classes = await run_in_threadpool(classifier.classify, content, top)
        except PictureError as error:
            raise HTTPException(400, f"the picture cannot be read: {error}") from None
        return {"classes": classes}

    return app


async def body_of(request: Request, most_bytes: int) -> bytes:
    """The bytes of an upload, which is refused as soon as it is too long."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most_bytes:
            raise HTTPException(413, f"the picture is longer than {most_bytes:,} bytes")
    if not content:
        raise HTTPException(400, "send the bytes of one picture as the body of the request")
    return bytes(content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serves an exported ONNX file over HTTP.")
    parser.add_argument("folder", type=Path, help="what `prenas export --format onnx` wrote")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    uvicorn.run(create_app(given.folder), host="127.0.0.1", port=given.port)
