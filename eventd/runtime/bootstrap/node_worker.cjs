'use strict';
// The inside of a Node.js worker: loads one function and runs its handler, one event at a time, as AWS Lambda's runtime does.
// Needs Node.js 18 or newer and no package. Started by eventd/runtime/node.py as `node node_worker.cjs FD`; FD is a stream socket.
//
// Frames (eventd/runtime/wire.py): u32 big-endian length | u8 kind | body. We get S (settings as JSON: then the function is
// loaded; until it comes this process is a spare), I (u32 meta length | meta | event) and Q. We send R, F, O and E.
//
// Kept from Lambda: handler strings, context, console lines, error objects, "the answer of a callback handler waits for the
// event loop to run empty". Different on purpose: a promise that nothing can settle any more is an error here (Lambda answers
// null), because an unknown end is not a success.

const fs = require('fs');
const net = require('net');
const path = require('path');
const util = require('util');
const { pathToFileURL } = require('url');
const { performance } = require('perf_hooks');

const MAX_PAYLOAD = 6 * 1024 * 1024 + 100;
const MAX_PENDING = 64 * 1024 * 1024;

const fd = Number(process.argv[2]);
process.argv.splice(2, 1);
const socket = new net.Socket({ fd, readable: true, writable: true, allowHalfOpen: false });

// User code may replace any of these.
const { exit, kill, pid, hrtime } = process;
const realExit = exit.bind(process);
const realKill = kill.bind(process);
const { stringify, parse } = JSON;
const now = Date.now;
const write = process.stdout.write.bind(process.stdout);
const later = setImmediate;

let settings = null;
let handler = null;
let requestId; // undefined before the first event, and so it is printed
let current = null; // the run in progress
let ending = false;

// --- frames ---

function frame(kind, parts) {
  let size = 1;
  for (const part of parts) size += part.length;
  const head = Buffer.alloc(5);
  head.writeUInt32BE(size, 0);
  head.write(kind, 4, 'latin1');
  return Buffer.concat([head, ...parts]);
}

function withMeta(kind, meta, payload) {
  const text = Buffer.from(stringify(meta));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(text.length, 0);
  return frame(kind, [length, text, payload]);
}

let pending = Buffer.alloc(0);
let chunks = [];
let have = 0;

socket.on('data', (chunk) => {
  chunks.push(chunk);
  have += chunk.length;
  for (;;) {
    if (have < 4) return;
    if (pending.length < 4) gather();
    const length = pending.readUInt32BE(0);
    if (length < 1 || length > MAX_PENDING) return realExit(70);
    if (have < 4 + length) return; // no joining of chunks until the frame is whole
    gather();
    const body = pending.subarray(4, 4 + length);
    pending = pending.subarray(4 + length);
    have = pending.length;
    take(String.fromCharCode(body[0]), body.subarray(1));
  }
});

function gather() {
  if (chunks.length) {
    pending = Buffer.concat([pending, ...chunks]);
    chunks = [];
  }
}

// The daemon has gone, or wants us gone.
socket.on('end', () => realExit(0));
socket.on('close', () => realExit(0));
socket.on('error', () => realExit(0));

function take(kind, body) {
  if (kind === 'Q') return realExit(0);
  if (kind === 'S' && settings === null) return void start(parse(body.toString('utf8')));
  if (kind === 'I' && handler !== null && current === null) {
    const size = body.readUInt32BE(0);
    return invoke(parse(body.toString('utf8', 4, 4 + size)), body.subarray(4 + size));
  }
  return realExit(70);
}

// --- what it took ---

function cpuMs(since) {
  const used = process.cpuUsage(since);
  return (used.user + used.system) / 1000;
}

function peakMb() {
  return Math.ceil(process.resourceUsage().maxRSS / 1024);
}

// --- errors, in the shape of Lambda's Node.js runtime ---

