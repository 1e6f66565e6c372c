// The token viewer: its state, and what changes it: controls, keys, the pointer, links.
(() => {
  "use strict";
  if (!tokenData.page) return;
  const { make } = tokenDetails;
  const byId = (id) => document.getElementById(id);
  const section = byId("completions");
  const element = byId("group");
  const details = byId("details");
  const fitting = {
    all: () => true,
    right: (completion) => completion.right === true,
    wrong: (completion) => completion.right === false,
    truncated: (completion) => completion.truncated,
  };
  // What a link holds. group is a prompt's number in its source; token counts from 1.
  const state = {
    source: tokenData.keys[0], group: null, sample: null, token: null,
    colour: "entropy", answers: "all", from: 0, to: 0, fold: false,
  };
  let source = null;
  let groups = [];
  let place = 0;
  let answers = [];

  // ---- drawing -----------------------------------------------------------------------------

  const fits = (completion) => fitting[state.answers](completion);

  async function show() {
    section.setAttribute("aria-busy", "true");
    const asked = state.source;
    const opened = await tokenData.open(asked);
    if (state.source !== asked) return; // another source was chosen meanwhile
    source = opened;
    if (tokenColour.ways[state.colour].missing(source)) state.colour = firstWay();
    const last = Math.max(source.checkpoints.length - 1, 0);
    if (state.from > last || state.to > last || state.from === state.to) {
      [state.from, state.to] = [0, last];
    }
    drawGroups();
    section.removeAttribute("aria-busy");
  }

  const firstWay = () =>
    tokenColour.names.find((name) => !tokenColour.ways[name].missing(source)) || "selected";

  function drawGroups() {
    groups = source.groups.filter((group) => group.completions.some(fits));
    place = Math.max(groups.findIndex((group) => group.number === state.group), 0);
    drawControls();
    if (groups.length) drawGroup();
    else drawNothing();
    link();
  }

  function drawGroup() {
    const group = groups[place];
    if (state.group !== group.number) state.sample = state.token = null;
    state.group = group.number;
    answers = tokenGroup.draw(element, source, group, fits, state);
    const chosen = answers.find((answer) => answer.completion.sample === state.sample);
    const answer = chosen || answers.find((one) => one.completion.shown > 0);
    if (chosen && state.token) {
      answer.active = inside(answer, answer.completion.start + state.token - 1);
      answer.node(answer.active);
    }
    if (answer && answer.completion.shown) describe(answer, answer.active);
    else details.replaceChildren();
  }

  function drawNothing() {
    answers = [];
    element.replaceChildren(make("p", "empty", "No answer of this kind is on the page."));
    details.replaceChildren();
  }

  function drawControls() {
    byId("source").value = state.source;
    byId("answers").value = state.answers;
    byId("place").textContent = groups.length ? `prompt ${place + 1} of ${groups.length}` : "none";
    byId("previous").disabled = place === 0;
    byId("next").disabled = place >= groups.length - 1;
    byId("fold").setAttribute("aria-pressed", String(state.fold));
    for (const name of tokenColour.names) {
      const input = byId(`colour-${name}`);
      const reason = tokenColour.ways[name].missing(source);
      input.disabled = reason !== null;
      input.checked = name === state.colour;
      input.parentElement.title = reason === null ? "" : `Not here: ${reason}.`;
    }
    byId("name-selected").textContent = source.markName;
    byId("checkpoints").hidden = state.colour !== "change";
    for (const id of ["from", "to"]) {
      const options = source.checkpoints.map((name, i) => new Option(name, String(i)));
      byId(id).replaceChildren(...options);
      byId(id).value = String(state[id]);
    }
    drawScale();
  }

  function drawScale() {
    const strip = make("ol", "strip");
    for (const [style, edge, words] of tokenColour.classes(state.colour)) {
      const one = make("li", style);
      if (edge !== null) one.append(make("span", "edge", tokenColour.plain(edge)));
      one.append(make("span", "hidden", words));
      one.title = words;
      strip.append(one);
    }
    if (state.colour === "selected") strip.classList.add("pair-of-two");
    const title = make("p", "", tokenColour.ways[state.colour].title(source, state));
    const line = make("p", "under");
    line.append(make("span", "sample selected", "line"), ` ${source.mark}`);
    const parts = make("p", "under");
    parts.append(make("span", "sample parts", "bar"), " parts from the answer above");
    byId("scale").replaceChildren(title, strip, line, parts);
  }

  function recolour() {
    drawControls();
    for (const answer of answers) answer.recolour();
    if (described) describe(described.answer, described.t);
    link();
  }

  // ---- one token ---------------------------------------------------------------------------

  let described = null;

  function describe(answer, t) {
    described = { answer, t };
    details.replaceChildren(...tokenDetails.draw(source, answer.completion, t, state));
  }

  // At once: a reader who holds a key is faster than a smooth scroll.
  const bring = (node, block) => node.scrollIntoView({ block, behavior: "instant" });

  function inside(answer, t) {
    const { start, shown } = answer.completion;
    return Math.min(Math.max(t, start), start + Math.max(shown - 1, 0));
  }

  // Makes a token the active one of its answer, and the one that a link leads to.
  function choose(answer, wanted) {
    if (!answer.completion.shown) return;
    const t = inside(answer, wanted);
    answer.active = t;
    state.sample = answer.completion.sample;
    state.token = t - answer.completion.start + 1;
    const node = answer.node(t);
    element.querySelectorAll(".t.current").forEach((old) => old.classList.remove("current"));
    node.classList.add("current");
    answer.text.setAttribute("aria-activedescendant", node.id);
    bring(node, "nearest");
    describe(answer, t);
    link();
  }

  const next = {
    ArrowRight: (answer, t) => t + 1,
    ArrowLeft: (answer, t) => t - 1,
    Home: (answer) => answer.completion.start + answer.begin,
    End: (answer) => answer.completion.start + answer.completion.shown - 1,
  };

  // The next marked token in a direction; none: stay.
  function marked(answer, step) {
    const { start, shown } = answer.completion;
    let t = answer.active + step;
    while (t >= start && t < start + shown && !source.marked(t)) t += step;
    return t >= start && t < start + shown ? t : answer.active;
  }

  function moveInAnswer(event, answer) {
    const { key, shiftKey } = event;
    if (key === "ArrowUp" || key === "ArrowDown") {
      const other = answers[answers.indexOf(answer) + (key === "ArrowDown" ? 1 : -1)];
      if (!other || shiftKey) return false;
      choose(other, other.completion.start + answer.active - answer.completion.start);
      other.text.focus({ preventScroll: true });
      return true;
    }
    if (!(key in next)) return false;
    const step = key === "ArrowRight" ? 1 : key === "ArrowLeft" ? -1 : 0;
    choose(answer, shiftKey && step ? marked(answer, step) : next[key](answer, answer.active));
    return true;
  }

  const tokenOf = (event) => event.target.closest(".t");
  const answerOf = (node) => node.closest(".tokens-text").answer;
  // Where the pointer was last: text that scrolls away below it is not pointed at.
  let pointer = "";
  for (const kind of ["pointerover", "pointermove"]) {
    element.addEventListener(kind, (event) => {
      const now = `${event.clientX},${event.clientY}`;
      const token = kind === "pointerover" && now !== pointer && tokenOf(event);
      pointer = now;
      if (token) describe(answerOf(token), token.t);
    });
  }
  element.addEventListener("click", (event) => {
    const token = tokenOf(event);
    if (!token) return;
    const answer = answerOf(token);
    answer.text.focus({ preventScroll: true });
    choose(answer, token.t);
  });
  element.addEventListener("focusin", (event) => {
    const { answer } = event.target;
    if (answer && event.target.matches(":focus-visible")) choose(answer, answer.active);
  });

  // ---- links -------------------------------------------------------------------------------

  let address = "";
  let waiting = 0;

  function hash() {
    const fields = new URLSearchParams({ source: state.source });
    if (state.group !== null) fields.set("group", state.group);
    if (state.sample !== null) fields.set("sample", state.sample);
    if (state.token !== null) fields.set("token", state.token);
    fields.set("colour", state.colour);
    if (state.answers !== "all") fields.set("answers", state.answers);
    if (state.colour === "change") fields.set("from", state.from);
    if (state.colour === "change") fields.set("to", state.to);
    if (state.fold) fields.set("fold", "1");
    return `#${fields}`;
  }

  // The address follows what is shown, once the reader has done something; browsers allow few
  // changes a second.
  function link() {
    if (!touched) return;
    clearTimeout(waiting);
    waiting = setTimeout(writeAddress, 200);
  }

  function writeAddress() {
    clearTimeout(waiting);
    address = hash();
    if (location.hash !== address) history.replaceState(null, "", address);
  }

  let touched = false;
  for (const kind of ["pointerdown", "keydown", "change"]) {
    section.addEventListener(kind, () => { touched = true; }, true);
  }

  const whole = (text) => (/^\d{1,15}$/.test(text || "") ? Number(text) : null);

  // Takes over what a link says; a hash without "=" is the place of a section and none of ours.
  function follow() {
    if (!location.hash.includes("=") || location.hash === address) return false;
    const fields = new URLSearchParams(location.hash.slice(1));
    const known = (name, values, other) =>
      values.includes(fields.get(name)) ? fields.get(name) : other;
    Object.assign(state, {
      source: known("source", tokenData.keys, state.source),
      group: whole(fields.get("group")),
      sample: whole(fields.get("sample")),
      token: whole(fields.get("token")),
      colour: known("colour", tokenColour.names, "entropy"),
      answers: known("answers", Object.keys(fitting), "all"),
      from: whole(fields.get("from")) || 0,
      to: whole(fields.get("to")) || 0,
      fold: fields.get("fold") === "1",
    });
    return true;
  }

  async function goToLink() {
    if (!follow()) return;
    const { group } = state;
    await show();
    if (group !== null && group !== state.group) say("the prompt of this link is not on the page");
    const answer = answers.find((one) => one.completion.sample === state.sample);
    if (answer && state.token !== null) choose(answer, answer.completion.start + state.token - 1);
    bring(section.querySelector(".browser"), "start");
    const current = element.querySelector(".t.current");
    if (current) bring(current, "center");
  }

  function say(text) {
    byId("said").textContent = text;
    setTimeout(() => { byId("said").textContent = ""; }, 4000);
  }

  async function copyLink() {
    writeAddress();
    try {
      await navigator.clipboard.writeText(location.href);
      say("link copied");
    } catch {
      say("the link is in the address bar"); // the browser does not let pages copy
    }
  }

  // ---- controls and keys -------------------------------------------------------------------

  function go(step) {
    const at = place + step;
    if (at < 0 || at >= groups.length) return;
    const hadFocus = element.contains(document.activeElement);
    state.group = groups[at].number;
    state.sample = state.token = null;
    drawGroups();
    if (hadFocus && answers.length) answers[0].text.focus({ preventScroll: true });
    const browser = section.querySelector(".browser");
    if (browser.getBoundingClientRect().top < 0) bring(browser, "start");
  }

  function colourBy(name) {
    if (tokenColour.ways[name].missing(source)) {
      say(`${name}: ${tokenColour.ways[name].missing(source)}`);
      return;
    }
    state.colour = name;
    recolour();
  }

  function fold() {
    state.fold = !state.fold;
    drawGroups();
  }

  function help() {
    byId("help").showModal();
  }

  const keys = {
    j: () => go(1), k: () => go(-1), f: fold, c: copyLink, "?": help,
    ...Object.fromEntries(tokenColour.names.map((name, i) => [i + 1, () => colourBy(name)])),
  };

  // Keys work while the viewer has the focus, or is on the screen and nothing has it.
  function listens(target) {
    if (byId("help").open || target.closest("select, textarea, input[type=text]")) return false;
    if (section.contains(target)) return true;
    const { top, bottom } = section.getBoundingClientRect();
    return target === document.body && top < innerHeight && bottom > 0;
  }

  document.addEventListener("keydown", (event) => {
    if (!source || event.ctrlKey || event.metaKey || event.altKey || !listens(event.target)) return;
    const { answer } = event.target;
    if (answer && moveInAnswer(event, answer)) event.preventDefault();
    else if (event.key in keys) {
      touched = true;
      event.preventDefault();
      keys[event.key]();
    }
  });

  byId("previous").addEventListener("click", () => go(-1));
  byId("next").addEventListener("click", () => go(1));
  byId("fold").addEventListener("click", fold);
  byId("copy").addEventListener("click", copyLink);
  byId("keys").addEventListener("click", help);
  for (const name of tokenColour.names) {
    byId(`colour-${name}`).addEventListener("change", () => colourBy(name));
  }
  byId("source").addEventListener("change", (event) => {
    Object.assign(state, { source: event.target.value, group: null, sample: null, token: null });
    show();
  });
  byId("answers").addEventListener("change", (event) => {
    state.answers = event.target.value;
    drawGroups();
  });
  for (const id of ["from", "to"]) {
    byId(id).addEventListener("change", (event) => {
      state[id] = Number(event.target.value);
      recolour();
    });
  }
  addEventListener("beforeprint", () => answers.forEach((answer) => answer.raiseAll()));
  addEventListener("hashchange", goToLink);

  if (typeof DecompressionStream === "undefined") {
    element.replaceChildren(make("p", "empty", "This browser cannot unpack the tokens: it is older than 2023."));
  } else if (location.hash.includes("=")) goToLink();
  else show();
})();
