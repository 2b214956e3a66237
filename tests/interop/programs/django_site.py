"""A Django project in one file: admin with its static files, sessions in SQLite, forms, uploads, streams."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time

import django
from django.conf import settings

FILES = os.environ["SITE_FILES"]
GO = os.path.join(FILES, "go")

settings.configure(
    DEBUG=os.environ.get("SITE_DEBUG") == "1",
    SECRET_KEY="for tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "django.contrib.staticfiles",
    ],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.path.join(FILES, "site.db")}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    STATIC_URL="/static/",
    USE_TZ=True,
    LOGGING_CONFIG="logging.config.dictConfig",
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"], "level": "WARNING"},
    },
)
django.setup()

from django.contrib import admin  # noqa: E402
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler, StaticFilesHandler  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.handlers.asgi import ASGIRequest  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402


def index(request):
    return HttpResponse(f"hello {request.GET.get('name', 'nobody')}")


@csrf_exempt
def form(request):
    return JsonResponse({"fields": dict(request.POST.lists())})


@csrf_exempt
def upload(request):
    file = request.FILES["file"]
    content = file.read()
    sha = hashlib.sha256(content).hexdigest()
    return JsonResponse({"name": file.name, "sha": sha, "size": len(content), "note": request.POST["note"]})


@csrf_exempt
def echo_json(request):
    return HttpResponse(request.body, content_type="application/json")


@csrf_exempt
def count(request):
    request.session["count"] = request.session.get("count", 0) + 1
    return JsonResponse({"count": request.session["count"], "pid": os.getpid()})


def stream(request):
    def generate():
        yield f"first for {request.GET['name']}\n"
        while not os.path.exists(GO):
            time.sleep(0.005)
        yield "second\n"

    async def generate_async():  # under ASGI Django collects what a plain generator gives before it sends any of it
        yield f"first for {request.GET['name']}\n"
        while not os.path.exists(GO):  # noqa: ASYNC110, ASYNC240 - the test makes the file
            await asyncio.sleep(0.005)
        yield "second\n"

    chunks = generate_async() if isinstance(request, ASGIRequest) else generate()
    return StreamingHttpResponse(chunks, content_type="text/plain")


def file(request):
    return FileResponse(open(os.path.join(FILES, "large.bin"), "rb"))


def failing(request):
    raise RuntimeError("django on purpose")


def failing_late(request):
    def generate():
        yield "some"
        raise RuntimeError("django too late")

    async def generate_async():
        yield "some"
        raise RuntimeError("django too late")

    return StreamingHttpResponse(generate_async() if isinstance(request, ASGIRequest) else generate())


def where(request, rest):
    return JsonResponse(
        {
            "url": request.build_absolute_uri(),
            "rest": rest,
            "remote": request.META["REMOTE_ADDR"],
            "scheme": request.scheme,
        }
    )


urlpatterns = [
    path("", index),
    path("form", form),
    path("upload", upload),
    path("json", echo_json),
    path("count", count),
    path("stream", stream),
    path("file", file),
    path("raise", failing),
    path("raise-late", failing_late),
    path("where/<path:rest>", where),
    path("admin/", admin.site.urls),
]

wsgi = StaticFilesHandler(get_wsgi_application())
asgi = ASGIStaticFilesHandler(get_asgi_application())

if __name__ == "__main__":
    from django.contrib.auth import get_user_model
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    get_user_model().objects.create_superuser("admin", "admin@example.org", "secret")
