// Drawing a result. Every text goes into the page as text: nothing here makes markup of a string.

const HEAT_LEVELS = 4;
const HEAT_FROM = 0.12; // of a document's strongest token: less is left unmarked
const MOST_WORDS = 5;
const LEAST_WORD = 0.02; // of a document's attention
const MOST_MOVING = 200; // rows
const MOST_LINES = 30; // of the best documents: more cannot be told apart
const LABEL_CHARS = 160;
const LEAST_SCORE = 0.0005; // that three digits can show
const still = matchMedia("(prefers-reduced-motion: reduce)");

// An element with attributes and children; a string child is text.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function asDocument(given) {
  return typeof given === "string" ? { text: given } : given;
}

// Documents are told apart by what they say; the same text twice is counted.
export function keysOf(documents) {
  const seen = new Map();
  return documents.map(asDocument).map(({ title = "", text }) => {
    const content = JSON.stringify([title, text]);
    seen.set(content, (seen.get(content) ?? 0) + 1);
    return `${seen.get(content)} ${content}`;
  });
}

// The other order that a ranking is compared with: its name, and its documents' keys and labels, first to last.
export function givenOrder(result) {
  const { documents } = result.request;
  return { name: result.order ?? "order given", keys: keysOf(documents), labels: documents.map(labelOf) };
}

export function orderOf(result, name) {
  const given = givenOrder(result);
  const indices = result.response.results.map(({ index }) => index);
  return { name, keys: indices.map((index) => given.keys[index]), labels: indices.map((index) => given.labels[index]) };
}

function labelOf(given) {
  const { id, title, text } = asDocument(given);
  return title || (id === undefined ? "" : String(id)) || text.slice(0, LABEL_CHARS);
}

// The ranking as rows that move from where `other` had them to where they are now.
export function drawList(list, result, other) {
  const keys = keysOf(result.request.documents);
  const places = new Map(other.keys.map((key, index) => [key, index + 1]));
  const best = result.response.results[0]?.relevance_score || 1;
  const rows = result.response.results.map((entry, index) => {
    const before = places.get(keys[entry.index]);
    return { before, row: makeRow(entry, asDocument(result.request.documents[entry.index]), index + 1, before, best) };
  });
  list.replaceChildren(...[...rows].sort((a, b) => (a.before ?? Infinity) - (b.before ?? Infinity)).map(({ row }) => row));
  const from = rows.map(({ row }) => row.offsetTop);
  list.replaceChildren(...rows.map(({ row }) => row));
  rows[0]?.row.firstElementChild.setAttribute("open", "");
  if (still.matches || rows.length > MOST_MOVING) return;
  rows.forEach(({ row, before }, index) => {
    const start = before === undefined ? { opacity: 0 } : { transform: `translateY(${from[index] - row.offsetTop}px)` };
    row.animate([start, {}], { duration: 700, easing: "cubic-bezier(.3, 0, .1, 1)" });
  });
}

function makeRow(entry, given, rank, before, best) {
  const fill = element("span", { class: "fill" });
  fill.style.width = `${Math.max(0, (100 * entry.relevance_score) / best)}%`;
  const summary = element("summary", {},
    element("span", { class: "rank" }, element("span", { class: "unseen" }, "rank "), String(rank)),
    makeMove(rank, before),
    element("span", { class: "label" }, labelOf(given)),
    element("span", { class: "bar", "aria-hidden": "true" }, fill),
    element("span", { class: "score" }, element("span", { class: "unseen" }, "score "), scoreText(entry.relevance_score)));
  const details = element("details", {}, summary);
  details.addEventListener("toggle", () => { // the text is drawn when it is first looked at
    if (details.open && details.children.length === 1) details.append(makeBody(entry, given));
  });
  return element("li", { "data-index": entry.index }, details);
}

export function scoreText(score) {
  return score > 0 && score < LEAST_SCORE ? "<0.001" : score.toFixed(3);
}

function makeMove(rank, before) {
  const by = before - rank; // NaN where it was not there before
  const [kind, shown, said] =
    before === undefined ? ["new", "new", "new"]
    : by > 0 ? ["up", `▲ ${by}`, `up ${by} from ${before}`]
    : by < 0 ? ["down", `▼ ${-by}`, `down ${-by} from ${before}`]
    : ["same", "=", "where it was"];
  return element("span", { class: `move ${kind}`, title: said },
    element("span", { "aria-hidden": "true" }, shown), element("span", { class: "unseen" }, `, ${said}, `));
}

