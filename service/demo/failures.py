"""What can go wrong in the demo, said so that its reader can act on it."""

import json
import urllib.request
from typing import Any

import httpx2
import openai


class DemoError(Exception):
    """The demo can't go on. `remedy` says what to do about it."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


#: Everything that talking to a server or writing the dataset may raise.
EXPECTED = (DemoError, openai.OpenAIError, httpx2.HTTPError, json.JSONDecodeError, OSError)


def explain(error: Exception, base_url: str) -> DemoError:
    """One of EXPECTED as a message and a remedy."""
    match error:
        case DemoError():
            return error
        case openai.APIConnectionError() | httpx2.TransportError():
            return DemoError(f"No server answers at {base_url}.", "Start one with `likeness up`." + _proxy_hint())
        case openai.AuthenticationError():
            return DemoError("The server refused the API key.", "Pass a key of this server; `likeness keys` makes one.")
        case openai.APIStatusError():
            return _refused(error)
        case OSError():
            return DemoError(f"The dataset can't be written: {error}", "Choose another folder to work in.")
    return DemoError(
        f"What answers at {base_url} makes no sense here: {error}",
        "Check that this is a Likeness server's address and ends in /v1.",
    )


def _refused(error: openai.APIStatusError) -> DemoError:
    request = error.request
    what = f"{request.method} {request.url.path} was refused with {error.status_code}"
    body: Any = error.body
    reason = body["message"] if isinstance(body, dict) and "message" in body else error.message
    if error.status_code >= 500:
        return DemoError(f"{what}: {reason}", f"Look for request {error.request_id} in the server's log.")
    if error.status_code == 404 and error.code is None:
        return DemoError(f"{what}.", "Check that this is a Likeness server's address and ends in /v1.")
    return DemoError(f"{what} ({error.code}): {reason}", "If that is not for you to change, update server and demo.")


def _proxy_hint() -> str:
    proxied = "http" in urllib.request.getproxies()
    return " A proxy is set: exempt this host from it with NO_PROXY." if proxied else ""
