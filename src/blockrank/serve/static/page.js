// The page's form, its request to the server, and what is kept of the answers. Drawing is in view.js.

import { drawBeside, drawList, element, givenOrder, orderOf, scoreText } from "./view.js";

const FORMAT = "blockrank.result/1"; // of saved results
const MOST_KEPT = 20; // results of this visit, to compare with
const LOADING_MS = 2000;
const TELLING_MS = 300; // after typing, before the count is told
const at = (id) => document.getElementById(id);
const choice = (name) => document.querySelector(`input[name=${name}]:checked`).value;
const duration = (ms) => (ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`);
const many = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

const kept = []; // results, newest first: {name, order?, took_ms, request, response}
let shown = null; // the one on the screen
let running = null; // AbortController of the request under way
let examples = [];
let limits = { max_body_bytes: 16 << 20 };

// What goes wrong in a way that the reader can mend: a sentence, and the field to go to.
class Trouble extends Error {
  constructor(sentence, field) {
    super(sentence);
    this.field = field;
  }
}

function tell(trouble) {
  for (const id of ["query", "documents", "key"]) at(id).removeAttribute("aria-invalid");
  at("error").textContent = trouble?.message ?? "";
  if (!trouble?.field) return;
  at(trouble.field).setAttribute("aria-invalid", "true");
  at(trouble.field).focus();
}

// The form

function documents() {
  const text = at("documents").value, form = choice("form");
  const parts = text.split(form === "paragraph" ? /\n[^\S\n]*(?:\n[^\S\n]*)+/ : "\n");
  const filled = parts.map((part, index) => [part.trim(), index + 1]).filter(([part]) => part);
  return form === "jsonl" ? filled.map(([part, line]) => fromJson(part, line)) : filled.map(([part]) => part);
}

function fromJson(text, line) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Trouble(`Line ${line} of the documents is not JSON.`, "documents");
  }
  if (typeof value === "string") return value;
  if (typeof value?.text !== "string") throw new Trouble(`Line ${line} of the documents has no "text".`, "documents");
  const id = value.id ?? value.doc_id ?? value._id;
  return { text: value.text, ...(value.title && { title: value.title }), ...(id != null && { id }) };
}

let telling;
function count() {
  clearTimeout(telling);
  telling = setTimeout(() => {
    try {
      at("count").textContent = `${many(documents().length, "document")}.`;
    } catch (trouble) {
      at("count").textContent = trouble.message;
    }
  }, TELLING_MS);
}

function fill(query, text, form) {
  if (query !== null) at("query").value = query;
  at("documents").value = text;
  document.querySelector(`input[name=form][value=${form}]`).checked = true;
  chosen(null);
  count();
}

function chosen(example) { // an example stays chosen until its text is changed
  at("example").value = example ? String(examples.indexOf(example)) : "";
  at("credit").hidden = !example;
  at("credit").textContent = example
    ? `Paragraphs of ${example.source}, OpenStax, free at openstax.org; CC BY 4.0 (creativecommons.org/licenses/by/4.0), ` +
      `markup removed. They are in ${example.order}'s order.` : "";
}

// The server

