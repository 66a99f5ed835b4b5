import httpx2
import openai
import pytest

from service.demo.failures import EXPECTED, DemoError, explain

URL = "http://127.0.0.1:1/v1"
REQUEST = httpx2.Request("POST", f"{URL}/files")


def refusal(kind, status, body):
    response = httpx2.Response(status, request=REQUEST, headers={"x-request-id": "req-7"})
    return kind("said so", response=response, body=body)


@pytest.mark.parametrize(
    ("error", "message", "remedy"),
    [
        (openai.APIConnectionError(request=REQUEST), f"No server answers at {URL}.", "likeness up"),
        (httpx2.ReadError("cut"), f"No server answers at {URL}.", "likeness up"),
        (refusal(openai.AuthenticationError, 401, {}), "The server refused the API key.", "likeness keys"),
        (
            refusal(openai.BadRequestError, 400, {"code": "out_of_range", "message": "at most 7"}),
            "POST /v1/files was refused with 400 (out_of_range): at most 7",
            "update",
        ),
        (refusal(openai.NotFoundError, 404, None), "POST /v1/files was refused with 404.", "/v1"),
        (
            refusal(openai.InternalServerError, 503, {"code": "storage_full", "message": "disk is full"}),
            "POST /v1/files was refused with 503: disk is full",
            "req-7",
        ),
        (PermissionError(13, "Permission denied", "/x"), "The dataset can't be written", "folder"),
        (DemoError("As it was.", "Do this."), "As it was.", "Do this."),
    ],
)
def test_every_failure_says_what_happened_and_what_to_do(error, message, remedy):
    assert isinstance(error, EXPECTED)
    failure = explain(error, URL)
    assert failure.message.startswith(message)
    assert remedy in failure.remedy
