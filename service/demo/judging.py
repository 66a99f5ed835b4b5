"""The demo's second half: the base and the tuned model over texts that training never saw."""

from collections.abc import Callable
from typing import Any

import numpy as np
from openai import OpenAI

from service.demo.docstrings import Pair
from service.demo.examples import Embedded, Example
from service.demo.progress import progress
from service.demo.report import print_example, print_similarity
from service.demo.retrieval import Floats, places
from service.demo.session import BASE_MODEL, Session

#: Texts a request; fewer than a server takes, so that progress moves.
BATCH = 128


def embed_held_out(session: Session, pairs: list[Pair], tuned: str) -> tuple[Embedded, Embedded]:
    """The n held-out pairs under the base and the tuned model."""
    session.step("Embed the held-out names and sentences with both models", "POST /v1/embeddings")
    texts = [pair.anchor for pair in pairs] + [pair.positive for pair in pairs]
    with progress(session.console, "texts") as report:
        before = _embed(session.client, BASE_MODEL, texts, lambda done: report(done, 2 * len(texts), "base model"))
        after = _embed(
            session.client,
            tuned,
            texts,
            lambda done: report(len(texts) + done, 2 * len(texts), "tuned model"),
        )
    session.say(f"Each of {len(pairs)} names now looks for its own among all the sentences, by cosine similarity:")
    return _ranked(before), _ranked(after)


def _embed(client: OpenAI, model: str, texts: list[str], report: Callable[[int], None]) -> Floats:
    """(m, d) for m texts, in requests of BATCH texts."""
    vectors = []
    for start in range(0, len(texts), BATCH):
        answer = client.embeddings.create(model=model, input=texts[start : start + BATCH])
        vectors += [item.embedding for item in answer.data]
        report(len(vectors))
    return np.array(vectors, dtype=np.float32)


def _ranked(vectors: Floats) -> Embedded:
    """Queries first, documents second: (2n, d)."""
    queries, documents = np.split(vectors, 2)
    return Embedded(queries, documents, places(queries, documents))


def look_closer(session: Session, examples: list[Example], pairs: list[Pair]) -> None:
    """Print some queries with what they find."""
    session.step("Look at some held-out names: what they find before and after")
    session.say("✓ marks the right sentence; the number before a sentence is its cosine to the name.")
    for example in examples:
        print_example(session.console, example, pairs)


def ask_similarity(session: Session, example: Example, pairs: list[Pair], tuned: str) -> None:
    """The cosines of a name with its sentence and with the base model's mistake, under both models."""
    session.step("Ask how alike two texts are, under both models", "POST /v1/similarity")
    query = example.pair.anchor
    wrong = next(near.index for near in example.before.neighbours if near.index != example.answer)
    asked = [(query, example.pair.positive), (query, pairs[wrong].positive)]
    session.say(f"The cosine of “{query}”, before → after, with")
    before, after = (_similarity(session.client, model, asked) for model in (BASE_MODEL, tuned))
    for name, old, new, (_, text) in zip(("right", "wrong"), before, after, asked, strict=True):
        print_similarity(session.console, name, old, new, text)


def _similarity(client: OpenAI, model: str, asked: list[tuple[str, str]]) -> list[float]:
    answer: Any = client.post("/similarity", body={"model": model, "pairs": asked}, cast_to=object)
    return [item["score"] for item in answer["data"]]
