// Runs the trace processor of the Perfetto UI (WebAssembly, as a Python package ships it) on a trace file.
//
//     node trace_processor.cjs FOLDER TRACE QUERY…     prints, as JSON, the rows of each query
//
// FOLDER has the UI's engine_bundle.js, which is made for a web worker, and trace_processor.wasm. The worker's globals
// are stood in for here. Requests and answers are the messages of perfetto's trace_processor.proto.
"use strict";
const fs = require("node:fs");
const path = require("node:path");

const [folder, trace, ...queries] = process.argv.slice(2);
const APPEND = 1, FINALIZE = 2, QUERY = 3;

// ---- protobuf, as much as is needed
const varint = (value) => {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return Buffer.from([...bytes, value]);
};
const number = (field, value) => Buffer.concat([varint(field * 8), varint(value)]);
const bytes = (field, value) => Buffer.concat([varint(field * 8 + 2), varint(value.length), value]);

function readVarint(at) {
  let value = 0n, shift = 0n, byte;
  do {
    byte = at.data[at.pos++];
    value |= BigInt(byte & 127) << shift;
    shift += 7n;
  } while (byte > 127);
  return BigInt.asIntN(64, value);
}
function* fieldsOf(data) {
  const at = { data, pos: 0 };
  while (at.pos < data.length) {
    const tag = Number(readVarint(at));
    let value;
    if ((tag & 7) === 0) value = readVarint(at);
    else if ((tag & 7) === 1) value = data.subarray(at.pos, (at.pos += 8));
    else if ((tag & 7) === 5) value = data.subarray(at.pos, (at.pos += 4));
    else {
      const length = Number(readVarint(at));
      value = data.subarray(at.pos, (at.pos += length));
    }
    yield [tag >> 3, value];
  }
}
function* varints(data) {
  const at = { data, pos: 0 };
  while (at.pos < data.length) yield readVarint(at);
}

// ---- QueryResult
function rowsOf(parts) {
  const columns = [], cells = [];
  for (const [field, value] of parts.flatMap((part) => [...fieldsOf(part)])) {
    if (field === 1) columns.push(value.toString());
    else if (field === 2) throw new Error(value.toString());
    else if (field === 3) cells.push(...cellsOf(value));
  }
  return cells.flatMap((_, i) => (i % columns.length ? [] : [cells.slice(i, i + columns.length)]));
}
function cellsOf(batch) {
  const types = [], ints = [], floats = [];
  let texts = [];
  for (const [field, value] of fieldsOf(batch)) {
    if (field === 1) types.push(...varints(value));
    else if (field === 2) ints.push(...varints(value));
    else if (field === 3) for (let at = 0; at < value.length; at += 8) floats.push(value.readDoubleLE(at));
    else if (field === 5) texts = value.toString().split("\0");
  }
  const take = { 2: () => Number(ints.shift()), 3: () => floats.shift(), 4: () => texts.shift() };
  return types.map((type) => take[Number(type)]?.() ?? null);
}

// ---- the worker: its globals are arguments, and `process` is none of them
const self = { location: { href: "http://127.0.0.1/engine_bundle.js" } };
const quiet = { log() {}, warn() {}, error() {} };
class XMLHttpRequest {
  open(_, url) {
    this.file = path.join(folder, path.basename(url));
  }
  send() {
    this.response = new Uint8Array(fs.readFileSync(this.file)).buffer;
  }
}
const code = fs.readFileSync(path.join(folder, "engine_bundle.js"), "utf8");
new Function("process", "self", "console", "WorkerGlobalScope", "XMLHttpRequest", code)(
  undefined, self, quiet, function () {}, XMLHttpRequest,
);

// What is sent is answered before `onmessage` returns.
let answered = Buffer.alloc(0);
const port = { postMessage: (chunk) => (answered = Buffer.concat([answered, chunk])) };
self.onmessage({ data: port });

let seq = 0;
/** The fields of the answers to one request. */
function ask(request, argument = Buffer.alloc(0)) {
  const message = Buffer.concat([number(1, seq++), number(2, request), argument]);
  answered = Buffer.alloc(0);
  port.onmessage({ data: new Uint8Array(bytes(1, message)) });
  const fields = [...fieldsOf(answered)].flatMap(([, answer]) => [...fieldsOf(answer)]);
  const fatal = fields.find(([field]) => field === 5);
  if (fatal) throw new Error(fatal[1].toString());
  return fields;
}

function main() {
  for (const [field, value] of ask(APPEND, bytes(101, fs.readFileSync(trace)))) {
    const failed = field === 201 && [...fieldsOf(value)].find(([inner]) => inner === 2);
    if (failed) throw new Error(failed[1].toString());
  }
  for (const [field, value] of ask(FINALIZE)) {
    const failed = field === 212 && [...fieldsOf(value)].find(([inner]) => inner === 1);
    if (failed) throw new Error(failed[1].toString());
  }
  const answers = queries.map((query) => {
    const parts = ask(QUERY, bytes(103, bytes(1, Buffer.from(query))));
    return rowsOf(parts.filter(([field]) => field === 203).map(([, value]) => value));
  });
  process.stdout.write(JSON.stringify(answers) + "\n", () => process.exit(0));
}

// The engine is ready once what it has queued is done.
setTimeout(() => {
  try {
    main();
  } catch (error) {
    console.error(String(error.message ?? error));
    process.exit(1);
  }
}, 0);
