// One client library against a server: `node talk.mjs CLIENT URL KEY MODEL`, with {"query", "documents", "top_n"} on standard
// input; writes [[index, score, text], ...] as the library gave it, or {"error": text} with what it threw.
//
// Run by tests/test_serve_clients_js.py. The text is the library's own where it gives one, else that of its index.

import { readFileSync } from "node:fs";

const byIndex = (results, body, score) => results.map((item) => [item.index, item[score], body.documents[item.index]]);

async function cohereV2(url, key, model, body) {
  const { CohereClientV2 } = await import("cohere-ai");
  const client = new CohereClientV2({ token: key, environment: url });
  const found = await client.rerank({ model, query: body.query, documents: body.documents, topN: body.top_n });
  if (found.meta?.apiVersion?.version !== "2") throw new Error("no version");
  return byIndex(found.results, body, "relevanceScore");
}

async function cohereV1(url, key, model, body) {
  const { CohereClient } = await import("cohere-ai");
  const client = new CohereClient({ token: key, environment: url });
  const request = { model, query: body.query, documents: body.documents, topN: body.top_n, returnDocuments: true };
  const found = await client.rerank(request);
  return found.results.map((item) => [item.index, item.relevanceScore, item.document.text]);
}

async function cohereSuffix(url, key, model, body) {
  return cohereV2(`${url}/v2`, key, model, body); // asks for /v2/v2/rerank
}

async function aiSdk(provider, model, body, ai = "ai") {
  const { rerank } = await import(ai);
  const options = { model: provider.reranking(model), query: body.query, documents: body.documents, topN: body.top_n };
  const found = await rerank({ ...options, maxRetries: 0 });
  return found.ranking.map((item) => [item.originalIndex, item.score, item.document]);
}

async function aiCohere(url, key, model, body) {
  const { createCohere } = await import("@ai-sdk/cohere");
  return aiSdk(createCohere({ baseURL: `${url}/v2`, apiKey: key }), model, body);
}

async function aiTogetherai(url, key, model, body) {
  const { createTogetherAI } = await import("@ai-sdk/togetherai");
  return aiSdk(createTogetherAI({ baseURL: `${url}/v1`, apiKey: key }), model, body);
}

async function ai7Cohere(url, key, model, body) {
  const { createCohere } = await import("ai-sdk-cohere-4");
  return aiSdk(createCohere({ baseURL: `${url}/v2`, apiKey: key }), model, body, "ai-7");
}

async function ai7Togetherai(url, key, model, body) {
  const { createTogetherAI } = await import("ai-sdk-togetherai-3");
  return aiSdk(createTogetherAI({ baseURL: `${url}/v1`, apiKey: key }), model, body, "ai-7");
}

async function aiObjects(url, key, model, body) {
  const { createTogetherAI } = await import("@ai-sdk/togetherai");
  const provider = createTogetherAI({ baseURL: `${url}/v1`, apiKey: key });
  const documents = body.documents.map((text, place) => ({ text, page: place }));
  const found = await aiSdk(provider, model, { ...body, documents });
  return found.map(([index, score, document]) => [index, score, document.text]);
}

async function langchainCohere(url, key, model, body) {
  const { CohereClient } = await import("cohere-ai");
  const { CohereRerank } = await import("@langchain/cohere");
  const { Document } = await import("@langchain/core/documents");
  const client = new CohereClient({ token: key, environment: url });
  const reranker = new CohereRerank({ client, model, topN: body.top_n });
  const documents = body.documents.map((pageContent, place) => new Document({ pageContent, metadata: { place } }));
  const found = await reranker.compressDocuments(documents, body.query);
  return found.map((item) => [item.metadata.place, item.metadata.relevanceScore, item.pageContent]);
}

// URL is the command line of the server, as JSON.
async function mcp(url, key, model, body) {
  const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
  const { StdioClientTransport } = await import("@modelcontextprotocol/sdk/client/stdio.js");
  const [command, ...args] = JSON.parse(url);
  const client = new Client({ name: "talk", version: "1" });
  await client.connect(new StdioClientTransport({ command, args, env: process.env }));
  try {
    const [tool] = (await client.listTools()).tools;
    if (tool.inputSchema.additionalProperties !== false) throw new Error("other arguments are allowed");
    const wrong = await client.callTool({ name: tool.name, arguments: { ...body, top_k: 1 } });
    if (!wrong.isError || !wrong.content[0].text.includes("unknown field 'top_k'")) throw new Error("top_k was taken");
    const found = await client.callTool({ name: tool.name, arguments: body });
    if (found.isError) throw new Error(found.content[0].text);
    return byIndex(found.structuredContent.results, body, "score");
  } finally {
    await client.close();
  }
}

const CLIENTS = {
  "cohere-v2": cohereV2,
  "cohere-v1": cohereV1,
  "cohere-suffix": cohereSuffix,
  "ai-cohere": aiCohere,
  "ai-togetherai": aiTogetherai,
  "ai7-cohere": ai7Cohere,
  "ai7-togetherai": ai7Togetherai,
  "ai-objects": aiObjects,
  "langchain-cohere": langchainCohere,
  mcp,
};

const [name, ...where] = process.argv.slice(2);
let answer;
try {
  answer = await CLIENTS[name](...where, JSON.parse(readFileSync(0, "utf8")));
} catch (error) {
  const parts = [];
  for (let at = error; at; at = at.cause) parts.push(`${at} ${JSON.stringify(at.body ?? null)}`);
  answer = { error: parts.join(" <- ") };
}
console.log(JSON.stringify(answer));