function named(errorType, message, cause) {
  const error = new Error(message);
  error.name = errorType;
  error.stack = `${errorType}: ${message}${cause && cause.stack ? `\n${String(cause.stack)}` : ''}`;
  return error;
}

// The stack as far as it is the user's: from our first frame on it says nothing about the handler.
function traceOf(error) {
  const lines = String(error.stack || '').split('\n');
  const ours = lines.findIndex((text) => text.includes(__filename));
  return ours < 0 ? lines : lines.slice(0, ours);
}

function isError(value) {
  return util.types.isNativeError(value) || value instanceof Error ||
    (value !== null && typeof value === 'object' && typeof value.name === 'string' && typeof value.message === 'string' && typeof value.stack === 'string');
}

function described(error) {
  try {
    if (isError(error)) {
      return {
        errorType: String(error.name || 'Error').replace(/\x7F/g, '%7F'),
        errorMessage: String(error.message),
        trace: traceOf(error),
      };
    }
    return { errorType: typeof error, errorMessage: String(error), trace: [] };
  } catch {
    return { errorType: 'handled', errorMessage: 'callback called with an error that cannot be shown', trace: [] };
  }
}

function logged(words, error) {
  const shown = described(error);
  const extra = {};
  if (isError(error)) {
    for (const key of Object.keys(error)) if (!['name', 'message', 'stack'].includes(key)) extra[key] = error[key];
  }
  const first = { errorType: shown.errorType, errorMessage: shown.errorMessage };
  let text;
  try {
    text = stringify({ ...first, ...extra, stack: shown.trace });
  } catch {
    text = stringify({ ...first, stack: shown.trace });
  }
  line('ERROR', `${words} \t${text}`);
}

// --- console, one line per call: time TAB request id TAB level TAB message ---

process.stdout.on('error', () => {});
process.stderr.on('error', () => {});

function line(level, message) {
  const text = `${new Date(now()).toISOString()}\t${requestId}\t${level}\t${message}`;
  write(text.replace(/\n/g, '\r') + '\n');
}

for (const [name, level] of [['log', 'INFO'], ['info', 'INFO'], ['debug', 'DEBUG'], ['warn', 'WARN'], ['error', 'ERROR']]) {
  console[name] = (...values) => line(level, util.format(...values));
}
console.fatal = (...values) => line('FATAL', util.format(...values));
console.trace = (...values) => {
  const here = { name: 'Trace', message: util.format(...values) };
  Error.captureStackTrace(here, console.trace);
  line('TRACE', here.stack);
};

// --- loading ---

const WORDS = /^([^.]*)\.(.*)$/;

async function start(given) {
  settings = given;
  for (const [name, value] of Object.entries(given.environment)) process.env[name] = value;
  process.env.LAMBDA_TASK_ROOT = given.root;
  const begun = performance.now();
  const used = process.cpuUsage();
  try {
    const major = Number(process.versions.node.split('.')[0]);
    if (major < 18) {
      throw named('Runtime.InvalidEntrypoint', `Node.js 18 or newer is needed; ${process.execPath} is ${process.versions.node}.`);
    }
    process.env.AWS_EXECUTION_ENV = `AWS_Lambda_nodejs${major}.x`;
    process.chdir(given.root);
    const loaded = await load(given);
    // A turn later: a rejection that nobody caught while loading is reported only then.
    await new Promise((go) => later(go));
    if (ending) return undefined;
    handler = loaded;
  } catch (error) {
    return failInit(error);
  }
  socket.write(frame('R', [Buffer.from(stringify({ init_ms: performance.now() - begun, cpu_ms: cpuMs(used), max_mb: peakMb() }))]));
  return undefined;
}

function failInit(error) {
  if (ending) return;
  logged('Uncaught Exception', error);
  last(withMeta('F', { cpu_ms: cpuMs(), max_mb: peakMb() }, payloadOf(described(error))), 1);
}

