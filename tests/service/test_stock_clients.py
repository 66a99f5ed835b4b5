"""Classes of LangChain and LlamaIndex as they come, against the running service."""

import asyncio
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from tests.installation import TINY, Installation

# What these libraries warn of is theirs, such as connections that they leave for the garbage collector.
pytestmark = pytest.mark.filterwarnings("default")

# Not importorskip: a model would be trained first, for tests that are skipped then.
langchain = pytest.mark.skipif(
    find_spec("langchain_openai") is None, reason="langchain_openai is missing: pip install 'likeness[clients]'"
)
llamaindex = pytest.mark.skipif(
    find_spec("llama_index") is None, reason="llama_index is missing: pip install 'likeness[clients]'"
)

TEXTS = ["a parcel", "where is my parcel", "a refund"]
LONG = "word " * 1000


@pytest.fixture(scope="module")
def tuned(shared: Installation, pairs_file: str) -> str:
    """A tuned model, whose name has slashes and colons."""
    return shared.train(shared.create_job(pairs_file)).fine_tuned_model


def _expected(shared: Installation, texts: list[str], model: str, **options: Any) -> np.ndarray:
    answer = shared.openai.embeddings.create(model=model, input=texts, **options)
    return np.array([item.embedding for item in answer.data])


def _assert_same(vectors: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(vectors), expected, atol=1e-6)


# LangChain


def _openai_embeddings(shared: Installation, model: str, **options: Any) -> Any:
    # Without it LangChain sends the ids of OpenAI's tokens.
    return import_module("langchain_openai").OpenAIEmbeddings(
        model=model, base_url=f"{shared.url}/v1", api_key=shared.key, check_embedding_ctx_length=False, **options
    )


@langchain
def test_langchains_openai_embeddings(shared: Installation, tuned: str) -> None:
    for model in (TINY, tuned):
        embeddings = _openai_embeddings(shared, model)
        expected = _expected(shared, TEXTS, model)
        _assert_same(embeddings.embed_documents(TEXTS), expected)
        _assert_same(embeddings.embed_query(TEXTS[0]), expected[0])


@langchain
def test_langchains_openai_embeddings_with_fewer_dimensions(shared: Installation) -> None:
    vectors = _openai_embeddings(shared, TINY, dimensions=8).embed_documents(TEXTS)
    _assert_same(vectors, _expected(shared, TEXTS, TINY, dimensions=8))


@langchain
def test_langchains_openai_embeddings_in_batches_and_asynchronously(shared: Installation) -> None:
    texts = [f"text {n}" for n in range(50)]
    embeddings = _openai_embeddings(shared, TINY, chunk_size=7)
    expected = _expected(shared, texts, TINY)
    _assert_same(embeddings.embed_documents(texts), expected)
    _assert_same(asyncio.run(embeddings.aembed_documents(texts)), expected)


# LlamaIndex


def _openai_like(shared: Installation, model: str) -> Any:
    return import_module("llama_index.embeddings.openai_like").OpenAILikeEmbedding(
        model_name=model, api_base=f"{shared.url}/v1", api_key=shared.key
    )


def _text_embeddings_inference(shared: Installation, model: str) -> Any:
    address = shared.url if model == TINY else f"{shared.url}/tei/{model}"
    return import_module("llama_index.embeddings.text_embeddings_inference").TextEmbeddingsInference(
        model_name=model, base_url=address, auth_token=shared.key
    )


@llamaindex
@pytest.mark.parametrize("make", [_openai_like, _text_embeddings_inference])
def test_llamaindex_embeds_with_base_and_tuned_models(shared: Installation, tuned: str, make: Any) -> None:
    texts = [f"text {n}" for n in range(25)]  # more than it sends at a time
    for model in (TINY, tuned):
        embedding = make(shared, model)
        _assert_same(embedding.get_text_embedding_batch(texts), _expected(shared, texts, model))
        _assert_same([embedding.get_query_embedding(TEXTS[0])], _expected(shared, TEXTS[:1], model))
        found = asyncio.run(embedding.aget_text_embedding_batch(TEXTS))
        _assert_same(found, _expected(shared, TEXTS, model))


@llamaindex
@pytest.mark.parametrize("make", [_openai_like, _text_embeddings_inference])
def test_llamaindex_may_send_texts_that_have_to_be_cut(shared: Installation, make: Any) -> None:
    _assert_same([make(shared, TINY).get_text_embedding(LONG)], _expected(shared, [LONG], TINY))
