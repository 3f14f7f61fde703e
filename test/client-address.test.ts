/** Whom limits count: who spoke to us, or whom our own proxies say they speak for. */
import { expect, test } from "bun:test";
import { createClientAddress } from "../src/http/client-address.ts";
import { createLogger } from "../src/log.ts";

const PROXIES = ["10.0.0.0/8", "fd00::/8", "192.0.2.7"];

function addressOf(socketAddress: string | null, forwarded?: string, proxies = PROXIES) {
  const lines: string[] = [];
  const log = createLogger({ level: "warn", format: "json", write: (line) => lines.push(line) });
  const clientAddress = createClientAddress(proxies, log);
  const request = new Request(
    "http://x/",
    forwarded === undefined ? {} : { headers: { "X-Forwarded-For": forwarded } },
  );
  const requestIP = () =>
    socketAddress === null ? null : { address: socketAddress, port: 1, family: "IPv4" as const };
  return { key: clientAddress(request, { requestIP }), lines };
}

test.each([
  ["no proxy", "203.0.113.9", undefined, "203.0.113.9"],
  ["a client that invents a header", "203.0.113.9", "198.51.100.1", "203.0.113.9"],
  ["one proxy", "10.1.2.3", "198.51.100.1", "198.51.100.1"],
  ["a client that invents what stands left", "10.1.2.3", "1.1.1.1, 127.0.0.1, 198.51.100.1", "198.51.100.1"],
  ["a chain of proxies", "10.1.2.3", "1.1.1.1, 198.51.100.1, 192.0.2.7, fd12::5", "198.51.100.1"],
  ["a client that is itself in the proxies' range", "10.1.2.3", "10.9.9.9", "10.9.9.9"],
  ["a proxy that names nobody", "10.1.2.3", "", "10.1.2.3"],
  ["a proxy that names nonsense", "10.1.2.3", "1.1.1.1, unknown", "10.1.2.3"],
  ["nonsense left of a proxy", "10.1.2.3", "<script>, 192.0.2.7", "192.0.2.7"],
  ["a port behind the address", "10.1.2.3", "198.51.100.1:4711", "198.51.100.1"],
  ["brackets and a port", "10.1.2.3", "[2001:db8:0:1::5]:4711", "2001:db8:0:1::/64"],
  ["IPv6, whole", "2001:db8:1:2:3:4:5:6", undefined, "2001:db8:1:2::/64"],
  ["IPv6, another of the same customer", "2001:0DB8:0001:0002::1", undefined, "2001:db8:1:2::/64"],
  ["IPv6, short", "2001:db8::1", undefined, "2001:db8:0:0::/64"],
  ["IPv6, loopback", "::1", undefined, "0:0:0:0::/64"],
  ["IPv6 with a zone", "fe80::1%eth0", undefined, "fe80:0:0:0::/64"],
  ["IPv4 in IPv6", "::ffff:203.0.113.9", undefined, "203.0.113.9"],
  ["a proxy that is IPv4 in IPv6", "::ffff:10.1.2.3", "198.51.100.1", "198.51.100.1"],
  ["a socket that is gone", null, "198.51.100.1", "unknown"],
])("%s", (_name, socketAddress, forwarded, key) => {
  expect(addressOf(socketAddress, forwarded).key).toBe(key);
});

test("a proxy that nobody named is told of, once", () => {
  expect(addressOf("10.1.2.3", "198.51.100.1", [])).toMatchObject({
    key: "10.1.2.3",
    lines: [expect.stringContaining("TRUSTED_PROXIES")],
  });
  expect(addressOf("10.1.2.3", "198.51.100.1").lines).toEqual([]);
});