async function load({ root, entry, handler: name }) {
  if (!name) {
    const loaded = await loadFile(path.join(root, entry));
    for (const attribute of ['handler', 'lambda_handler']) {
      const found = attributeOf(loaded, attribute);
      if (typeof found === 'function') return found;
    }
    throw named('Runtime.HandlerNotFound', `${path.parse(entry).name}.handler is undefined or not exported`);
  }
  if (name.includes('..')) {
    throw named('Runtime.MalformedHandlerName', `'${name}' is not a valid handler name. Use absolute paths when specifying root directories in handler names.`);
  }
  const base = path.basename(name);
  const words = WORDS.exec(base);
  if (!words || !words[2]) throw named('Runtime.MalformedHandlerName', `Bad handler '${name}': it must be FILE.EXPORT`);
  const stem = path.join(name.slice(0, name.length - base.length), words[1]);
  const loaded = await loadFile(resolve(root, stem));
  const found = attributeOf(loaded, words[2]);
  if (found === undefined) throw named('Runtime.HandlerNotFound', `${name} is undefined or not exported`);
  if (typeof found !== 'function') throw named('Runtime.HandlerNotFound', `${name} is not a function`);
  return found;
}

function resolve(root, stem) {
  const exact = path.resolve(root, stem);
  for (const end of ['', '.js', '.mjs', '.cjs']) {
    try {
      if (fs.statSync(exact + end).isFile()) return exact + end;
    } catch {
      // Not this one.
    }
  }
  try {
    return require.resolve(stem, { paths: [root, path.join(root, path.dirname(stem))] });
  } catch {
    throw named('Runtime.ImportModuleError', `Error: Cannot find module '${stem}' in ${root}`);
  }
}

function attributeOf(loaded, dotted) {
  const follow = (from) => dotted.split('.').reduce((at, part) => (at === undefined || at === null ? undefined : at[part]), from);
  const direct = follow(loaded);
  if (direct !== undefined || !loaded || loaded.default === undefined) return direct;
  return follow(loaded.default);
}

function isModule(file) {
  if (file.endsWith('.mjs')) return true;
  if (!file.endsWith('.js')) return false;
  for (let folder = path.dirname(file); ; folder = path.dirname(folder)) {
    try {
      return parse(fs.readFileSync(path.join(folder, 'package.json'), 'utf8')).type === 'module';
    } catch (error) {
      if (error.code === undefined) return false; // there is one, and it is not JSON: Node.js itself says so
    }
    if (folder === path.dirname(folder)) return false;
  }
}

async function loadFile(file) {
  try {
    return isModule(file) ? await import(pathToFileURL(file).href) : require(file);
  } catch (error) {
    if (error instanceof SyntaxError) {
      const place = placeOf(error, file);
      throw named('Runtime.UserCodeSyntaxError', `SyntaxError: ${error.message}${place ? ` (${place})` : ''}`, error);
    }
    if (error && (error.code === 'MODULE_NOT_FOUND' || error.code === 'ERR_MODULE_NOT_FOUND')) {
      // Below its first line the message lists who asked for it, us included.
      throw named('Runtime.ImportModuleError', `Error: ${error.message.split('\nRequire stack')[0]}`, error);
    }
    throw error;
  }
}

// FILE:LINE of a syntax error. Node.js puts it in the first line of the stack for CommonJS only; for the rest, ask it to check.
function placeOf(error, file) {
  const found = /^(?:file:\/\/)?(\/.*?):(\d+)$/m.exec(String(error.stack).split('\n', 1)[0]);
  if (found) return `${path.basename(found[1])}:${found[2]}`;
  try {
    const check = require('child_process').spawnSync(process.execPath, ['--check', file], { timeout: 5000, maxBuffer: 65536 });
    const said = /^(?:file:\/\/)?(\/.*?):(\d+)$/m.exec(check.stderr.toString());
    return said ? `${path.basename(said[1])}:${said[2]}` : '';
  } catch {
    return '';
  }
}

