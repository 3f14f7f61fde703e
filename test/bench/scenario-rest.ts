/** REST: requests a second, against a bare Bun.serve that answers the same bytes. */
import { connect, createAccount, createDevice, historyPush, randomBlob } from "../harness.ts";
import type { Scenario } from "./bench.ts";
import { httpLoad } from "./http-load.ts";
import { median, round, type Row } from "./measure.ts";
import { clipslotOnSqlite, yardstick } from "./subjects.ts";

export const rest: Scenario = {
  title: "REST requests a second on SQLite, against a bare Bun.serve that answers the same bytes",
  async run(rounds) {
    await using bare = await yardstick();
    await using server = await clipslotOnSqlite({ HISTORY_LIMIT: "1000000" });
    const client = connect(server.url);
    const { token } = await createDevice(client, await createAccount(client));
    for (let slot = 1; slot <= 10; slot += 1) {
      await client.json("PUT", `/api/sync/slots/${slot}`, { token, body: { encrypted_blob: randomBlob(768) } });
    }
    for (let batch = 0; batch < 2; batch += 1) {
      const body = Array.from({ length: 50 }, () => historyPush(randomBlob(768)));
      await client.json("POST", "/api/sync/history", { token, body });
    }
    const cases = [
      { name: "GET slots", method: "GET", path: "/api/sync/slots" },
      { name: "GET a page of history (50)", method: "GET", path: "/api/sync/history?limit=50" },
      {
        name: "PUT slot",
        method: "PUT",
        path: "/api/sync/slots/1",
        body: JSON.stringify({ encrypted_blob: randomBlob(768) }),
      },
      {
        name: "POST history",
        method: "POST",
        path: "/api/sync/history",
        body: JSON.stringify({ ...historyPush(randomBlob(768)), id: "%ID%", content_hash: "%ID%" }),
      },
    ];
    const rows: Row[] = [];
    for (const { name, method, path, body } of cases) {
      const sample = await client.request(method, path, {
        token,
        body: body?.replaceAll("%ID%", () => crypto.randomUUID()),
      });
      await fetch(`${bare.url}/answer`, { method: "POST", body: await sample.text() });
      for (const connections of [1, 64]) {
        const ours: number[] = [];
        const theirs: number[] = [];
        const headers = { Authorization: `Bearer ${token}` };
        for (let count = 0; count < rounds; count += 1) {
          const job = { method, headers, connections, ...(body === undefined ? {} : { body }) };
          ours.push((await httpLoad({ ...job, url: server.url + path })).requestsPerSecond);
          theirs.push((await httpLoad({ ...job, url: bare.url + path })).requestsPerSecond);
        }
        rows.push({
          case: `${name}, ${connections} connections`,
          "of the bare server": round(median(ours) / median(theirs), 2),
          "requests/s": round(median(ours)),
          "bare requests/s": round(median(theirs)),
        });
      }
    }
    return { rows, chart: { label: "case", value: "of the bare server", full: 1 } };
  },
};
