// The list: what is shown, and what people do with it. marks.js comes before this file.

const PER_PAGE = 48;
const MEANING = { keep: "It is right as it is", wrong: "It does not belong there", unsure: "I cannot say" };

const $ = id => document.getElementById(id);
const probability = i => data.probability[i] / data.scale;
let shown = []; // the findings that pass the threshold and the filters
let page = 0;
let chosen = -1; // a place in `shown`

/** An element with properties, attributes (aria-…, data-…, role) and children. Text stays text, whatever it holds. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter(child => child !== null));
  return made;
}

function percent(share) {
  if (share > 0.999 && share < 1) return "over 99.9 %";
  if (share > 0 && share < 0.001) return "under 0.1 %";
  return (share * 100).toFixed(share > 0.99 || share < 0.01 ? 1 : 0).replace(/\.0$/, "") + " %";
}

/** A path as people may see it: what would be invisible, or turn the line around, is written out. */
function visible(path) {
  return path.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
    sign => "\\u" + sign.charCodeAt(0).toString(16).padStart(4, "0"));
}

/** The same, with places to break a line. */
function breakable(path) {
  return element("bdi", {}, ...visible(path).split(/(?<=[/_-])/).flatMap(part => [part, element("wbr")]));
}

/** Where an original is; "" where that is unknown. */
function original(path) {
  if (!data.rootUrl) return "";
  const url = Object.hasOwn(data.urls, path) ? data.urls[path] : path.split("/").map(encodeURIComponent).join("/");
  return data.rootUrl + "/" + url;
}

function picture(row, alt, otherwise = "") {
  const name = data.pictures[row];
  const source = name ? `pictures/${data.digest}/${name}` : otherwise;
  if (!source) return element("span", {}, "no picture");
  const className = name?.endsWith(".png") ? "small" : "";
  const image = element("img", { loading: "lazy", decoding: "async", alt, className });
  if (!name) image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= 128));
  image.addEventListener("error", () => image.replaceWith(element("span", { title: alt }, "cannot be shown")));
  image.src = source;
  return image;
}

function thumbnails(name) {
  const rows = Object.hasOwn(data.typical, name) ? data.typical[name] : [];
  return element("div", { className: "thumbs" }, ...rows.map(row => picture(row, "typical of " + name)));
}

/** Pictures beside each other under a title. */
const row = (title, thumbs) => element("section", {}, element("h3", {}, ...title), thumbs);
const named = number => element("b", {}, element("bdi", {}, visible(data.names[number])));

const pictures = images => element("div", { className: "thumbs" }, ...images.map(([number, path]) => {
  const image = picture(number, visible(path), original(path));
  image.title = visible(path);
  return image;
}));

function comparison(i) {
  const copies = data.copies[i], neighbours = data.neighbours[i], own = data.own[i], suggested = data.suggested[i];
  const more = data.times[i] > 2 ? ` and ${(data.times[i] - 2).toLocaleString("en")} more` : "";
  const rows = [
    copies && row(["Same picture as ", breakable(copies[0][1]), more], pictures(copies)),
    neighbours && row(["Most like it"], pictures(neighbours)),
    own >= 0 && row(["Is in ", named(own)], thumbnails(data.names[own])),
    suggested >= 0 && row(["Looks like ", named(suggested)], thumbnails(data.names[suggested])),
  ].filter(Boolean);
  return rows.length ? element("div", { className: "compare" }, ...rows) : null;
}

/** The answer to the question that a finding is about. */
function verdict(i) {
  const question = data.questions[data.question[i]];
  if (question === "duplicate") {
    const times = data.times[i];
    return [element("b", {}, times === 2 ? "Twice" : times.toLocaleString("en") + " times"), element("span", {}, "in this set")];
  }
  const text = question === "foreign" ? ["does not belong here"]
    : data.suggested[i] < 0 ? ["belongs to another class"] : ["belongs to ", named(data.suggested[i])];
  return [element("b", {}, percent(probability(i))), element("span", {}, ...text)];
}

