"use strict";
// Model output reaches the page through textContent only: it can never become markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const step = byId("step");
  const kind = byId("kind");
  const details = byId("details");
  let place = 0;

  const wanted = {
    all: () => true,
    right: (completion) => completion.right === true,
    wrong: (completion) => completion.right === false,
    truncated: (completion) => completion.truncated,
  };

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function signed(value) {
    return value === null ? "–" : (value > 0 ? "+" : "") + short(value).replace("-", "−");
  }

  function short(value) {
    if (value === null) return "–";
    return value !== 0 && Math.abs(value) < 1e-4
      ? value.toExponential(2)
      : String(Number(value.toPrecision(3)));
  }

  function mark(right) {
    return right === null ? "–" : right ? "●" : "○";
  }

  function verdict(completion) {
    const answer = completion.right === null ? "no score" : completion.right ? "right" : "wrong";
    return completion.truncated ? answer + ", truncated" : answer;
  }

  // Index of the colour class: how many edges the entropy has reached.
  function colour(entropy) {
    return entropy === null ? 0 : data.edges.filter((edge) => entropy >= edge).length;
  }

  // ---- groups ------------------------------------------------------------------------------

  function matching() {
    const keep = wanted[kind.value];
    return data.groups
      .filter((group) => !step.value || String(group.step) === step.value)
      .map((group) => ({ ...group, completions: group.completions.filter(keep) }))
      .filter((group) => group.completions.length > 0);
  }

  function draw() {
    const groups = matching();
    place = Math.max(0, Math.min(place, groups.length - 1));
    byId("place").textContent = groups.length ? `prompt ${place + 1} of ${groups.length}` : "none";
    byId("previous").disabled = place === 0;
    byId("next").disabled = place >= groups.length - 1;
    if (groups.length) {
      byId("group").replaceChildren(...drawGroup(groups[place]));
      describe(byId("group").querySelector("[tabindex='0']"));
    } else {
      byId("group").replaceChildren(make("p", "empty", "No answer of this kind is on the page."));
      details.replaceChildren();
    }
  }

  function drawGroup(group) {
    const head = make("div", "prompt");
    head.append(make("p", "id", `step ${group.step} · ${group.id}`));
    const prompt = make("p", "text", group.prompt);
    prompt.dir = "auto";
    head.append(prompt, drawRewards(group));
    return [head, ...group.completions.map(drawCompletion)];
  }

  function drawRewards(group) {
    const right = group.all.filter((sample) => sample[1] === true).length;
    const line = make("p", "rewards");
    const marks = make("span", "marks");
    for (const [sample, isRight, shown] of group.all) {
      const dot = make("span", shown ? "" : "away", mark(isRight));
      dot.title = `answer ${sample}${shown ? "" : ", not on this page"}`;
      marks.append(dot);
    }
    marks.setAttribute("aria-hidden", "true");
    const trained = group.accepted ? "" : ", not trained on";
    line.append(marks, ` ${right} of ${group.all.length} right${trained}`);
    return line;
  }

  function drawCompletion(completion) {
    const article = make("article", "completion");
    const head = make("p", "verdict");
    head.append(make("b", "", `${mark(completion.right)} ${verdict(completion)}`));
    const facts = [
      `answer ${completion.sample}`,
      `reward ${short(completion.reward)}`,
      `advantage ${signed(completion.advantage)}`,
      `${completion.length} tokens`,
      `mean ${short(completion.mean)} nats`,
    ];
    for (const fact of facts) head.append(make("span", "", fact));
    if (completion.error !== null) head.append(make("span", "error", completion.error));
    article.append(head, drawTokens(completion));
    return article;
  }

  function drawTokens(completion) {
    const text = make("div", "tokens-text");
    text.dir = "auto";
    text.setAttribute("role", "listbox");
    text.setAttribute("aria-orientation", "horizontal");
    text.setAttribute("aria-label", `Tokens of answer ${completion.sample}`);
    completion.word.forEach((word, index) => {
      const shown = data.vocabulary[word][0];
      const body = shown.trimStart();
      // White space before a token stays outside it when it is a separator, not the token itself.
      const gap = body && !data.vocabulary[word][1].startsWith(" ") ? shown.length - body.length : 0;
      if (gap) text.append(shown.slice(0, gap));
      const isSelected = completion.selected[index] === "1";
      const token = make("span", `t h${colour(completion.entropy[index])}`, shown.slice(gap));
      if (isSelected) token.classList.add("selected");
      token.setAttribute("role", "option");
      token.tabIndex = -1;
      token.record = { completion, index };
      text.append(token);
    });
    const rest = completion.length - completion.word.length;
    if (rest > 0) text.append(make("span", "rest", ` … ${rest} more tokens`));
    const first = text.querySelector(".selected") || text.querySelector(".t");
    if (first) first.tabIndex = 0;
    return text;
  }

  // ---- the token under the pointer ---------------------------------------------------------

  function describe(token) {
    if (!token || !token.record) return;
    const { completion, index } = token.record;
    const [, text, id] = data.vocabulary[completion.word[index]];
    const entropy = completion.entropy[index];
    const logprob = completion.logprob[index];
    const percentile = completion.percentile[index];
    const rows = [
      ["id", String(id)],
      ["position", `${index + 1} of ${completion.length}`],
      ["entropy", entropy === null ? "not recorded" : `${short(entropy)} nats`],
      ["percentile in step", percentile === null ? "–" : percentile.toFixed(1)],
      ["p(chosen)", logprob === null ? "–" : short(Math.exp(logprob))],
      ["selected", completion.selected[index] === "1" ? "yes" : "no"],
      ["advantage", signed(completion.advantage)],
    ];
    const list = make("dl");
    for (const [name, value] of rows) {
      const row = make("div");
      row.append(make("dt", "", name), make("dd", "", value));
      list.append(row);
    }
    const name = make("p", `token h${colour(entropy)}`, text.replaceAll(" ", "␣"));
    name.classList.toggle("selected", completion.selected[index] === "1");
    details.replaceChildren(name, list);
    document.querySelectorAll(".t.current").forEach((old) => old.classList.remove("current"));
    token.classList.add("current");
  }

  function focusOn(token) {
    const tokens = token.parentElement.querySelectorAll(".t");
    tokens.forEach((other) => { other.tabIndex = -1; });
    token.tabIndex = 0;
    token.focus();
  }

  function neighbour(token, key, onlySelected) {
    const tokens = [...token.parentElement.querySelectorAll(".t")];
    const at = tokens.indexOf(token);
    const fits = (other) => !onlySelected || other.classList.contains("selected");
    if (key === "ArrowRight") return tokens.slice(at + 1).find(fits);
    if (key === "ArrowLeft") return tokens.slice(0, at).reverse().find(fits);
    if (key === "Home") return tokens[0];
    if (key === "End") return tokens[tokens.length - 1];
    return undefined;
  }

  const group = byId("group");
  const tokenOf = (event) => event.target.closest(".t");
  group.addEventListener("pointerover", (event) => describe(tokenOf(event)));
  group.addEventListener("focusin", (event) => describe(tokenOf(event)));
  group.addEventListener("click", (event) => {
    const token = tokenOf(event);
    if (token) focusOn(token);
  });
  group.addEventListener("keydown", (event) => {
    const token = tokenOf(event);
    const next = token && neighbour(token, event.key, event.shiftKey);
    if (!next) return;
    event.preventDefault();
    focusOn(next);
  });
  for (const [id, move] of [["previous", -1], ["next", 1]]) {
    byId(id).addEventListener("click", () => {
      place += move;
      draw();
    });
  }
  for (const select of [step, kind]) {
    select.addEventListener("change", () => {
      place = 0;
      draw();
    });
  }
  draw();
})();
