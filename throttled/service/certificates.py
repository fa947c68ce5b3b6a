"""The certificates of the service: read, and tried before gRPC gets them."""

from __future__ import annotations

import ssl
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from throttled._text import shown
from throttled.exceptions import SetUpError

if TYPE_CHECKING:
    from throttled.service.serving import Serving


def credentials_of(serving: Serving) -> Any:
    """What makes it TLS; None: it is not."""
    if serving.tls_cert is None or serving.tls_key is None:
        return None
    cert = _content("tls_cert", serving.tls_cert)
    key = _content("tls_key", serving.tls_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # gRPC takes anything, and fails at the first handshake.
    try:
        context.load_cert_chain(serving.tls_cert, serving.tls_key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise SetUpError(
            f"Invalid tls_cert: {shown(fspath(serving.tls_cert))}, must be a certificate in PEM "
            f"whose key is that of tls_key, not protected by a password: {error}."
        ) from None
    if serving.tls_client_ca is None:
        return grpc.ssl_server_credentials([(key, cert)])
    authorities = _content("tls_client_ca", serving.tls_client_ca)
    try:
        context.load_verify_locations(serving.tls_client_ca)
    except ssl.SSLError as error:
        raise SetUpError(
            f"Invalid tls_client_ca: {shown(fspath(serving.tls_client_ca))}, must be certificates "
            f"in PEM: {error}."
        ) from None
    return grpc.ssl_server_credentials([(key, cert)], authorities, require_client_auth=True)


def _content(what: str, path: str | PathLike[str]) -> bytes:
    try:
        return Path(fspath(path)).read_bytes()
    except (OSError, TypeError) as error:
        why = getattr(error, "strerror", None) or error
        raise SetUpError(f"Invalid {what}: {shown(str(path))}, {why}.") from None