function card(place) {
  const i = shown[place], path = visible(data.path[i]), url = original(data.path[i]);
  const fill = element("i");
  fill.style.width = probability(i) * 100 + "%";
  const buttons = Object.entries(MARKS).map(([mark, text]) =>
    element("button", { type: "button", "data-mark": mark, title: MEANING[mark] }, text));
  const made = element("li", { className: "card", tabIndex: -1, "data-place": place, "aria-label": path },
    element(url ? "a" : "div", { className: "picture", ...(url && { href: url, target: "_blank", rel: "noopener" }) },
      picture(data.row[i], path, url)),
    element("div", { className: "about" },
      element("p", { className: "verdict" }, ...verdict(i)),
      isCopy(i) ? null : element("div", { className: "bar", "aria-hidden": "true" }, fill),
      element("p", { className: "path" }, breakable(data.path[i]),
        element("button", { type: "button", className: "copy", "aria-label": "Copy the path of " + path }, "Copy")),
      element("ul", { className: "why" }, ...data.why[i].map(text => element("li", {}, visible(data.whys[text])))),
      comparison(i)),
    element("div", { className: "marks", role: "group", "aria-label": "Your mark" }, ...buttons));
  paint(made, i);
  return made;
}

function paint(made, i) {
  const mark = marks.get(i);
  made.dataset.mark = mark ?? "";
  for (const button of made.querySelectorAll(".marks button"))
    button.setAttribute("aria-pressed", String(button.dataset.mark === mark));
}

/** Tell something: read aloud by a screen reader, and, unless it can be seen elsewhere, shown for some seconds. */
function say(text, seen = false) {
  const said = $("said");
  said.className = seen ? "unseen" : "";
  said.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { said.textContent = ""; }, 5000);
}

// ---- what is shown

const isCopy = i => data.questions[data.question[i]] === "duplicate";

function filter() {
  const rate = Number($("rate").value);
  const name = $("class")?.value ? Number($("class").value) : null;
  const question = document.querySelector("[data-question][aria-pressed=true]")?.dataset.question;
  const marked = $("marked").value;
  const counts = Object.fromEntries(data.questions.map(each => [each, 0]));
  shown = [];
  let sum = 0, judged = 0;
  for (let i = 0; i < data.path.length; i++) {
    if (data.q[i] > rate * data.scale + 0.5 && !isCopy(i)) continue;
    if (name !== null && data.own[i] !== name && data.suggested[i] !== name) continue;
    if (marked && (marks.get(i) ?? "none") !== marked) continue;
    counts[data.questions[data.question[i]]] += 1;
    if (question && data.questions[data.question[i]] !== question) continue;
    shown.push(i);
    if (isCopy(i)) continue;
    sum += probability(i);
    judged += 1;
  }
  for (const button of document.querySelectorAll("[data-question]:not([data-question=''])"))
    button.lastElementChild.textContent = counts[button.dataset.question].toLocaleString("en");
  $("asked").textContent = percent(rate);
  const bold = text => element("b", {}, text), copies = shown.length - judged;
  const finds = [bold(judged.toLocaleString("en")), judged === 1 ? " image" : " images",
    ...(judged ? [", about ", bold(percent(sum / judged)), judged === 1 ? " likely to be a true find" : " of them true finds"] : [])];
  const twice = [bold(copies.toLocaleString("en")), copies === 1 ? " picture" : " pictures", " more than once"];
  $("count").replaceChildren(...(judged || !copies ? finds : []), judged && copies ? "; " : "", ...(copies ? twice : []));
  show(0);
}

function asked(event) {
  for (const button of document.querySelectorAll("[data-question]"))
    button.setAttribute("aria-pressed", String(button === event.currentTarget));
  filter();
}

function show(number) {
  const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
  page = Math.min(Math.max(0, number), pages - 1);
  chosen = -1;
  const start = page * PER_PAGE;
  $("list").replaceChildren(...shown.slice(start, start + PER_PAGE).map((_, place) => card(start + place)));
  $("empty").hidden = shown.length > 0;
  $("pages").hidden = pages === 1;
  $("page").value = page + 1;
  $("page").max = pages;
  $("last").textContent = "of " + pages.toLocaleString("en");
  $("before").disabled = page === 0;
  $("after").disabled = page === pages - 1;
}

