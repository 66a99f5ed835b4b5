import io
from collections.abc import Callable, Iterator

import httpx2
import pytest
from openai import OpenAI
from rich.console import Console

from service.demo.session import Session

Answer = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
def session_with() -> Iterator[Callable[[Answer], Session]]:
    """A session whose server is a function in this process."""
    clients = []

    def make(answer: Answer) -> Session:
        http_client = httpx2.Client(transport=httpx2.MockTransport(answer))
        client = OpenAI(base_url="http://demo/v1", api_key="k", http_client=http_client, max_retries=0)
        clients.append(client)
        return Session(client, "http://demo/v1", Console(file=io.StringIO(), width=100))

    yield make
    for client in clients:
        client.close()
