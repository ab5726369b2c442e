"use strict";

const at = (id) => document.getElementById(id);
let conversation = null;
// Rises when a new conversation begins, so that what comes for an older one is dropped.
let current = 0;
let stopper = null;

/** Returns a new element with text in it; text never becomes markup. */
function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function forget() {
  stopper?.abort();
  current += 1;
  conversation = null;
  at("turns").replaceChildren();
  at("trouble").textContent = "";
}

function begin() {
  forget();
  URL.revokeObjectURL(at("preview").src);
  at("preview").removeAttribute("src");
  at("preview").hidden = true;
  at("hint").hidden = false;
  at("unshown").hidden = true;
  at("picture").classList.remove("full");
  at("file").value = "";
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
    at("preview").src = URL.createObjectURL(file);
    at("preview").hidden = false;
    at("hint").hidden = true;
    at("picture").classList.add("full");
    at("question").focus();
  } catch (error) {
    if (mine === current) at("trouble").textContent = error.message;
  } finally {
    if (mine === current) at("ask").disabled = false;
  }
}

/** One answer on the page: blocks of text, and stages that fold once the conclusion begins. */
class Answer {
  constructor(question) {
    this.item = element("li", "writing");
    this.status = element("p", "waiting");
    this.status.setAttribute("role", "status");
    this.blocks = [];
    this.item.append(element("p", "question", question), this.status);
    at("turns").append(this.item);
    this.item.scrollIntoView({ block: "nearest" });
  }

  take(line) {
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
      if (line.conversation && mine === current) conversation = line.conversation;
      answer.take(line);
    }
  } catch (error) {
    answer.fail(stop.signal.aborted ? "stopped" : error.message);
  } finally {
    answer.item.classList.remove("writing");
    if (stopper === stop) {
      stopper = null;
      at("ask").hidden = false;
      at("stop").hidden = true;
    }
  }
}

at("file").addEventListener("change", () => { if (at("file").files.length) show(at("file").files[0]); });
// A browser reads fewer formats than the model.
at("preview").addEventListener("error", () => {
  at("preview").hidden = true;
  at("unshown").hidden = false;
});
for (const name of ["dragover", "dragleave", "drop"]) {
  at("picture").addEventListener(name, (event) => {
    event.preventDefault();
    at("picture").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) show(event.dataTransfer.files[0]);
  });
}
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || stopper || at("ask").disabled) return;
  at("question").value = "";
  ask(question);
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
at("stop").addEventListener("click", () => stopper?.abort());
at("anew").addEventListener("click", begin);
const chooses = () => { at("beams-field").hidden = at("search").value === "none"; };
at("search").addEventListener("input", chooses);
chooses();