function turn(number) {
  show(number);
  $("list").scrollIntoView();
  $("list").focus({ preventScroll: true });
}

const cardAt = place => document.querySelector(`.card[data-place="${place}"]`);

function choose(place, quietly = false) {
  if (place < 0 || place >= shown.length) return;
  if (Math.floor(place / PER_PAGE) !== page) show(Math.floor(place / PER_PAGE));
  cardAt(chosen)?.classList.remove("chosen");
  chosen = place;
  const made = cardAt(place);
  made.classList.add("chosen");
  if (quietly) return;
  made.focus({ preventScroll: true });
  made.scrollIntoView({ block: "nearest" });
}

// ---- what people do

function mark(place, value) {
  if (place < 0) return;
  const i = shown[place];
  if (!value || marks.get(i) === value) marks.delete(i);
  else marks.set(i, value);
  paint(cardAt(place), i);
  say(visible(data.path[i]) + ": " + (marks.get(i) ?? "no mark"), true);
  keepMarks();
}

function keepMarks() {
  if (!remember()) say("This browser keeps no marks: export them before you close the page");
}

async function copy(i, button) {
  const path = (data.root ? data.root + "/" : "") + data.path[i];
  try {
    await navigator.clipboard.writeText(path);
  } catch { // without a server a browser may refuse that
    const area = element("textarea", { value: path });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  say("Copied " + visible(path), true);
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  if (event.target.closest?.("input, select, textarea, summary")) return;
  const columns = getComputedStyle($("list")).gridTemplateColumns.split(" ").length;
  const step = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  const value = { 1: "keep", 2: "wrong", w: "wrong", 3: "unsure", u: "unsure", 0: "" }[event.key];
  if (event.key === "?") $("keys").showModal();
  else if (step && (chosen >= 0 || !event.key.startsWith("Arrow") || event.target.closest(".cards")))
    choose(chosen < 0 ? page * PER_PAGE : Math.min(Math.max(chosen + step, 0), shown.length - 1));
  else if (chosen < 0) return;
  else if (value !== undefined) mark(chosen, value);
  else if (event.key === "c") copy(shown[chosen], cardAt(chosen).querySelector(".copy"));
  else if (event.key === "o") cardAt(chosen).querySelector("a.picture")?.click();
  else if (event.key === "Escape") {
    cardAt(chosen).classList.remove("chosen");
    chosen = -1;
    document.activeElement.blur();
  } else return;
  event.preventDefault();
}

function clicked(event) {
  const made = event.target.closest(".card");
  if (!made) return;
  choose(Number(made.dataset.place), true);
  const button = event.target.closest("button");
  if (button?.dataset.mark) mark(chosen, button.dataset.mark);
  else if (button) copy(shown[chosen], button);
}

function exported() {
  const url = URL.createObjectURL(new Blob([toCsv()], { type: "text/csv" }));
  element("a", { href: url, download: "reviewed.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  say(`${marks.size} marks exported`);
}

async function imported() {
  say(fromCsv(await textOf($("file").files[0])));
  $("file").value = "";
  keepMarks();
  filter();
}

function start() {
  for (const place of document.querySelectorAll("[data-typical]")) place.append(thumbnails(place.dataset.typical));
  if (!data.path.length) return;
  recall();
  data.names.forEach((name, value) => $("class")?.append(element("option", { value }, visible(name))));
  $("rate").value = data.rate;
  for (const button of document.querySelectorAll("[data-question]")) button.addEventListener("click", asked);
  for (const id of ["rate", "class", "marked"]) $(id)?.addEventListener("input", filter);
  $("before").addEventListener("click", () => turn(page - 1));
  $("after").addEventListener("click", () => turn(page + 1));
  $("page").addEventListener("change", () => turn(Number($("page").value) - 1));
  $("export").addEventListener("click", exported);
  $("import").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", imported);
  $("help").addEventListener("click", () => $("keys").showModal());
  $("list").addEventListener("click", clicked);
  document.addEventListener("keydown", pressed);
  document.querySelector(".tools").addEventListener("submit", event => event.preventDefault());
  filter();
}

start();
