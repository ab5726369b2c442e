"use strict";

const at = (id) => document.getElementById(id);
let conversation = null;
// Rises when a new conversation begins, so that what comes for an older one is dropped.
let current = 0;
let stopper = null;
// The reader insists on asking without a picture.
let blind = false;

// Of a tab; a page that is loaded again finds its conversation by it.
const KEPT = "cobra-conversation";
// Pictures of at most so many pixels a side are shown with hard edges, larger ones are kept at that size at most.
const SMALL = 128;
const KEPT_SIDE = 576;

/** Returns a new element with text in it; text never becomes markup. */
function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Returns an error in words; fetch and JSON tell nothing that a reader could use. */
function words(error) {
  const silent = error instanceof TypeError || error instanceof SyntaxError;
  return silent ? "The server does not answer. See whether it still runs in its terminal, then try again." : error.message;
}

/** Remembers conversation and picture in this tab. */
function keep() {
  const preview = at("preview");
  const scale = Math.min(1, KEPT_SIDE / Math.max(preview.naturalWidth, preview.naturalHeight, 1));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(preview.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(preview.naturalHeight * scale));
  canvas.getContext("2d").drawImage(preview, 0, 0, canvas.width, canvas.height);
  const picture = preview.hidden || !preview.naturalWidth ? null : canvas.toDataURL(scale < 1 ? "image/jpeg" : "image/png");
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ conversation, picture }));
  } catch {
    // A full or forbidden store: the page works, and forgets when it is loaded again.
  }
}

function read() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT));
  } catch {
    return null;
  }
}

function forget() {
  stopper?.abort();
  current += 1;
  conversation = null;
  blind = false;
  at("blind").hidden = true;
  at("turns").replaceChildren();
  at("trouble").textContent = "";
}

function begin() {
  forget();
  try { sessionStorage.removeItem(KEPT); } catch { /* forbidden */ }
  URL.revokeObjectURL(at("preview").src);
  at("preview").removeAttribute("src");
  at("preview").hidden = true;
  at("hint").hidden = false;
  at("unshown").hidden = true;
  at("picture").classList.remove("full");
  for (const field of document.querySelectorAll("input[type=file]")) field.value = "";
}

/** Shows a picture that the server has; without an address this browser cannot. */
function reveal(address) {
  at("hint").hidden = true;
  at("picture").classList.add("full");
  at("unshown").hidden = Boolean(address);
  at("preview").hidden = !address;
  if (address) at("preview").src = address;
}

async function show(file) {
  begin();
  const mine = current;
  at("ask").disabled = true;
  try {
    const answer = await fetch("/image", { method: "POST", body: file });
    const found = await answer.json();
    if (mine !== current) return;
    if (!answer.ok) throw new Error(found.error);
    conversation = found.conversation;
    reveal(URL.createObjectURL(file));
    keep();
    at("question").focus();
  } catch (error) {
    if (mine === current) at("trouble").textContent = words(error);
  } finally {
    if (mine === current) at("ask").disabled = false;
  }
}

/** Shows a conversation of before the page was loaded again, as far as the server remembers it. */
async function restore() {
  const kept = read();
  if (!kept?.conversation) return;
  const mine = current;
  try {
    const response = await fetch("/talk", { method: "POST", body: kept.conversation });
    const { turns, picture, error } = await response.json();
    if (mine !== current) return;
    if (error) throw new Error(error);
    if (!turns) {
      begin();
      at("trouble").textContent = "The server has forgotten the conversation of before: choose a picture to begin a new one.";
      return;
    }
    conversation = kept.conversation;
    blind = !picture;
    if (picture) reveal(kept.picture);
    for (const { question, parts } of turns) {
      const answer = new Answer(question);
      for (const part of parts) answer.write(part);
      answer.end();
    }
  } catch (error) {
    if (mine === current) at("trouble").textContent = words(error);
  }
}

/** One answer on the page: blocks of text, and stages that fold once the conclusion begins. */
class Answer {
  constructor(question) {
    this.item = element("li", "writing");
    this.status = element("p", "waiting");
    this.status.setAttribute("role", "status");
    this.blocks = [];
    this.ended = false;
    this.item.append(element("p", "question", question));
    if (blind) this.item.append(element("p", "unseen", "asked without a picture: what the answer describes is invented"));
    this.item.append(this.status);
    at("turns").append(this.item);
    this.item.scrollIntoView({ block: "nearest" });
  }

  take(line) {
    this.ended = Boolean(line.error || line.figures);
    if (line.error) this.fail(line.error);
    else if (line.figures) this.tell(line.figures);
    else if ("block" in line) this.write(line);
    else if (line.waiting) this.status.textContent = `${line.waiting} before you`;
  }

