/** What an operator sees at /metrics, after things happened through the front door. */
import { describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startServer } from "../src/cli/serve.ts";
import { loadConfig } from "../src/config.ts";
import { createLogger } from "../src/log.ts";
import {
  createAccount,
  createDevice,
  connect,
  randomBlob,
  slotUpdate,
  TestSocket,
  type Connection,
} from "./harness.ts";

describe("metrics", () => {
  test("tell who is connected, what was written, relayed, refused, and how long things took", async () => {
    await using server = await startMeasured();
    const account = await createAccount(server);
    const [first, second] = [await createDevice(server, account), await createDevice(server, account)];
    const a = await TestSocket.open(server, first.token);
    const b = await TestSocket.open(server, second.token, "&protocol=2");
    const secondOfB = await TestSocket.open(server, second.token, "&protocol=2");
    await b.nextOf("sync_complete");
    await secondOfB.nextOf("sync_complete");

    const update = slotUpdate(1, randomBlob());
    expect(await a.sendForAnswer(update)).toMatchObject({ result: "applied" });
    expect(await a.sendForAnswer(update)).toMatchObject({ result: "duplicate" });
    expect(await a.sendForAnswer(slotUpdate(11, randomBlob()))).toMatchObject({ code: "bad_request" });
    await b.nextOf("slot_updated");
    await server.json("GET", "/api/sync/slots", { token: first.token });
    await server.request("GET", "/api/sync/slots");
    await server.request("DELETE", `/api/auth/device/${crypto.randomUUID()}`, { token: account.token });
    await server.request("GET", "/wp-login.php");
    await server.request("PROPFIND", "/api/sync/slots");

    const metrics = await server.scrape();
    expect(metrics.get("clipslot_connected_accounts")).toBe(1);
    expect(metrics.get('clipslot_connected_sockets{protocol="1"}')).toBe(1);
    expect(metrics.get('clipslot_connected_sockets{protocol="2"}')).toBe(2);
    expect(metrics.get('clipslot_connected_devices{protocol="2"}')).toBe(1);
    expect(metrics.get("clipslot_catch_up_messages_count")).toBe(3);

    expect(metrics.get('clipslot_writes_total{kind="slot",result="applied"}')).toBe(1);
    expect(metrics.get('clipslot_writes_total{kind="slot",result="duplicate"}')).toBe(1);
    expect(metrics.get("clipslot_commit_writes_sum")).toBe(2);
    expect(metrics.get("clipslot_commit_duration_seconds_count")).toBe(2);
    expect(metrics.get("clipslot_write_queue_length")).toBe(0);
    expect(metrics.get("clipslot_relayed_changes_total")).toBe(1);
    expect(metrics.get("clipslot_relayed_messages_total")).toBe(2);

    expect(metrics.get('clipslot_rejections_total{edge="socket",reason="bad_request"}')).toBe(1);
    expect(metrics.get('clipslot_rejections_total{edge="http",reason="token_missing"}')).toBe(1);
    expect(metrics.get(requests("GET", "/api/sync/slots", 200))).toBe(1);
    expect(metrics.get(requests("GET", "/api/sync/slots", 401))).toBe(1);
    expect(metrics.get(requests("DELETE", "/api/auth/device/:id", 404))).toBe(1);
    expect(metrics.get(requests("GET", "none", 404))).toBe(1);
    expect(metrics.get('clipslot_database_duration_seconds_count{operation="applyWrites"}')).toBe(2);

    expect(metrics.get('clipslot_event_loop_delay_seconds{percentile="99"}')).toBeGreaterThan(0);
    expect(metrics.get("clipslot_process_resident_memory_bytes")).toBeGreaterThan(1e6);
    expect(metrics.get("clipslot_process_cpu_seconds_total")).toBeGreaterThan(0);

    await Promise.all([a.close(), b.close(), secondOfB.close()]);
    const after = await server.scrape();
    expect(after.get('clipslot_connected_sockets{protocol="2"}')).toBe(0);
    expect(after.get('clipslot_socket_closes_total{code="1005"}')).toBe(3);
  });

  test("name nothing that a stranger made up: no path, no method, no e-mail address", async () => {
    await using server = await startMeasured();
    await createAccount(server, "ana.lopez@example.org");
    for (const path of ["/wp-login", "/admin?token=secret-token", "/api/sync/history/made-up"])
      await server.request("GET", path);
    for (const method of ["PROPFIND", "SEARCH"]) await server.request(method, "/api/sync/slots");
    const text = await server.scrapeText();
    for (const word of ["wp-login", "admin", "secret", "made-up", "PROPFIND", "SEARCH", "lopez"])
      expect(text).not.toContain(word);
  });

  test("are not at the server's own address", async () => {
    await using server = await startMeasured();
    expect((await server.request("GET", "/metrics")).status).toBe(404);
    expect((await fetch(new URL("/", server.metricsUrl))).status).toBe(404);
  });

  test("on a port that is taken are refused in plain words", async () => {
    await using server = await startMeasured();
    const { port } = new URL(server.metricsUrl);
    const complaint = await startMeasured({ METRICS_PORT: port }).then(
      () => "none",
      (error: Error) => error.message,
    );
    expect(complaint).toStartWith(`The metrics can't be served at 127.0.0.1, port ${port}`);
  });

  test("cost nothing when they are off: the library is not even read", async () => {
    const dataDir = mkdtempSync(join(tmpdir(), "clipslot-metrics-"));
    const script = `
      const { startServer } = await import("./src/cli/serve.ts");
      const { loadConfig } = await import("./src/config.ts");
      const { createLogger } = await import("./src/log.ts");
      const log = createLogger({ level: "error", format: "json", write: () => {} });
      const server = await startServer(loadConfig({ PORT: "0", DATA_DIR: ${JSON.stringify(dataDir)} }), log);
      await fetch(new URL("/healthz", server.url));
      const read = Object.keys(require.cache).filter((path) => path.includes("prom-client"));
      console.log(JSON.stringify({ metricsUrl: server.metricsUrl ?? null, read }));
      await server.stop();`;
    const child = Bun.spawn([process.execPath, "-e", script], {
      cwd: join(import.meta.dir, ".."),
      stdio: ["ignore", "pipe", "inherit"],
    });
    expect(JSON.parse(await child.stdout.text())).toEqual({ metricsUrl: null, read: [] });
    expect(await child.exited).toBe(0);
    rmSync(dataDir, { recursive: true });
  });
});