async function ask(path, options = {}) {
  const headers = { "content-type": "application/json" };
  if (at("key").value) headers.authorization = `Bearer ${at("key").value}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw new Trouble("Stopped. Nothing was ranked.");
    throw new Trouble("The server does not answer. Is it still running? Your text is still here.");
  }
  const body = await response.json().catch(() => null);
  if (!response.ok) throw refusal(response, body);
  if (!body) throw new Trouble("The server's answer was cut off. Your text is still here.");
  return body;
}

function refusal(response, body) {
  const sentence = body?.error?.message ?? body?.detail ?? `The server refused this with status ${response.status}.`;
  if (response.status === 401) {
    at("key-part").hidden = false;
    return new Trouble(at("key").value ? "This is not a key of this server." : "This server wants a key.", "key");
  }
  const plain = sentence.replace(/documents\[(\d+)\]/g, (_, index) => `document ${Number(index) + 1}`);
  const wait = response.headers.get("retry-after");
  const field = { query: "query", documents: "documents" }[/^[a-z]*/.exec(body?.error?.param ?? "")[0]];
  return new Trouble(plain[0].toUpperCase() + plain.slice(1) + (wait ? ` Try again in ${many(Number(wait), "second")}.` : ""), field);
}

async function meet() { // which model is served, once it is loaded
  try {
    const [model] = (await ask("v1/models")).data;
    limits = model.limits;
    at("model").textContent =
      `${model.id}: ranks up to ${limits.max_documents} documents, and reads the first ${limits.max_document_tokens} tokens of each`;
    if (at("error").textContent.includes("key")) tell(null);
  } catch (trouble) {
    if (at("model").textContent !== trouble.message) at("model").textContent = trouble.message;
    if (trouble.field !== "key") setTimeout(meet, LOADING_MS);
  }
}

async function rank() {
  running?.abort();
  const stopping = (running = new AbortController());
  try {
    tell(null);
    const request = { query: at("query").value, documents: documents(), evidence: true, token_counts: true, return_documents: false };
    const order = examples[at("example").value]?.order;
    busy(true, `Ranking ${many(request.documents.length, "document")} …`);
    const started = performance.now();
    const response = await ask("v1/rerank", { method: "POST", body: JSON.stringify(request), signal: stopping.signal });
    const took_ms = Math.round(performance.now() - started);
    keep({ name: `ranked at ${new Date().toLocaleTimeString()}`, took_ms, request, response, ...(order && { order }) });
  } catch (trouble) {
    if (running === stopping) tell(trouble);
    if (running === stopping) at("status").textContent = shown ? "The ranking below is the one before." : "Nothing has been ranked yet.";
    if (!(trouble instanceof Trouble)) throw trouble;
  } finally {
    if (running === stopping) busy(false);
  }
}

function busy(is, sentence) {
  at("form").setAttribute("aria-busy", String(is));
  at("stop").hidden = !is;
  if (sentence) at("status").textContent = sentence;
  if (!is) running = null;
}

// Results

function keep(result) {
  kept.unshift(result);
  kept.length = Math.min(kept.length, MOST_KEPT);
  shown = result;
  const options = kept.slice(1).map(({ name, request }, index) =>
    element("option", { value: index + 1 }, `${name}: ${request.query.slice(0, 40)}`));
  at("baseline").replaceChildren(element("option", { value: "" }, givenOrder(result).name), ...options);
  draw();
  const { results } = result.response;
  const time = result.took_ms === undefined ? "" : ` in ${duration(result.took_ms)}`;
  at("status").textContent = results.length
    ? `${many(results.length, "document")} ranked${time} by ${result.response.model ?? "the server"} for “${result.request.query.trim()}”. ` +
      `First is document ${results[0].index + 1} of those given, with a score of ${scoreText(results[0].relevance_score)}.` : "No documents.";
  if (at("results").getBoundingClientRect().top > innerHeight / 2) at("results").scrollIntoView();
}

function draw() {
  const baseline = kept[at("baseline").value];
  const other = baseline ? orderOf(baseline, baseline.name) : givenOrder(shown);
  const beside = choice("view") === "beside";
  at("shown").hidden = false;
  at("help").hidden = true;
  at("beside").hidden = !beside;
  for (const id of ["list", "open-all", "legend"]) at(id).hidden = beside;
  at("open-all").textContent = "Open all";
  at("warnings").replaceChildren(...(shown.response.meta?.warnings ?? []).map((sentence) => element("li", {}, sentence)));
  if (beside) drawBeside(at("beside"), shown, other);
  else drawList(at("list"), shown, other);
}

function openAll() {
  const open = at("open-all").textContent === "Open all";
  for (const details of at("list").querySelectorAll("details")) details.open = open;
  at("open-all").textContent = open ? "Close all" : "Open all";
}

function saved() {
  const { took_ms, request, response, order } = shown;
  return JSON.stringify({ format: FORMAT, saved_at: new Date().toISOString(), took_ms, order, request, response }, null, 1);
}

function save() {
  const address = URL.createObjectURL(new Blob([saved()], { type: "application/json" }));
  const link = element("a", { href: address, download: `ranking-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), LOADING_MS);
}

