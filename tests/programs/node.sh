# Node.js parses and prints JSON, fills and compares buffers, compresses and hashes, in its main
# thread and in worker threads.
packages="nodejs"
binary=/usr/bin/node

prepare() {
    cat > work.js <<'J'
const { Worker, isMainThread, workerData, parentPort } = require("worker_threads");
const crypto = require("crypto");
const zlib = require("zlib");

function random(seed) {
    return () => (seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff) / 0x80000000;
}

function work(seed, rounds) {
    const next = random(seed), hash = crypto.createHash("sha256"), kept = [];
    for (let round = 0; round < rounds; round++) {
        const rows = [];
        for (let row = 0; row < 1500; row++) {
            rows.push({ id: row, name: next().toString(36), tags: [next(), next()], text: "x".repeat(next() * 200) });
        }
        const text = JSON.stringify(rows);
        hash.update(text);
        const again = JSON.parse(text).sort((a, b) => (a.name < b.name ? -1 : 1));
        hash.update(again[7].name);
        const packed = zlib.deflateSync(text, { level: 1 });
        if (zlib.inflateSync(packed).toString() !== text) throw new Error("inflated to something else");
        hash.update(String(packed.length));
        // Buffers of many sizes, of which some are kept.
        for (let count = 0; count < 400; count++) {
            const buffer = Buffer.alloc(1 + Math.floor(next() ** 4 * 100000), count & 255);
            hash.update(buffer.subarray(0, 64));
            kept[Math.floor(next() * 300)] = buffer;
        }
        hash.update(text.replace(/x+/g, (found) => String(found.length)));
    }
    for (const buffer of kept) if (buffer) hash.update(buffer);
    return hash.digest("hex");
}

if (isMainThread) {
    const rounds = 10 * Number(process.argv[2]);
    console.log(work(1, rounds));
    const workers = [2, 3, 4].map(
        (seed) => new Promise((done) => new Worker(__filename, { workerData: [seed, rounds / 2] }).on("message", done)),
    );
    Promise.all(workers).then((answers) => answers.forEach((answer) => console.log(answer)));
} else {
    parentPort.postMessage(work(...workerData));
}
J
}

# The collector runs at the same points each time. Otherwise memory would depend on how busy the
# machine was.
run() { preloaded node --single-threaded-gc --predictable-gc-schedule work.js "$SIZE"; }
