"""A Starlette and a FastAPI application with one route for each thing that a server could get wrong."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.routing import Mount, Route

FILES = os.environ["SITE_FILES"]
GO = os.path.join(FILES, "go")
LOG = os.path.join(FILES, "site.log")


def log(text):
    with open(LOG, "a") as file:
        file.write(text + "\n")


async def gone_to_go():
    while not os.path.exists(GO):  # noqa: ASYNC110, ASYNC240 - the test makes the file
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def lifespan(app):
    log("startup")
    yield {"pool": "open"}
    log("shutdown")


async def index(request):
    return PlainTextResponse(f"hello {request.query_params.get('name', 'nobody')}, pool {request.state.pool}")


async def form(request):
    async with request.form() as fields:
        return JSONResponse({"fields": {key: fields.getlist(key) for key in fields}})


async def upload(request):
    async with request.form() as fields:
        content = await fields["file"].read()
        note = fields["note"]
        name = fields["file"].filename
    sha = hashlib.sha256(content).hexdigest()
    return JSONResponse({"name": name, "sha": sha, "size": len(content), "note": note})


async def echo_json(request):
    return JSONResponse(await request.json())


async def count(request):
    request.session["count"] = request.session.get("count", 0) + 1
    return JSONResponse({"count": request.session["count"], "pid": os.getpid()})


async def stream(request):
    async def generate():
        yield f"first for {request.query_params['name']}\n"
        await gone_to_go()
        yield "second\n"

    return StreamingResponse(generate(), media_type="text/plain")


async def events(request):
    async def generate():
        try:
            number = 0
            while True:
                yield f"data: {number}\n\n"
                number += 1
                await asyncio.sleep(0.01)
        finally:
            log("events closed")

    return StreamingResponse(generate(), media_type="text/event-stream")


async def file(request):
    return FileResponse(os.path.join(FILES, "large.bin"))


async def failing(request):
    raise RuntimeError("starlette on purpose")


async def where(request):
    return JSONResponse(
        {
            "url": str(request.url),
            "rest": request.path_params["rest"],
            "remote": request.client.host,
            "scheme": request.url.scheme,
        }
    )


class Stamp(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        response = await call_next(request)
        response.headers["X-Stamp"] = "stamped"
        return response


app = Starlette(
    routes=[
        Route("/", index),
        Route("/form", form, methods=["POST"]),
        Route("/upload", upload, methods=["POST"]),
        Route("/json", echo_json, methods=["POST"]),
        Route("/count", count, methods=["POST"]),
        Route("/stream", stream),
        Route("/events", events),
        Route("/file", file),
        Route("/raise", failing),
        Route("/where/{rest:path}", where),
        Mount("/static", StaticFiles(directory=FILES)),
    ],
    middleware=[Middleware(SessionMiddleware, secret_key="for tests"), Middleware(Stamp)],
    lifespan=lifespan,
)

api = FastAPI(lifespan=lifespan)


class Item(BaseModel):
    name: str
    price: float


async def tenant(request: Request):
    yield request.headers.get("x-tenant", "none")


@api.get("/items/{item_id}")
async def item(item_id: int, who: Annotated[str, Depends(tenant)], q: str = ""):
    return {"item": item_id, "q": q, "tenant": who}


@api.get("/")
async def api_index():
    return "hello"


@api.get("/sync")
def in_thread():
    return {"thread": True}


@api.post("/items")
async def create(new: Item, tasks: BackgroundTasks):
    tasks.add_task(log, f"created {new.name}")
    return new


@api.post("/upload")
async def receive(file: Annotated[UploadFile, File()], note: Annotated[str, Form()]):
    content = await file.read()
    sha = hashlib.sha256(content).hexdigest()
    return {"name": file.filename, "sha": sha, "size": len(content), "note": note}


@api.get("/raise")
async def api_failing():
    raise RuntimeError("fastapi on purpose")


@api.get("/raise-late")
async def api_failing_late():
    async def generate():
        yield "some"
        raise RuntimeError("fastapi too late")

    return StreamingResponse(generate())
