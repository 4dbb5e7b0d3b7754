"use strict";
// The viewer of single answers. Texts of environments and models are inserted as textContent only.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const view = document.getElementById("view");
  const END = { goal: "solved", over: "not solved: the episode was over", step_limit: "not solved: out of turns", token_budget: "not solved: out of tokens", error: "the environment failed" };
  const KINDS = data.order.filter((kind) => data.kinds[kind].items.length);
  const state = {
    kind: KINDS[0], split: "", outcome: "", search: "", item: 0, left: 0,
    right: data.models.length > 1 ? data.models.length - 1 : -1, side: "left",
  };
  const START = { ...state };

  // Elements: make("p.goal", "text") or make("div", [children], {attributes}).
  function make(kind, content, attributes) {
    const [tag, ...classes] = kind.split(".");
    const element = document.createElement(tag);
    if (classes.length) element.className = classes.join(" ");
    for (const [name, value] of Object.entries(attributes ?? {})) element.setAttribute(name, value);
    for (const child of Array.isArray(content) ? content : [content ?? ""]) {
      if (child !== null && child !== false) element.append(child);
    }
    return element;
  }
  const text = (index) => (index === null || index === undefined ? "" : data.texts[index]);
  const spaced = (name) => name.replaceAll("_", " ");
  const badge = (words, tone = "") => make(`span.badge${tone && "." + tone}`, words);

  // The filters.
  const OUTCOMES = {
    "": ["all", () => true],
    differ: ["the two models differ", (a, b) => a && b && a.right !== b.right],
    gained: ["only the right-hand model is right", (a, b) => a && b && !a.right && b.right],
    lost: ["only the left-hand model is right", (a, b) => a && b && a.right && !b.right],
    right: ["left-hand model right", (a) => a && a.right],
    wrong: ["left-hand model wrong", (a) => a && !a.right],
    malformed: ["with a malformed reply", (...both) => both.some((a) => a && (a.malformed || a.turns?.some((t) => t.malformed)))],
    loop: ["with a loop", (...both) => both.some((a) => a?.turns?.some((t) => t.repeat))],
  };
  const NEEDS_TWO = ["differ", "gained", "lost"];
  function possible() {
    return Object.keys(OUTCOMES).filter((key) => (state.right >= 0 || !NEEDS_TWO.includes(key))
      && (key !== "loop" || state.kind === "episodes") && (key !== "malformed" || state.kind !== "reasoning"));
  }
  function answers(item) {
    return [state.left, state.right].filter((model) => model >= 0).map((model) => item.answers[model]);
  }
  function filtered() {
    return data.kinds[state.kind].items.filter(
      (item) => (!state.split || item.split === state.split) && OUTCOMES[state.outcome][1](...answers(item)) && matches(item),
    );
  }
  // Whether an item holds the words searched for: in its id, question, and the transcripts of the models shown.
  function matches(item) {
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return true;
    const shown = [item.id, ...textsOf({ ...item, answers: answers(item) })].join("\n").toLowerCase();
    return words.every((word) => shown.includes(word));
  }
  const TEXTS = ["goal", "observation", "history", "expert", "alternative", "expected", "reply", "action"];
  function textsOf(value, key = "") {
    if (Array.isArray(value)) return value.flatMap((entry) => textsOf(entry, key));
    if (typeof value === "number") return TEXTS.includes(key) ? [text(value)] : [];
    if (value && typeof value === "object") return Object.entries(value).flatMap(([name, entry]) => textsOf(entry, name));
    return [];
  }

  // Replies longer than their box can be scrolled by keys. That depends on the layout, which changes with the window.
  const SCROLLS = { tabindex: "0", role: "group", "aria-label": "Reply" };
  const boxes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const scrolls = target.scrollHeight > target.clientHeight + 1; // both are rounded
      for (const [name, value] of Object.entries(SCROLLS)) {
        if (scrolls) target.setAttribute(name, value);
        else target.removeAttribute(name);
      }
    }
  });

  // The frame is created once; `show` fills it.
  const tabs = KINDS.map((kind) => {
    const tab = make("button", `${data.kinds[kind].title} (${data.kinds[kind].items.length})`, { type: "button", role: "tab", id: `tab-${kind}`, "aria-controls": "answer" });
    tab.addEventListener("click", () => { open(kind); });
    return tab;
  });
  const left = select(data.models.map((name, index) => [index, name]), (value) => { state.left = Number(value); state.item = 0; });
  const right = select([[-1, "none"], ...data.models.map((name, index) => [index, name])], (value) => { state.right = Number(value); state.item = 0; });
  const split = select([], (value) => { state.split = value; state.item = 0; });
  const outcome = select([], (value) => { state.outcome = value; state.item = 0; });
  const items = select([], (value) => { state.item = Number(value); });
  const search = make("input", "", { type: "search", placeholder: "words in the transcripts", autocomplete: "off" });
  search.addEventListener("input", () => { state.search = search.value; state.item = 0; acted(); });
  const previous = make("button", "← Previous", { type: "button" });
  const next = make("button", "Next →", { type: "button" });
  const where = make("span.where", "", { role: "status" });
  const answer = make("div", "", { id: "answer", role: "tabpanel", tabindex: "0" });
  previous.addEventListener("click", () => move(-1));
  next.addEventListener("click", () => move(1));

  function select(options, changed) {
    const element = make("select");
    fill(element, options);
    element.addEventListener("change", () => { changed(element.value); acted(); });
    return element;
  }
  function fill(element, options, value) {
    element.replaceChildren(...options.map(([key, name]) => make("option", name, { value: key })));
    if (value !== undefined) element.value = value;
  }
  function labelled(words, element) {
    element.setAttribute("aria-label", words);
    return make("label", [make("span", words, { "aria-hidden": "true" }), element]);
  }

  function move(by) {
    const count = filtered().length;
    const to = Math.min(Math.max(state.item + by, 0), Math.max(count - 1, 0));
    if (to !== state.item) { state.item = to; acted(); }
  }
  function open(kind) {
    Object.assign(state, { kind, split: "", outcome: "", item: 0 });
    acted();
  }
  // Only user actions change the address: a page that was just opened keeps its address.
  function acted() {
    show();
    remember(filtered()[state.item]);
  }

  function show() {
    const hadFocus = [answer, previous, next].some((element) => element.contains(document.activeElement));
    for (const [index, tab] of tabs.entries()) {
      const chosen = KINDS[index] === state.kind;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
    }
    const { items: all, total } = data.kinds[state.kind];
    answer.setAttribute("aria-labelledby", `tab-${state.kind}`);
    left.value = state.left;
    right.value = state.right;
    if (search.value !== state.search) search.value = state.search;
    fill(split, [["", "all"], ...[...new Set(all.map((item) => item.split))].sort().map((name) => [name, name])], state.split);
    if (!possible().includes(state.outcome)) state.outcome = "";
    fill(outcome, possible().map((key) => [key, OUTCOMES[key][0]]), state.outcome);
    const matches = filtered();
    state.item = Math.min(state.item, Math.max(matches.length - 1, 0));
    fill(items, matches.map((item, index) => [index, title(item)]), state.item);
    items.disabled = !matches.length;
    previous.disabled = state.item === 0;
    next.disabled = state.item >= matches.length - 1;
    const leftOut = total - all.length;
    where.textContent = (matches.length ? `${state.item + 1} of ${matches.length}` : "no match")
      + (leftOut ? `; ${leftOut} of ${total} are left out of this page` : "");
    boxes.disconnect();
    answer.replaceChildren(...(matches.length ? draw(matches[state.item]) : []));
    // The element with the focus is gone or disabled; keys work only within the viewer.
    if (hadFocus && (document.activeElement === document.body || document.activeElement.disabled)) answer.focus({ preventScroll: true });
  }
  function title(item) {
    const marks = answers(item).map((a) => (a ? (a.right ? "✓" : "✗") : "–")).join(" ");
    return `${marks}  ${shortened(text(item.goal) || item.id)} · ${spaced(item.split)}`;
  }
  const shortened = (words) => (words.length > 100 ? `${words.slice(0, 99)}…` : words);

  // One item: the question, then one column per model.
  function draw(item) {
    const models = [...new Set([state.left, state.right].filter((model) => model >= 0))];
    const columns = make(`div.columns${models.length < 2 ? ".single" : ""}`, models.map((model) => column(item, model)), { "data-side": state.side });
    const sides = make("div.switch", models.length < 2 ? [] : models.map((model, index) => {
      const side = index ? "right" : "left";
      const button = make("button", data.models[model], { type: "button", "aria-pressed": state.side === side });
      button.addEventListener("click", () => {
        state.side = side;
        columns.dataset.side = side;
        for (const [other, each] of [...sides.children].entries()) each.setAttribute("aria-pressed", other === index);
      });
      return button;
    }));
    return [question(item), sides, columns];
  }

  function question(item) {
    if (state.kind === "reasoning") return reasoningQuestion(item);
    const about = [item.split, item.type && spaced(item.type), item.id];
    if (item.inferable !== undefined) about.splice(1, 0, item.inferable ? "inferable" : "not inferable");
    if (item.margin !== undefined) about.splice(1, 0, item.margin === null ? "margin unknown" : `margin ${item.margin}`);
    const parts = [make("p.goal", text(item.goal) || item.id), make("p.about", about.filter(Boolean).join(" · "))];
    if (state.kind === "episodes") {
      if (item.expert) parts.push(details(`the expert's ${item.expert.length} actions`, make("ol.history", item.expert.map((action) => make("li", text(action))))));
    } else if (item.observation !== undefined) {
      if (item.history.length) {
        const turns = item.history.map(([seen, done]) => make("li", [text(seen), " ", make("b", `→ ${text(done)}`)]));
        parts.push(details(`${turns.length} earlier turns`, make("ol.history", turns)));
      }
      parts.push(make("p.text", text(item.observation)), actions(item.list, null, item.expert));
      if (state.kind === "next_actions") parts.push(make("p.expert", `expert: ${text(item.expert)}`));
      else parts.push(make("p.expert", `expert: ${text(item.expert)}`), make("p.about", `alternative: ${text(item.alternative)}`));
    } else {
      parts.push(noQuestion());
    }
    return make("div.question", parts);
  }
  const noQuestion = () => make("p.about", "The file with this question was not found, so only the replies are shown.");

  // A question of general reasoning: it has no state and no actions.
  function reasoningQuestion(item) {
    const parts = [make("p.about", item.id), item.goal === null ? noQuestion() : make("p.text.goal", text(item.goal))];
    if (item.expected !== null) parts.push(make("p.expert", `expected answer: ${text(item.expected)}`));
    return make("div.question", parts);
  }

  function column(item, model) {
    const result = item.answers[model];
    const head = [make("span", data.models[model])];
    const body = [];
    if (!result) {
      body.push(make("p.about", "This model was not evaluated on this item."));
    } else if (state.kind === "episodes") {
      head.push(badge(END[result.end] ?? result.end, result.right ? "good" : "bad"), badge(`${result.steps} turns`));
      body.push(turns(result.turns));
    } else {
      head.push(badge(result.right ? "right" : "wrong", result.right ? "good" : "bad"));
      body.push(...(state.kind === "reasoning" ? [box(text(result.reply))] : single(item, result)));
    }
    const tone = `--tone: var(--series-${model % data.colours})`;
    return make("article.column", [make("h3", head), ...body], { "aria-label": data.models[model], style: tone });
  }

  function single(item, result) {
    const parts = [];
    if (state.kind === "choices" && item.expert !== null) {
      parts.push(make("ol.candidates", result.candidates.map((action, position) => make("li", [
        text(action), " ", position === result.expert_position ? badge("expert", "good") : "", " ",
        position === result.chosen ? badge("chosen", result.right ? "good" : "bad") : "",
      ]))));
    }
    if (state.kind === "choices" && !result.malformed && result.chosen === null) parts.push(make("p", badge("names no candidate", "bad")));
    if (result.prompt !== null) parts.push(details("the prompt as sent (before the model's chat template)", make("pre", text(result.prompt), { tabindex: "0", role: "group", "aria-label": "Prompt" })));
    parts.push(reply(result), done(result));
    return parts;
  }

  function turns(played) {
    if (!played.length) return make("p.about", "The turns of this episode were not recorded.");
    const list = [];
    for (let index = 0; index < played.length; index += 1) {
      const turn = played[index];
      const before = played[index - 1];
      list.push(one(turn, index));
      if (turn.as_expert === false && (index === 0 || before.as_expert) && turn.expert !== null) {
        list.push(make("li.parts", index + 1 < played.length ? "The model leaves the expert's path here; all later states are its own." : "The model leaves the expert's path here."));
      }
      // A loop shows its first two turns; the rest is collapsed.
      const inside = turn.repeat ? runFrom(played, index) : 0;
      if (turn.repeat && inside === turn.repeat && turn.repeat > 3) {
        list.push(one(played[index + 1], index + 1));
        const rest = [];
        for (let later = index + 2; later < index + turn.repeat; later += 1) rest.push(one(played[later], later));
        list.push(make("li", make("details.more", [make("summary", `the same failed action ${rest.length} more times, to turn ${index + turn.repeat}`), make("ol.turns", rest)])));
        index += turn.repeat - 1;
      }
    }
    return make("ol.turns", list);
  }
  // How many turns from `start` on repeat the same failed action.
  function runFrom(played, start) {
    const same = (turn) => turn && !turn.admissible && turn.action === played[start].action;
    let end = start;
    while (same(played[end])) end += 1;
    return end - start;
  }

  function one(turn, index) {
    const marks = [make("span", `Turn ${index + 1}`)];
    if (turn.malformed) marks.push(badge(`malformed: ${spaced(turn.malformed)}`, "bad"));
    else if (!turn.admissible) marks.push(badge("inadmissible", "bad"));
    if (turn.repeat) marks.push(badge(`loop: same failed action ${turn.repeat} times`, "loop"));
    if (turn.as_expert) marks.push(make("span", "as the expert"));
    const parts = [make("header", marks), make("p.text", text(turn.observation)), reply(turn), done(turn)];
    if (turn.expert !== null && !turn.as_expert) parts.push(make("p.expert", `expert: ${text(turn.expert)}`));
    parts.push(actions(turn.list, turn.action, turn.expert));
    const tone = turn.repeat ? ".loop" : turn.admissible ? "" : ".bad";
    return make(`li.turn${tone}`, parts);
  }

  // The reply as written; empty if it is only the action.
  function reply(result) {
    const written = text(result.reply);
    if (result.action !== null && written.trim() === `<action>${text(result.action)}</action>`) return "";
    return box(written);
  }
  function box(written) {
    const element = make("div.text.reply", written || "(an empty reply)");
    boxes.observe(element);
    return element;
  }
  function done(result) {
    if (result.action === null) return make("p.act.no", make("b", result.malformed ? `no readable action (${spaced(result.malformed)})` : "no readable action"));
    const marks = result.repeat === undefined && !result.admissible ? badge("inadmissible", "bad") : "";
    return make(`p.act${result.admissible ? "" : ".no"}`, ["→ ", make("b", text(result.action)), " ", marks]);
  }
  function actions(list, chosen, expert) {
    const entries = list.map((action) => {
      const kind = (action === chosen ? ".chosen" : "") + (action === expert ? ".right" : "");
      const words = [action === chosen && "chosen", action === expert && "expert"].filter(Boolean).join(", ");
      return make(`li${kind}`, text(action) + (words ? ` (${words})` : ""));
    });
    return details(`${list.length} admissible actions`, make("ul.actions", entries));
  }
  const details = (words, content) => make("details", [make("summary", words), content]);

  // The address names the open item, so that it can be shared.
  function remember(item) {
    if (!item) return;
    const query = new URLSearchParams({ kind: state.kind, id: item.id, left: state.left, right: state.right });
    if (state.split) query.set("split", state.split);
    if (state.outcome) query.set("show", state.outcome);
    try { history.replaceState(null, "", `#${query}`); } catch { /* some previews do not allow it */ }
  }
  function recall() {
    const query = new URLSearchParams(location.hash.slice(1));
    if (!KINDS.includes(query.get("kind"))) return false;
    const model = (name, least) => {
      const index = Number.parseInt(query.get(name), 10);
      return index >= least && index < data.models.length ? index : state[name];
    };
    Object.assign(state, { kind: query.get("kind"), left: model("left", 0), right: model("right", -1) });
    Object.assign(state, { split: query.get("split") ?? "", outcome: query.get("show") ?? "" });
    const find = () => filtered().findIndex((item) => item.id === query.get("id"));
    if (!possible().includes(state.outcome) || find() < 0) Object.assign(state, { split: "", outcome: "" });
    state.item = Math.max(0, find());
    return true;
  }

  view.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inTabs = tabs.includes(event.target);
    if (inTabs && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      const to = (tabs.indexOf(event.target) + (event.key === "ArrowRight" ? 1 : tabs.length - 1)) % tabs.length;
      open(KINDS[to]);
      tabs[to].focus();
    } else if (event.target.matches("select, input")) {
      return;
    } else if (event.key === "j" || event.key === "k") {
      move(event.key === "j" ? 1 : -1);
    } else if (KINDS["1234".indexOf(event.key)]) {
      open(KINDS["1234".indexOf(event.key)]);
    } else {
      return;
    }
    event.preventDefault();
  });

  if (!KINDS.length) {
    view.append(make("p.notice", "This page has no single answers."));
    return;
  }
  view.tabIndex = 0;
  view.setAttribute("role", "group");
  view.setAttribute("aria-labelledby", "viewer-title");
  view.append(
    make("div.tabs", tabs, { role: "tablist", "aria-label": "Kind of answer" }),
    make("div.controls", [labelled("Left-hand model", left), labelled("Right-hand model", right), labelled("Split", split), labelled("Show", outcome), labelled("Search", search)]),
    make("div.steps", [previous, next, items, where]),
    make("p.keys", ["Keys, while the viewer has the focus: ", make("kbd", "j"), " next, ", make("kbd", "k"), " previous, ", make("kbd", "1"), " to ", make("kbd", KINDS.length), " kind of answer."]),
    answer,
  );
  items.setAttribute("aria-label", "Item");
  items.className = "items";
  const named = recall();
  show();
  if (named) view.scrollIntoView();
  // A link to another answer. Without a fragment the page is as when it was opened.
  window.addEventListener("hashchange", () => {
    const recalled = recall();
    if (!recalled && location.hash) return; // another section of the page
    if (!recalled) Object.assign(state, START);
    show();
    if (recalled) view.scrollIntoView();
  });
})();
