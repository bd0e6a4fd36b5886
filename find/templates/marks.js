"use strict";

// The findings, a column for each field; entry i of every column is finding i, the most probable first.
const data = JSON.parse(document.getElementById("data").textContent);
const MARKS = { keep: "Keep", wrong: "Wrong", unsure: "Unsure" };
const STORAGE = "set-anomaly:" + data.digest;
const marks = new Map(); // finding → mark
const isMark = value => Object.hasOwn(MARKS, value);

/** Keep the marks in this browser; whether it does. */
function remember() {
  try {
    localStorage.setItem(STORAGE, JSON.stringify([...marks]));
    return true;
  } catch {
    return false;
  }
}

/** Begin with the marks that this browser keeps of this result, else with the reviews that the run was given. */
function recall() {
  for (const [i, value] of Object.entries(data.review)) marks.set(Number(i), value);
  try {
    const kept = localStorage.getItem(STORAGE);
    if (kept === null) return;
    marks.clear();
    for (const [i, value] of JSON.parse(kept)) if (isMark(value) && i in data.path) marks.set(i, value);
  } catch {
    // no storage here, or not ours: the marks of the run are all there is
  }
}

/** A CSV cell that no spreadsheet takes for a formula; find/review.py reads it. */
function cell(text) {
  const safe = /^[=+\-@\t\r']/.test(text) ? "'" + text : text;
  return /[",\r\n]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
}

function toCsv() {
  const name = number => (number < 0 ? "" : data.names[number]);
  const lines = [...marks].sort(([a], [b]) => a - b).map(([i, value]) =>
    [data.path[i], value, name(data.own[i]), name(data.suggested[i]), String(data.probability[i] / data.scale)]
      .map(cell).join(","));
  return ["path,review,own,suggested,probability", ...lines].join("\r\n") + "\r\n";
}

/** The lines of a CSV text, each a list of cells; quoted cells may hold delimiters, quotes and new lines. */
function parseCsv(text) {
  const declared = /^sep=(.)\r?\n/.exec(text); // by which Excel knows the delimiter
  const body = declared ? text.slice(declared[0].length) : text;
  const header = /^.*/.exec(body)[0], many = sign => header.split(sign).length;
  const delimiter = declared?.[1] ?? [",", ";", "\t"].reduce((a, b) => many(b) > many(a) ? b : a);
  const lines = [[]];
  const token = /"((?:[^"]|"")*)"|([^",;\t\r\n]+)|([,;\t])|(\r\n|\n|\r)/g;
  let cellText = "";
  const endCell = () => { lines.at(-1).push(cellText); cellText = ""; };
  for (const [, quoted, plain, sign, newline] of body.matchAll(token)) {
    if (sign === delimiter) endCell();
    else if (sign) cellText += sign;
    else if (newline) { endCell(); lines.push([]); }
    else cellText += quoted !== undefined ? quoted.replaceAll('""', '"') : plain;
  }
  endCell();
  return lines.filter(line => line.length > 1);
}

/** The text of a file in UTF-8, or in UTF-16 as a spreadsheet saves it. */
async function textOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const encoding = { "255,254": "utf-16le", "254,255": "utf-16be" }[bytes.slice(0, 2).join()] ?? "utf-8";
  return new TextDecoder(encoding).decode(bytes);
}

/** Take over the marks of a CSV text; a sentence that says how many. */
function fromCsv(text) {
  const [names = [], ...lines] = parseCsv(text);
  const header = names.map(name => name.trim().toLowerCase());
  const [path, review] = ["path", "review"].map(name => header.indexOf(name));
  if (path < 0 || review < 0) return 'This file has no columns "path" and "review"';
  const places = new Map(data.path.map((each, i) => [each, i]));
  let known = 0, unknown = 0;
  for (const line of lines) {
    const value = (line[review] ?? "").trim().toLowerCase();
    if (!isMark(value)) continue;
    const i = places.get((line[path] ?? "").replace(/^'(?=[=+\-@\t\r'])/, ""));
    if (i === undefined) unknown += 1;
    else { marks.set(i, value); known += 1; }
  }
  return `${known} marks read` + (unknown ? `, ${unknown} of images that are not in this list` : "");
}
