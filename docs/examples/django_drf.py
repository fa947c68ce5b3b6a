"""A Django site with an API: a limit for all, a login that counts failures only, REST throttles.

`python -m docs.examples.django_drf` makes a few requests to it, in this process;
`uvicorn docs.examples.django_drf:asgi` serves it, and so does any WSGI server with `:wsgi`.
For several processes say `"STORE": "redis://localhost:6379/0"`.
"""

from __future__ import annotations

from typing import Any

import django
from django.conf import settings

from throttled.contrib.django import RateLimit, rate_limit
from throttled.contrib.keys import by_header

settings.configure(
    SECRET_KEY="of no use to anybody",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["rest_framework"],
    MIDDLEWARE=["throttled.contrib.django.RateLimitMiddleware"],
    THROTTLED={
        "LIMIT": "100/minute",
        "RULES": {"/api/*": RateLimit("10/s burst 20", key=by_header("X-API-Key"))},
        "EXCLUDE": ["/health"],
    },
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "UNAUTHENTICATED_USER": None,
        "DEFAULT_THROTTLE_CLASSES": ["throttled.contrib.drf.ScopedRateThrottle"],
        "DEFAULT_THROTTLE_RATES": {"reports": "2/min"},
        "EXCEPTION_HANDLER": "throttled.contrib.drf.exception_handler",
    },
)
django.setup()

# Only now, for they look at the settings.
from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402


@rate_limit("3/hour", count_when=lambda response: response.status_code == 401)
async def login(request: Any) -> HttpResponse:
    right = request.GET.get("password") == "sesame"
    return HttpResponse("welcome\n") if right else HttpResponse("wrong\n", status=401)


def health(request: Any) -> HttpResponse:
    return HttpResponse("well\n")


class Reports(APIView):
    throttle_scope = "reports"

    def get(self, request: Any, number: int) -> Response:
        return Response({"report": number})


urlpatterns = [
    path("login", login),
    path("health", health),
    path("api/reports/<int:number>", Reports.as_view()),
]

asgi = get_asgi_application()
wsgi = get_wsgi_application()


def main() -> None:
    from django.test import Client

    client = Client()
    for target in (
        "/login?password=sesame",
        *["/login?password=guess"] * 4,
        "/login?password=sesame",
        *[f"/api/reports/{number}" for number in (1, 2, 3)],
        "/health",
    ):
        response = client.get(target)
        again = response.get("Retry-After")
        told = response.get("RateLimit", "")
        print(f"{target:24} {response.status_code}", f"again in {again} s" if again else told)


if __name__ == "__main__":
    main()
