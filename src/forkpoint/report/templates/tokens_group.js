// The answers to one prompt, under each other. Where they are long, only the tokens near the window
// are elements; the rest is the same text without them, so nothing moves when they come and go.
const tokenGroup = (() => {
  "use strict";
  const { make, isolated, short, signed, word } = tokenDetails;
  const FEW = 4000; // tokens that can all be elements
  const TOKENS_PER_PIECE = 128;
  const NEAR = "600px 0px";
  // Hebrew, Arabic and the other scripts that run from right to left.
  const LEFTWARD =
    /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;
  const RIGHTWARD = /[\p{L}\p{N}]/u;

  const mark = (right) => (right === null ? "–" : right ? "●" : "○");

  function verdict(completion) {
    const answer = completion.right === null ? "no score" : completion.right ? "right" : "wrong";
    return completion.truncated ? `${answer}, truncated` : answer;
  }

  // How many tokens two completions begin with alike.
  function commonTokens(source, a, b) {
    const most = Math.min(a.shown, b.shown);
    let same = 0;
    while (same < most && source.words[a.start + same] === source.words[b.start + same]) same += 1;
    return same;
  }

  function drawPrompt(group, source, fits) {
    const head = make("div", "prompt");
    const id = make("p", "id", `${source.title} · `);
    id.append(isolated("", group.id));
    const prompt = make("p", "text", group.prompt);
    prompt.dir = "auto";
    head.append(id, prompt, drawRewards(group, fits));
    return head;
  }

  function drawRewards(group, fits) {
    const right = group.completions.filter((one) => one.right === true).length;
    const line = make("p", "rewards");
    const marks = make("span", "marks");
    for (const one of group.completions) {
      const dot = make("span", fits(one) ? "" : "away", mark(one.right));
      dot.title = `answer ${one.sample}, reward ${short(one.reward)}`;
      marks.append(dot);
    }
    marks.setAttribute("aria-hidden", "true");
    const trained = group.accepted === false ? ", not trained on" : "";
    const rest = group.sampled - group.completions.length;
    const missing = rest ? `; ${rest} more answers are not on this page` : "";
    line.append(marks, ` ${right} of ${group.completions.length} right${trained}${missing}`);
    return line;
  }

  function mean(source, completion) {
    let sum = 0;
    for (let t = completion.start; t < completion.start + completion.shown; t += 1) {
      const value = source.entropy.value(t);
      if (value === null) return null;
      sum += value;
    }
    return completion.shown ? sum / completion.shown : null;
  }

  // One answer, its element and its pieces.
  class Answer {
    constructor(source, completion, above, state) {
      Object.assign(this, { source, completion, state, pieces: [], common: 0 });
      this.hasAbove = above !== null;
      if (above) this.common = commonTokens(source, completion, above);
      this.begin = state.fold ? this.common : 0;
      this.element = make("article", "completion");
      this.text = make("div", "tokens-text");
      this.text.dir = "auto";
      this.text.tabIndex = 0;
      this.text.setAttribute("role", "listbox");
      this.text.setAttribute("aria-orientation", "horizontal");
      this.text.setAttribute("aria-label", `Tokens of answer ${completion.sample}`);
      this.text.answer = this;
      this.active = this.firstActive();
    }

    // The first marked token of those shown, else the first.
    firstActive() {
      const { start, shown } = this.completion;
      for (let t = start + this.begin; t < start + shown; t += 1) {
        if (this.source.marked(t)) return t;
      }
      return start + Math.min(this.begin, Math.max(shown - 1, 0));
    }

    draw(observer) {
      this.observer = observer;
      this.element.replaceChildren(this.drawHead(), this.text);
      if (this.begin > 0) this.text.before(this.drawFold());
      this.cut();
    }

    drawHead() {
      const { completion, source } = this;
      const head = make("p", "verdict");
      head.append(make("b", "", `${mark(completion.right)} ${verdict(completion)}`));
      const facts = [`answer ${completion.sample}`, `reward ${short(completion.reward)}`];
      if (completion.advantage !== null) facts.push(`advantage ${signed(completion.advantage)}`);
      facts.push(`${completion.length} tokens`, `mean ${short(mean(source, completion))} nats`);
      for (const fact of facts) head.append(make("span", "", fact));
      if (this.hasAbove) head.append(make("span", "parting", this.parting()));
      if (completion.error !== null) head.append(isolated("error", completion.error));
      return head;
    }

    parting() {
      const { shown } = this.completion;
      if (this.common === shown) return "begins like the one above to its end";
      return this.common === 0
        ? "differs from the one above at once"
        : `parts from the one above at token ${this.common + 1}`;
    }

    drawFold() {
      const tokens = `${this.begin} token${this.begin > 1 ? "s" : ""}`;
      const button = make("button", "fold", `… ${tokens} as in the answer above`);
      button.type = "button";
      button.addEventListener("click", () => {
        this.unfold();
        this.text.focus();
      });
      return button;
    }

    unfold() {
      this.begin = 0;
      this.draw(this.observer);
    }

    cut() {
      const { start, shown, length } = this.completion;
      this.pieces = [];
      for (let t = start + this.begin; t < start + shown; t += TOKENS_PER_PIECE) {
        const node = make("span", "piece");
        node.setAttribute("role", "none");
        node.piece = { answer: this, node, from: t, to: Math.min(t + TOKENS_PER_PIECE, start + shown) };
        this.pieces.push(node.piece);
        if (this.observer) {
          this.flatten(node.piece);
          this.observer.observe(node);
        } else this.raise(node.piece);
      }
      this.text.replaceChildren(...this.pieces.map((piece) => piece.node));
      const rest = length - shown;
      if (rest > 0) this.text.append(make("span", "rest", ` … ${rest} more tokens`));
      if (length === 0) this.text.append(make("span", "rest", "no tokens"));
    }

    // A token's text; without the space before it where the beginning is folded away.
    word(t) {
      const shown = word(this.source.words[t]);
      return this.begin > 0 && t === this.completion.start + this.begin ? shown.trimStart() : shown;
    }

    // A piece as text and runs: a run holds tokens from right to left and keeps them from moving
    // what stands around it. It begins and ends with such a token.
    *runs(piece) {
      let run = [];
      let leftward = 0; // tokens of the run up to its last one from right to left
      for (let t = piece.from; t < piece.to; t += 1) {
        const text = this.word(t);
        if (LEFTWARD.test(text)) leftward = run.push(t);
        else if (leftward && !RIGHTWARD.test(text)) run.push(t);
        else {
          yield* this.cutRun(run, leftward);
          [run, leftward] = [[], 0];
          yield { tokens: [t], leftward: false };
        }
      }
      yield* this.cutRun(run, leftward);
    }

    *cutRun(run, leftward) {
      if (leftward) yield { tokens: run.slice(0, leftward), leftward: true };
      for (const t of run.slice(leftward)) yield { tokens: [t], leftward: false };
    }

    // The nodes of a piece, given how a token is drawn. White space before a word is not part of
    // its token, so that words stand apart, nor of the run that it begins.
    fill(piece, drawOne) {
      const nodes = [];
      for (const { tokens, leftward } of this.runs(piece)) {
        const drawn = tokens.flatMap((t) => {
          const shown = this.word(t);
          const gap = shown.trim() ? shown.length - shown.trimStart().length : 0;
          return [document.createTextNode(shown.slice(0, gap)), drawOne(t, shown.slice(gap))];
        });
        if (leftward) {
          const run = make("bdi");
          run.dir = "rtl";
          run.append(...drawn.slice(1));
          nodes.push(drawn[0], run);
        } else nodes.push(...drawn);
      }
      piece.node.replaceChildren(...nodes);
      piece.node.normalize();
    }

    flatten(piece) {
      this.fill(piece, (t, text) => document.createTextNode(text));
      piece.raised = false;
    }

    raise(piece) {
      this.fill(piece, (t, text) => this.drawToken(t, text));
      piece.raised = true;
    }

    drawToken(t, text) {
      const node = make("span", "", text);
      node.id = `token-${t}`;
      node.t = t;
      node.setAttribute("role", "option");
      const parts = this.hasAbove && t === this.completion.start + this.common;
      node.className = [
        "t",
        tokenColour.ways[this.state.colour].style(this.source, this.completion, t, this.state),
        this.source.marked(t) ? "selected" : "",
        parts ? "parts" : "",
        this.isCurrent(t) ? "current" : "",
      ].filter(Boolean).join(" ");
      return node;
    }

    isCurrent(t) {
      return this.state.sample === this.completion.sample && this.active === t;
    }

    pieceOf(t) {
      return this.pieces.find((piece) => piece.from <= t && t < piece.to);
    }

    // The element of a token, made if it is not there.
    node(t) {
      const { start } = this.completion;
      if (t < start + this.begin) this.unfold();
      const piece = this.pieceOf(t);
      if (!piece) return null;
      if (!piece.raised) this.raise(piece);
      return document.getElementById(`token-${t}`);
    }

    recolour() {
      for (const piece of this.pieces) if (piece.raised) this.raise(piece);
    }

    raiseAll() {
      for (const piece of this.pieces) this.raise(piece);
    }
  }

  function watch(entries) {
    for (const { target, isIntersecting } of entries) {
      const { answer } = target.piece;
      if (isIntersecting && !target.piece.raised) answer.raise(target.piece);
      const holds = answer.active >= target.piece.from && answer.active < target.piece.to;
      if (!isIntersecting && target.piece.raised && !holds) answer.flatten(target.piece);
    }
  }

  let observer = null;

  // The answers of a group that fit, drawn into an element.
  function draw(element, source, group, fits, state) {
    if (observer) observer.disconnect();
    const shown = group.completions.filter(fits);
    const tokens = shown.reduce((sum, one) => sum + one.shown, 0);
    observer = tokens > FEW ? new IntersectionObserver(watch, { rootMargin: NEAR }) : null;
    const answers = shown.map((one, i) => new Answer(source, one, i ? shown[i - 1] : null, state));
    for (const answer of answers) answer.draw(observer);
    element.replaceChildren(
      drawPrompt(group, source, fits), ...answers.map((answer) => answer.element),
    );
    return answers;
  }

  return { draw };
})();