// --- running ---

class Run {
  constructor(meta) {
    this.meta = meta;
    this.begun = performance.now();
    this.cpu = process.cpuUsage();
    this.before = children();
    this.answered = false;
    this.promised = false; // the handler returned a promise
    this.ready = null; // an answer that waits for the loop to run empty
    this.context = contextOf(meta, this);
  }

  // The first answer counts, as on Lambda; whatever a handler says after it is dropped.
  succeed(value) {
    if (this.answered || current !== this) return;
    let text;
    try {
      text = stringify(value === undefined ? null : value);
      if (text === undefined) text = 'null';
    } catch (error) {
      return this.fail(named('Runtime.MarshalError', `Unable to stringify response body: ${error.message}`, error));
    }
    const payload = Buffer.from(text);
    if (payload.length > MAX_PAYLOAD) {
      const message = `Response payload size exceeded maximum allowed payload size (${MAX_PAYLOAD} bytes).`;
      return this.finish('E', payloadOf({ errorType: 'Function.ResponseSizeTooLarge', errorMessage: message }));
    }
    return this.finish('O', payload);
  }

  fail(error) {
    if (this.answered || current !== this) return;
    logged('Invoke Error', error);
    this.finish('E', payloadOf(described(error)));
  }

  // A callback handler's answer: at once, or when the event loop has nothing more to do.
  callback(error, value) {
    if (this.answered || this.ready || current !== this) return;
    if (error !== null && error !== undefined) return this.fail(error);
    if (!this.context.callbackWaitsForEmptyEventLoop) return this.succeed(value);
    this.ready = () => this.succeed(value);
  }

  // Nothing more can happen in this process unless we do it.
  empty() {
    if (this.ready) return this.ready();
    if (this.promised) {
      const message = 'The handler returned a promise that was never settled, and nothing is left that could settle it.';
      return this.fail(named('Runtime.NodeJsExit', message));
    }
    return this.succeed(null);
  }

  finish(kind, payload) {
    this.answered = true;
    const frame = withMeta(kind, this.took(), payload);
    current = null;
    socket.ref();
    socket.write(frame);
  }

  took() {
    const ms = performance.now() - this.begun;
    const fork = endChildren(this.before);
    return { n: this.meta.n, ms, cpu_ms: cpuMs(this.cpu), max_mb: peakMb(), fork };
  }
}

function payloadOf(error) {
  const text = Buffer.from(stringify(error));
  if (text.length <= MAX_PAYLOAD) return text;
  const short = { ...error, errorMessage: String(error.errorMessage).slice(0, 65536) };
  if (short.trace) short.trace = [];
  return Buffer.from(stringify(short));
}

function contextOf(meta, run) {
  const left = meta.deadline - now();
  const at = performance.now();
  const context = {
    callbackWaitsForEmptyEventLoop: true,
    functionName: settings.name,
    functionVersion: settings.version,
    invokedFunctionArn: meta.arn,
    memoryLimitInMB: settings.memory,
    awsRequestId: meta.id,
    logGroupName: process.env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: process.env.AWS_LAMBDA_LOG_STREAM_NAME,
    identity: undefined,
    clientContext: undefined,
    tenantId: undefined,
    xRayTraceId: meta.trace || undefined,
    // Measured with a clock that nobody sets.
    getRemainingTimeInMillis: () => Math.max(0, Math.floor(left - (performance.now() - at))),
    done: (error, value) => run.callback(error, value),
    succeed: (value) => run.callback(null, value),
    fail: (error) => run.callback(error === undefined || error === null ? 'handled' : error),
  };
  if (meta.client) {
    try {
      context.clientContext = parse(meta.client);
    } catch {
      // Not JSON: the caller's mistake, and no reason not to run.
    }
  }
  return context;
}

