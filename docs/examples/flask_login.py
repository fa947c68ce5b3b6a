"""A login in Flask that counts failures only: `python -m docs.examples.flask_login`.

Whoever knows the password is never counted, however often he logs in. Guesses are, those at once
too: each is taken before its outcome is known, and given back after. To serve it:

    flask --app docs.examples.flask_login run

and then `curl -i -d name=ann -d password=guess http://127.0.0.1:5000/login`.
"""

from __future__ import annotations

from secrets import token_hex
from typing import Any

from flask import Flask, Request, Response, request
from werkzeug.security import check_password_hash, generate_password_hash

from throttled.contrib.flask import RateLimiter
from throttled.contrib.identity import client_ip
from throttled.contrib.keys import combined

#: In place of a database.
PASSWORDS = {"ann": generate_password_hash("correct horse")}
#: What is looked at for an account that is not there, so that it takes as long.
NO_PASSWORD = generate_password_hash(token_hex())

limiter = RateLimiter()


def account(request: Request) -> str:
    """The account that is tried, there or not, in the one way of writing it."""
    return request.form.get("name", "").strip().lower() or "nobody"


def failed(response: Response) -> bool:
    return response.status_code == 401


def create_app(**config: Any) -> Flask:
    """The site. Several processes need `THROTTLED_STORE_URL="redis://..."`."""
    app = Flask(__name__)
    app.config.update(config)
    limiter.init_app(app)

    # By account and address, so that a guesser locks out himself and not the owner; and by address
    # alone, for whoever tries one password on many accounts.
    @app.post("/login")
    @limiter.limit("20/hour", count_when=failed)
    @limiter.limit("3/minute", key=combined(client_ip(), account), count_when=failed)
    def login() -> tuple[str, int]:
        known = PASSWORDS.get(account(request), NO_PASSWORD)
        if check_password_hash(known, request.form.get("password", "")):
            return "welcome\n", 200
        return "wrong name or password\n", 401

    return app


def main() -> None:
    client = create_app().test_client()
    for name, password in [
        *[("ann", "correct horse")] * 4,
        *[("ann", f"guess {number}") for number in range(1, 5)],
        ("ann", "correct horse"),
        ("bob", "guess 1"),
    ]:
        response = client.post("/login", data={"name": name, "password": password})
        again = response.headers.get("Retry-After")
        print(f"{name}, {password!r}: {response.status_code}", end="")
        print(f", again in {again} s" if again else "")


if __name__ == "__main__":
    main()