  write({ block, stage, text }) {
    if (!this.blocks[block]) this.open(block, stage);
    const atEnd = innerHeight + scrollY >= document.body.scrollHeight - 80;
    this.blocks[block].append(text);
    if (atEnd) scrollTo(0, document.body.scrollHeight);
  }

  open(block, stage) {
    this.status.className = this.status.textContent = "";
    this.blocks.at(-1)?.classList.remove("newest");
    if (!stage) {
      this.blocks[block] = element("p", "block outside newest");
      this.status.before(this.blocks[block]);
      return;
    }
    const details = element("details", `block stage ${stage.toLowerCase()}`);
    details.open = true;
    this.blocks[block] = element("p", "text newest");
    const summary = element("summary", "", stage);
    // What the reader has opened or folded stays so.
    summary.addEventListener("click", () => { details.dataset.chosen = "yes"; });
    details.append(summary, this.blocks[block]);
    this.status.before(details);
    if (stage === "CONCLUSION") {
      for (const other of this.item.querySelectorAll(".stage:not(.conclusion)")) {
        if (!other.dataset.chosen) other.open = false;
      }
    }
  }

  tell({ written, branches, seconds, read, state_bytes: bytes }) {
    const rate = seconds ? (written / seconds).toFixed(1) : "0";
    const where = branches > 1 ? ` in ${branches} branches` : "";
    const words = [`${written.toLocaleString("en")} tokens${where}`, `${rate} tokens/s`, `${read.toLocaleString("en")} read`];
    this.status.className = "figures";
    this.status.textContent = [...words, `state ${bytes.toLocaleString("en")} bytes`].join(" \u00b7 ");
  }

  fail(message) {
    this.status.className = "faults";
    this.status.textContent = message;
  }

  end() {
    this.item.classList.remove("writing");
    if (this.status.className === "waiting") this.status.textContent = "";
  }
}

/** Yields the lines of a response, each as the JSON that it is. */
async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n");
    held = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

async function ask(question) {
  const mine = current;
  const answer = new Answer(question);
  const stop = new AbortController();
  stopper = stop;
  at("ask").hidden = true;
  at("stop").hidden = false;
  try {
    const body = { question, conversation, search: at("search").value, beams: at("beams").valueAsNumber };
    const response = await fetch("/ask", { method: "POST", body: JSON.stringify(body), signal: stop.signal });
    if (!response.ok) throw new Error((await response.json()).error);
    for await (const line of lines(response)) {
      if (line.conversation && mine === current) {
        conversation = line.conversation;
        keep();
      }
      answer.take(line);
    }
    if (!answer.ended) throw new TypeError("the server has ended");
  } catch (error) {
    answer.fail(stop.signal.aborted ? "stopped" : words(error));
  } finally {
    answer.end();
    if (stopper === stop) {
      stopper = null;
      at("ask").hidden = false;
      at("stop").hidden = true;
    }
  }
}

for (const field of document.querySelectorAll("input[type=file]")) {
  field.addEventListener("change", () => { if (field.files.length) show(field.files[0]); });
}
at("preview").addEventListener("load", () => {
  const { naturalWidth, naturalHeight } = at("preview");
  at("preview").classList.toggle("small", Math.max(naturalWidth, naturalHeight) <= SMALL);
  keep();
});
// A browser reads fewer formats than the model.
at("preview").addEventListener("error", () => { if (at("preview").hasAttribute("src")) reveal(null); });
for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => {
    const bytes = Uint8Array.from(atob(example.firstElementChild.src.split(",")[1]), (letter) => letter.charCodeAt(0));
    if (!at("question").value) at("question").value = "What is in the picture?";
    show(new Blob([bytes], { type: "image/png" }));
  });
}
// Anywhere: a browser would leave the page for a picture that is dropped beside the field.
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    at("picture").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) show(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const picture = Array.from(event.clipboardData?.files ?? []).find((file) => file.type.startsWith("image/"));
  if (!picture) return;
  event.preventDefault();
  show(picture);
});
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || stopper || at("ask").disabled) return;
  at("blind").hidden = Boolean(conversation) || blind;
  if (!at("blind").hidden) return;
  at("question").value = "";
  ask(question);
});
at("insist").addEventListener("click", () => {
  blind = true;
  at("form").requestSubmit();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
at("stop").addEventListener("click", () => stopper?.abort());
at("anew").addEventListener("click", begin);
const chooses = () => {
  const searches = at("search").value !== "none";
  at("beams-field").hidden = !searches;
  at("form").classList.toggle("searching", searches);
};
at("search").addEventListener("input", chooses);
chooses();
restore();
