"""One client library against a server: `talk.py CLIENT URL KEY MODEL`, with {"query", "documents", "top_n"} on standard
input; writes [[index, score, text], ...] as the library gave it, or {"error": text} with what it raised.

Run by `tests/test_serve_clients.py` in an environment of its own, without this package. The text is the library's own
where it gives one, else that of the index it gives.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

Body = dict[str, Any]
Found = list[tuple[int, float, str]]
Talk = Callable[[str, str, str, Body], Found]


def cohere_v2(url: str, key: str, model: str, body: Body) -> Found:
    import cohere

    client = cohere.ClientV2(key, base_url=url)
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
    return [(item.index, item.relevance_score, body["documents"][item.index]) for item in found.results]


def cohere_spans(url: str, key: str, model: str, body: Body) -> Found:
    import cohere

    client = cohere.ClientV2(key, base_url=f"{url}/v2")  # asks for /v2/v2/rerank
    options = cohere.RerankRelevantSpans(mode="enabled", threshold=0.05, max_spans=2)
    found = client.rerank(model=model, relevant_spans=options, **body)
    for item in found.results:
        text = body["documents"][item.index]
        scores = [span.score for span in item.relevant_spans or ()]
        assert scores == sorted(scores, reverse=True)
        assert all(score >= 0.05 for score in scores)
        assert all(text[span.start : span.end].strip() for span in item.relevant_spans or ())
    best = found.results[0]
    assert best.relevant_spans
    assert len(best.relevant_spans) <= 2
    off = client.rerank(model=model, relevant_spans=cohere.RerankRelevantSpans(mode="disabled"), **body)
    assert [item.relevant_spans for item in off.results] == [None] * len(off.results)
    return [(item.index, item.relevance_score, body["documents"][item.index]) for item in found.results]


def cohere_v1(url: str, key: str, model: str, body: Body) -> Found:
    import cohere

    found = cohere.Client(key, base_url=url).rerank(model=model, return_documents=True, **body)
    return [(item.index, item.relevance_score, item.document.text) for item in found.results]


def litellm(provider: str, *, echo: bool = True, suffix: str = "") -> Talk:
    def talk(url: str, key: str, model: str, body: Body) -> Found:
        import litellm

        found = litellm.rerank(
            model=f"{provider}/{model}", api_base=f"{url}{suffix}", api_key=key, return_documents=echo, **body
        )
        texts = body["documents"]
        return [
            (item["index"], item["relevance_score"], item["document"]["text"] if echo else texts[item["index"]])
            for item in found.results
        ]

    return talk


def voyage(url: str, key: str, model: str, body: Body) -> Found:
    import voyageai

    client = voyageai.Client(api_key=key, base_url=f"{url}/v1", max_retries=0)
    whole = client.rerank(body["query"], body["documents"], model)
    assert len(whole.results) == len(body["documents"])
    found = client.rerank(body["query"], body["documents"], model, top_k=body["top_n"])
    assert found.total_tokens > 0
    return [(item.index, item.relevance_score, item.document) for item in found.results]


def infinity(url: str, key: str, model: str, body: Body) -> Found:
    from infinity_client import AuthenticatedClient
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    client = AuthenticatedClient(base_url=url, token=key)
    found = rerank.sync(client=client, body=RerankInput(model=model, **body))
    assert found is not None
    return [(item.index, item.relevance_score, body["documents"][item.index]) for item in found.results]


def xinference(url: str, key: str, model: str, body: Body) -> Found:
    from xinference_client.client.restful.restful_client import RESTfulRerankModelHandle

    handle = RESTfulRerankModelHandle(model, url, {"Authorization": f"Bearer {key}"})
    found = handle.rerank(body["documents"], body["query"], body["top_n"], return_documents=True)
    assert "kwargs changes nothing" in found["meta"]["warnings"][0]
    return [(item["index"], item["relevance_score"], item["document"]["text"]) for item in found["results"]]


def langchain_cohere(url: str, key: str, model: str, body: Body) -> Found:
    from langchain_cohere import CohereRerank

    return _compressed(CohereRerank(cohere_api_key=key, base_url=url, model=model, top_n=body["top_n"]), body)


def langchain_jina(url: str, key: str, model: str, body: Body) -> Found:
    from langchain_community.document_compressors import jina_rerank

    jina_rerank.JINA_API_URL = f"{url}/v1/rerank"  # the class has no option for it
    return _compressed(jina_rerank.JinaRerank(jina_api_key=key, model=model, top_n=body["top_n"]), body)


def langchain_infinity(url: str, key: str, model: str, body: Body) -> Found:
    from infinity_client import AuthenticatedClient
    from langchain_community.document_compressors.infinity_rerank import InfinityRerank

    client = AuthenticatedClient(base_url=url, token=key)
    return _compressed(InfinityRerank.model_construct(client=client, model=model, top_n=body["top_n"]), body)


def _compressed(compressor: Any, body: Body) -> Found:
    from langchain_core.documents import Document

    documents = [Document(text, metadata={"place": place}) for place, text in enumerate(body["documents"])]
    found = compressor.compress_documents(documents, body["query"])
    return [(item.metadata["place"], item.metadata["relevance_score"], item.page_content) for item in found]


def llama_index_tei(url: str, key: str, model: str, body: Body) -> Found:
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    del model
    return _post_processed(TextEmbeddingInference(base_url=url, top_n=body["top_n"], auth_token=f"Bearer {key}"), body)


def llama_index_cohere(url: str, key: str, model: str, body: Body) -> Found:
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    return _post_processed(CohereRerank(api_key=key, base_url=url, model=model, top_n=body["top_n"]), body)


def llama_index_jina(url: str, key: str, model: str, body: Body) -> Found:
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    return _post_processed(JinaRerank(api_key=key, base_url=f"{url}/v1", model=model, top_n=body["top_n"]), body)


def llama_index_xinference(url: str, key: str, model: str, body: Body) -> Found:
    from llama_index.postprocessor.xinference_rerank import XinferenceRerank

    del key  # it sends none
    return _post_processed(XinferenceRerank(base_url=url, model=model, top_n=body["top_n"]), body)


def _post_processed(processor: Any, body: Body) -> Found:
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

    nodes = [
        NodeWithScore(
            node=TextNode(text=text, metadata={"place": place}, excluded_embed_metadata_keys=["place"]), score=0.0
        )
        for place, text in enumerate(body["documents"])
    ]
    found = processor.postprocess_nodes(nodes, QueryBundle(body["query"]))
    return [(item.node.metadata["place"], item.score, item.node.get_content(MetadataMode.EMBED)) for item in found]


def haystack_cohere(url: str, key: str, model: str, body: Body) -> Found:
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.cohere import CohereRanker

    ranker = CohereRanker(model, body["top_n"], Secret.from_token(key), url)
    return _components(ranker, body)


def haystack_jina(url: str, key: str, model: str, body: Body) -> Found:
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.jina import JinaRanker

    for address in (f"{url}/v1/rerank", url):  # it posts to what it is given
        found = _components(JinaRanker(model, Secret.from_token(key), body["top_n"], base_url=address), body)
    return found


def haystack_tei(url: str, key: str, model: str, body: Body) -> Found:
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    del model
    ranker = HuggingFaceTEIRanker(url=url, top_k=body["top_n"], token=Secret.from_token(key), max_retries=0)
    return _components(ranker, body)


def _components(ranker: Any, body: Body) -> Found:
    from haystack import Document

    documents = [Document(content=text, meta={"place": place}) for place, text in enumerate(body["documents"])]
    found = ranker.run(query=body["query"], documents=documents)["documents"]
    return [(item.meta["place"], item.score, item.content) for item in found]


def lightrag(provider: str, path: str) -> Talk:
    def talk(url: str, key: str, model: str, body: Body) -> Found:
        import lightrag.rerank

        rerank = getattr(lightrag.rerank, f"{provider}_rerank")
        found = asyncio.run(rerank(api_key=key, model=model, base_url=f"{url}{path}", **body))
        return [(item["index"], item["relevance_score"], body["documents"][item["index"]]) for item in found]

    return talk


def rerankers(provider: str, path: str) -> Talk:
    def talk(url: str, key: str, model: str, body: Body) -> Found:
        from rerankers.models.api_rankers import APIRanker

        ranker = APIRanker(model, key, provider, verbose=0, url=f"{url}{path}")
        found = ranker.rank(body["query"], body["documents"]).top_k(body["top_n"])
        return [(item.document.doc_id, item.score, item.document.text) for item in found]

    return talk


def agno_cohere(url: str, key: str, model: str, body: Body) -> Found:
    import cohere
    from agno.knowledge.reranker.cohere import CohereReranker

    client = cohere.Client(key, base_url=url)
    return _documents_reranked(CohereReranker(model=model, cohere_client=client, top_n=body["top_n"]), body)


def agno_infinity(url: str, key: str, model: str, body: Body) -> Found:
    from agno.knowledge.reranker.infinity import InfinityReranker

    return _documents_reranked(InfinityReranker(model=model, url=url, api_key=key, top_n=body["top_n"]), body)


def _documents_reranked(reranker: Any, body: Body) -> Found:
    from agno.knowledge.document import Document

    documents = [Document(content=text, id=str(place)) for place, text in enumerate(body["documents"])]
    found = reranker.rerank(body["query"], documents)
    return [(int(item.id), item.reranking_score, item.content) for item in found]


CLIENTS: dict[str, Talk] = {
    "cohere-v2": cohere_v2,
    "cohere-v1": cohere_v1,
    "cohere-spans": cohere_spans,
    "litellm-cohere": litellm("cohere"),
    "litellm-jina_ai": litellm("jina_ai", suffix="/v1"),
    "litellm-hosted_vllm": litellm("hosted_vllm"),
    "litellm-infinity": litellm("infinity", echo=False),  # it wants documents as strings, which Jina does not send
    "litellm-huggingface": litellm("huggingface"),
    "litellm-together_ai": litellm("together_ai", suffix="/v1"),
    "litellm-voyage": litellm("voyage"),
    "litellm-fireworks_ai": litellm("fireworks_ai", suffix="/v1"),
    "litellm-dashscope": litellm("dashscope", suffix="/v1"),
    "litellm-scaleway": litellm("scaleway", suffix="/v1"),
    "litellm-azure_ai": litellm("azure_ai"),
    "voyageai": voyage,
    "infinity": infinity,
    "xinference": xinference,
    "langchain-cohere": langchain_cohere,
    "langchain-jina": langchain_jina,
    "langchain-infinity": langchain_infinity,
    "llama-index-tei": llama_index_tei,
    "llama-index-cohere": llama_index_cohere,
    "llama-index-jina": llama_index_jina,
    "llama-index-xinference": llama_index_xinference,
    "haystack-cohere": haystack_cohere,
    "haystack-jina": haystack_jina,
    "haystack-tei": haystack_tei,
    "lightrag-cohere": lightrag("cohere", "/v2/rerank"),
    "lightrag-jina": lightrag("jina", "/v1/rerank"),
    "rerankers-cohere": rerankers("cohere", "/v1/rerank"),
    "rerankers-jina": rerankers("jina", "/v1/rerank"),
    "rerankers-tei": rerankers("text-embeddings-inference", "/rerank"),
    "rerankers-voyage": rerankers("voyage", "/v1/rerank"),
    "agno-cohere": agno_cohere,
    "agno-infinity": agno_infinity,
}


def main(name: str, *where: str) -> None:
    try:
        answer: Any = CLIENTS[name](*where, json.load(sys.stdin))
    except Exception as error:
        texts, at = [], error
        while at is not None:
            texts.append(f"{type(at).__name__}: {at}")
            at = at.__cause__ or at.__context__
        answer = {"error": " <- ".join(texts)}
    sys.__stdout__.write("\n" + json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
