"""One client library against a server: `talk.py CLIENT URL KEY MODEL`, with {"query", "documents", "top_n"} on standard
input; writes [[index, score], ...] as the library gave it. Run by `tests/test_serve_clients.py` in an environment of
its own, without this package.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

Found = list[tuple[int, float]]


def cohere_v2(url: str, key: str, model: str, body: dict[str, Any]) -> Found:
    import cohere

    client = cohere.ClientV2(key, base_url=url)
    try:
        client.rerank(model="no such model", query="q", documents=["a"])
    except cohere.errors.NotFoundError as error:
        assert "is not served here" in str(error.body), error.body
    else:
        raise AssertionError("another model was served")
    try:
        cohere.ClientV2("another key", base_url=url).rerank(model=model, query="q", documents=["a"])
    except cohere.errors.UnauthorizedError as error:
        assert "needs a key" in str(error.body), error.body
    else:
        raise AssertionError("another key opened the server")
    found = client.rerank(model=model, max_tokens_per_doc=4096, **body)
    assert found.meta is not None
    assert found.meta.api_version is not None
    assert found.meta.api_version.version == "2"
    return [(item.index, item.relevance_score) for item in found.results]


def cohere_v1(url: str, key: str, model: str, body: dict[str, Any]) -> Found:
    import cohere

    found = cohere.Client(key, base_url=url).rerank(model=model, return_documents=True, **body)
    for item in found.results:
        assert item.document is not None
        assert item.document.text == body["documents"][item.index]
    return [(item.index, item.relevance_score) for item in found.results]


def litellm(provider: str, *, echo: bool = True) -> Callable[[str, str, str, dict[str, Any]], Found]:
    def talk(url: str, key: str, model: str, body: dict[str, Any]) -> Found:
        import litellm

        found = litellm.rerank(model=f"{provider}/{model}", api_base=url, api_key=key, return_documents=echo, **body)
        for item in found.results:
            assert not echo or item["document"]["text"] == body["documents"][item["index"]], item
        return [(item["index"], item["relevance_score"]) for item in found.results]

    return talk


def langchain_cohere(url: str, key: str, model: str, body: dict[str, Any]) -> Found:
    from langchain_cohere import CohereRerank

    return _compressed(CohereRerank(cohere_api_key=key, base_url=url, model=model, top_n=body["top_n"]), body)


def langchain_jina(url: str, key: str, model: str, body: dict[str, Any]) -> Found:
    from langchain_community.document_compressors import jina_rerank

    jina_rerank.JINA_API_URL = f"{url}/v1/rerank"  # the class has no option for it
    return _compressed(jina_rerank.JinaRerank(jina_api_key=key, model=model, top_n=body["top_n"]), body)


def _compressed(compressor: Any, body: dict[str, Any]) -> Found:
    from langchain_core.documents import Document

    documents = [Document(text, metadata={"place": place}) for place, text in enumerate(body["documents"])]
    found = compressor.compress_documents(documents, body["query"])
    return [(item.metadata["place"], item.metadata["relevance_score"]) for item in found]


def llama_index_tei(url: str, key: str, model: str, body: dict[str, Any]) -> Found:
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    del model
    nodes = [
        NodeWithScore(node=TextNode(text=text, metadata={"place": place}), score=0.0)
        for place, text in enumerate(body["documents"])
    ]
    client = TextEmbeddingInference(base_url=url, top_n=body["top_n"], auth_token=f"Bearer {key}")
    found = client.postprocess_nodes(nodes, QueryBundle(body["query"]))
    return [(item.node.metadata["place"], item.score) for item in found]


CLIENTS = {
    "cohere-v2": cohere_v2,
    "cohere-v1": cohere_v1,
    "litellm-cohere": litellm("cohere"),
    "litellm-jina": litellm("jina_ai"),
    "litellm-vllm": litellm("hosted_vllm"),
    "litellm-infinity": litellm("infinity", echo=False),  # it wants documents as strings, which Jina does not send
    "litellm-tei": litellm("huggingface"),
    "langchain-cohere": langchain_cohere,
    "langchain-jina": langchain_jina,
    "llama-index-tei": llama_index_tei,
}

if __name__ == "__main__":
    name, *where = sys.argv[1:]
    sys.stdout.write(json.dumps(CLIENTS[name](*where, json.load(sys.stdin))))