async function copy() {
  try {
    await navigator.clipboard.writeText(saved());
    at("status").textContent = "Copied: the request and the answer as JSON.";
  } catch {
    tell(new Trouble("The browser does not let this page write to the clipboard: save the JSON instead."));
  }
}

// Files

async function open(file) {
  tell(null);
  try {
    if (file.size > limits.max_body_bytes) throw new Trouble(`${file.name} is larger than a request to this server may be.`);
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer()).replaceAll("\r\n", "\n");
    if (/\.json$/i.test(file.name)) return restore(file.name, text);
    const form = /\.(jsonl|ndjson)$/i.test(file.name) ? "jsonl" : /\S[^\S\n]*\n[^\S\n]*\n/.test(text.trim()) ? "paragraph" : "line";
    fill(null, text, form);
    at("documents").focus();
  } catch (trouble) {
    tell(trouble instanceof Trouble ? trouble : new Trouble(`${file.name} is not text in UTF-8.`));
  }
}

function restore(name, text) {
  const found = readSaved(text);
  if (!found) throw new Trouble(`${name} is not a result saved from this page. Documents as JSON go one a line, in a .jsonl file.`);
  const { query, documents: given } = found.request;
  fill(query, given.map((item) => JSON.stringify(item)).join("\n"), "jsonl");
  keep({ ...found, name });
}

function readSaved(text) {
  try {
    const { request, response, took_ms, order } = JSON.parse(text);
    const isText = (value) => typeof value === "string";
    const isDocument = (item) => isText(item) || (isText(item?.text) && isText(item.title ?? ""));
    const isEntry = (item) => request.documents[item.index] !== undefined && Number.isFinite(item.relevance_score) &&
      (item.evidence ?? []).every(({ start, end, share }) => [start, end, share].every(Number.isFinite));
    if (!isText(request.query) || !request.documents.every(isDocument) || !response.results.every(isEntry)) return null;
    if (!(response.meta?.warnings ?? []).every(isText)) return null;
    return { request, response, ...(Number.isFinite(took_ms) && { took_ms }), ...(isText(order) && { order }) };
  } catch {
    return null;
  }
}

// Events

at("form").addEventListener("submit", (event) => { event.preventDefault(); rank(); });
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); rank(); }
});
at("stop").addEventListener("click", () => running?.abort());
for (const id of ["query", "documents"]) at(id).addEventListener("input", () => chosen(null));
for (const part of [at("documents"), ...document.querySelectorAll("input[name=form]")]) part.addEventListener("input", count);
at("example").addEventListener("change", () => {
  const example = examples[at("example").value];
  if (!example) return chosen(null);
  fill(example.query, example.documents.join("\n\n"), "paragraph");
  chosen(example);
});
at("key").addEventListener("change", meet);
for (const part of [at("baseline"), ...document.querySelectorAll("input[name=view]")]) part.addEventListener("change", draw);
at("open-all").addEventListener("click", openAll);
at("save").addEventListener("click", save);
at("copy").addEventListener("click", copy);
at("copy").hidden = !navigator.clipboard; // only where the page is local or came over TLS
at("file").addEventListener("change", () => { if (at("file").files[0]) open(at("file").files[0]); at("file").value = ""; });
addEventListener("dragover", (event) => { event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  if (event.dataTransfer.files.length === 1) open(event.dataTransfer.files[0]);
  else tell(new Trouble("Drop one file at a time."));
});

meet();
fetch("page/examples.jsonl").then((response) => response.text()).then((text) => {
  examples = text.trim().split("\n").map((line) => JSON.parse(line));
  at("example").append(...examples.map(({ name }, index) => element("option", { value: index }, name)));
});
