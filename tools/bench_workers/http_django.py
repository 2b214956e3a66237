"""A small Django project in one file: one view with a template, Django's usual middleware, no database."""

from __future__ import annotations

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path

TEMPLATE = """<!doctype html><title>{{ title }}</title><h1>{{ title|upper }}</h1>
<ul>{% for item in items %}<li class="{% cycle 'odd' 'even' %}">{{ forloop.counter }}. {{ item }}</li>{% endfor %}</ul>
<form method="post">{% csrf_token %}<input name="q" value="{{ request.GET.q }}"></form>"""

settings.configure(
    SECRET_KEY="for measurements",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "context_processors": ["django.template.context_processors.request"],
                "loaders": [
                    (
                        "django.template.loaders.cached.Loader",
                        [("django.template.loaders.locmem.Loader", {"page.html": TEMPLATE})],
                    )
                ],
            },
        }
    ],
)


def page(request: HttpRequest) -> HttpResponse:
    """A page as pages are."""
    return render(request, "page.html", {"title": "Hello", "items": ["one", "two", "three", "four", "five"]})


urlpatterns = [path("", page)]
django.setup(set_prefix=False)
application = WSGIHandler()