function invoke(meta, bytes) {
  requestId = meta.id;
  if (meta.trace) process.env._X_AMZN_TRACE_ID = meta.trace;
  else delete process.env._X_AMZN_TRACE_ID;
  const run = new Run(meta);
  current = run;
  let event;
  try {
    event = parse(bytes.toString('utf8'));
  } catch (error) {
    return run.fail(named('Runtime.UnmarshalError', `Unable to parse the event: ${error.message}`, error));
  }
  // While a run is on, only what the handler started keeps the loop alive: that is how we notice that it runs empty.
  socket.unref();
  try {
    const given = handler(event, run.context, (error, value) => run.callback(error, value));
    if (given !== null && typeof given === 'object' && typeof given.then === 'function') {
      run.promised = true;
      given.then((value) => run.succeed(value), (error) => run.fail(error));
    } else if (handler.length < 3 && isPlain(given)) {
      run.succeed(given);
    }
  } catch (error) {
    run.fail(error);
  }
  return undefined;
}

// A value that a synchronous handler plainly meant as its answer; a timer or a request that it happened to return is not.
function isPlain(value) {
  if (value === undefined || typeof value === 'function' || typeof value === 'symbol') return false;
  if (value === null || typeof value !== 'object') return true;
  const kind = Object.getPrototypeOf(value);
  return kind === Object.prototype || kind === Array.prototype || kind === null;
}

process.on('beforeExit', () => {
  if (ending || current === null) return;
  const run = current;
  socket.ref();
  // A turn later: what the last callback queued (a promise's reaction) comes first.
  later(() => {
    if (current === run) run.empty();
  });
});

// --- the end ---

// Send a last frame and go. The daemon always reads; the limit is for the day it does not.
function last(bytes, status) {
  ending = true;
  current = null;
  socket.ref();
  setTimeout(() => realExit(status), 2000);
  socket.write(bytes, () => realExit(status));
}

function dying(words, error, status) {
  if (ending) return;
  if (handler === null && settings !== null) return failInit(error);
  logged(words, error);
  if (current === null) return realExit(status);
  const took = current.took();
  took.fork = -1; // these are our last words
  last(withMeta('E', took, payloadOf(described(error))), status);
}

process.on('uncaughtException', (error) => dying('Uncaught Exception', error, 129));
process.on('unhandledRejection', (reason) => {
  const error = named('Runtime.UnhandledPromiseRejection', reason && reason.message !== undefined ? `${reason.name}: ${reason.message}` : String(reason), reason);
  error.reason = reason && reason.message !== undefined ? described(reason) : reason;
  dying('Unhandled Promise Rejection', error, 128);
});

// --- processes that a run left behind ---

function children() {
  const found = new Set();
  try {
    for (const task of fs.readdirSync('/proc/self/task')) {
      for (const word of fs.readFileSync(`/proc/self/task/${task}/children`, 'latin1').split(' ')) if (word) found.add(word);
    }
  } catch {
    // No /proc, or a thread that ended meanwhile: the daemon looks as well when this process ends.
  }
  return found;
}

function isAlive(child) {
  try {
    const text = fs.readFileSync(`/proc/${child}/stat`, 'latin1');
    return !'ZX'.includes(text[text.lastIndexOf(')') + 2]);
  } catch {
    return false;
  }
}

// Kill the children that were not there when the run began. We are their reaper, so the children of a killed one come to us:
// look again until there is none. Returns how many were found.
function endChildren(before) {
  const ended = new Set();
  const pause = new Int32Array(new SharedArrayBuffer(4));
  for (let round = 0; round < 200; round += 1) {
    let left = 0;
    for (const child of children()) {
      if (before.has(child) || !isAlive(child)) continue;
      left += 1;
      ended.add(child);
      try {
        realKill(Number(child), 'SIGKILL');
      } catch {
        // It went by itself.
      }
    }
    if (!left) break;
    Atomics.wait(pause, 0, 0, 2);
  }
  return ended.size;
}
