"""A Flask application with one route for each thing that a server could get wrong."""

from __future__ import annotations

import hashlib
import os
import time

from flask import Flask, Response, jsonify, redirect, request, send_file, session, stream_with_context

app = Flask(__name__, static_folder=os.environ["SITE_FILES"], static_url_path="/static")
app.secret_key = "for tests"
GO = os.path.join(os.environ["SITE_FILES"], "go")


@app.get("/")
def index():
    return f"hello {request.args.get('name', 'nobody')}"


@app.post("/form")
def form():
    return jsonify(fields=request.form.to_dict(flat=False), length=request.content_length)


@app.post("/upload")
def upload():
    file = request.files["file"]
    content = file.read()
    return jsonify(
        name=file.filename,
        sha=hashlib.sha256(content).hexdigest(),
        size=len(content),
        note=request.form["note"],
    )


@app.post("/json")
def echo_json():
    return jsonify(request.get_json())


@app.post("/count")
def count():
    session["count"] = session.get("count", 0) + 1
    return {"count": session["count"], "pid": os.getpid()}


@app.get("/stream")
def stream():
    def generate():
        yield f"first for {request.args['name']}\n"
        while not os.path.exists(GO):
            time.sleep(0.005)
        yield "second\n"

    return Response(stream_with_context(generate()), mimetype="text/plain")


@app.get("/file")
def file():
    return send_file(os.path.join(os.environ["SITE_FILES"], "large.bin"))


@app.get("/raise")
def failing():
    raise RuntimeError("flask on purpose")


@app.get("/raise-late")
def failing_late():
    def generate():
        yield "some"
        raise RuntimeError("flask too late")

    return Response(generate())


@app.get("/where/<path:rest>")
def where(rest):
    return jsonify(url=request.url, rest=rest, remote=request.remote_addr, scheme=request.scheme)


@app.get("/redirect")
def away():
    return redirect("/?name=redirected")


def create_app():
    return app