function makeBody(entry, { id, title, text }) {
  const body = element("div", { class: "body" });
  const evidence = entry.evidence ?? [];
  const most = Math.max(...evidence.map(({ share }) => share), 0);
  const marked = (content, field) => mark(content, evidence.filter((item) => item.field === field), most);
  if (title) body.append(element("h3", {}, ...marked(title, "title")));
  body.append(element("p", { class: "text" }, ...marked(text, "text")));
  const words = evidence.length ? strongestWords({ title: title ?? "", text }, evidence) : [];
  if (words.length) {
    const parts = words.flatMap(([word, share], index) =>
      [index ? ", " : "", element("strong", {}, word), `\u00a0${Math.round(100 * share)}\u00a0%`]);
    body.append(element("p", { class: "words" }, "Most attention: ", ...parts));
  }
  const facts = [id === undefined ? "" : `id ${id}`, `document ${entry.index + 1} of those given`,
    entry.tokens === undefined ? "" : `${entry.tokens} tokens read`,
    entry.cut_tokens ? `the last ${entry.cut_tokens} tokens were cut off and not read` : ""];
  body.append(element("p", { class: "note" }, facts.filter(Boolean).join(" · ")));
  return body;
}

// The server counts characters, JavaScript counts pairs: where each character of a text begins.
function characterStarts(text) {
  const starts = [0];
  for (const character of text) starts.push(starts.at(-1) + character.length);
  return starts;
}

// A text as nodes in which the tokens that attention fell on are marked.
function mark(text, evidence, most) {
  const starts = characterStarts(text), nodes = [];
  let end = 0;
  for (const item of evidence) {
    const level = most && item.share >= HEAT_FROM * most ? Math.ceil((HEAT_LEVELS * item.share) / most) : 0;
    const [a, b] = [starts[item.start], starts[item.end]];
    if (!level || !(a >= end && b > a)) continue;
    nodes.push(text.slice(end, a), element("mark", { class: `heat-${level}` }, text.slice(a, b)));
    end = b;
  }
  return [...nodes, text.slice(end)];
}

// Words by their part of the attention: what the shading shows, in words.
function strongestWords(fields, evidence) {
  const totals = new Map();
  for (const [field, text] of Object.entries(fields)) {
    const starts = characterStarts(text), items = evidence.filter((item) => item.field === field);
    let next = 0;
    for (const { segment, index, isWordLike } of new Intl.Segmenter(undefined, { granularity: "word" }).segment(text)) {
      let share = 0;
      for (; next < items.length && starts[items[next].start] < index + segment.length; next++) share += items[next].share;
      const word = segment.toLocaleLowerCase();
      if (isWordLike) totals.set(word, (totals.get(word) ?? 0) + share);
    }
  }
  return [...totals].filter(([, share]) => share >= LEAST_WORD).sort((a, b) => b[1] - a[1]).slice(0, MOST_WORDS);
}

// Two orders beside each other, with lines from the old places of the best documents to their new ones.
export function drawBeside(place, result, other) {
  const ranked = orderOf(result, "Ranking");
  const rows = Math.max(other.keys.length, ranked.keys.length);
  const lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ viewBox: `0 0 100 ${rows}`, preserveAspectRatio: "none", "aria-hidden": "true" }))
    lines.setAttribute(key, value);
  lines.style.height = `calc(${rows} * var(--row))`;
  const before = new Map(other.keys.map((key, index) => [key, index]));
  ranked.keys.slice(0, MOST_LINES).forEach((key, to) => {
    if (!before.has(key)) return;
    const from = before.get(key), line = document.createElementNS(lines.namespaceURI, "line");
    const ends = { x1: 0, y1: from + 0.5, x2: 100, y2: to + 0.5, class: to < from ? "up" : to > from ? "down" : "same" };
    for (const [name, value] of Object.entries(ends)) line.setAttribute(name, value);
    lines.append(line);
  });
  const column = ({ name, labels }, side) => element("section", { "aria-label": name, class: side },
    element("h3", {}, name), element("ol", {}, ...labels.map((label) => element("li", {}, element("span", {}, label)))));
  place.replaceChildren(column(other, "left"), lines, column(ranked, "right"));
}