const requests = (method: string, route: string, status: number) =>
  `clipslot_http_request_duration_seconds_count{method="${method}",route="${route}",status="${status}"}`;

interface MeasuredServer extends Connection, AsyncDisposable {
  metricsUrl: string;
  scrapeText(): Promise<string>;
  /** Values by name and labels, as they stand in the text. */
  scrape(): Promise<Map<string, number>>;
}

async function startMeasured(env: Record<string, string> = {}): Promise<MeasuredServer> {
  const dataDir = mkdtempSync(join(tmpdir(), "clipslot-metrics-"));
  const log = createLogger({ level: "error", format: "json", write: () => {} });
  const config = loadConfig({ PORT: "0", DATA_DIR: dataDir, METRICS_PORT: "0", RATE_LIMITS: "off", ...env });
  const running = await startServer(config, log);
  const metricsUrl = running.metricsUrl?.href ?? "";
  const scrapeText = async () => {
    const response = await fetch(metricsUrl);
    expect(response.headers.get("Content-Type")).toStartWith("text/plain; version=0.0.4");
    return response.text();
  };
  return {
    ...connect(running.url.origin),
    metricsUrl,
    scrapeText,
    async scrape() {
      const lines = (await scrapeText()).split("\n").filter((line) => line !== "" && !line.startsWith("#"));
      return new Map(
        lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]),
      );
    },
    async [Symbol.asyncDispose]() {
      await running.stop();
      rmSync(dataDir, { recursive: true, force: true });
    },
  };
}
