/**
 * Who is at the other end, as limits count: an IPv4 address, or the first 64 bits of an IPv6 one, since that is what
 * one customer is given (RFC 6177 §2) and may change within at will.
 */
import { BlockList, isIP } from "node:net";
import type { Server } from "bun";
import type { Logger } from "../log.ts";

/** @returns a key, not necessarily an address */
export type ClientAddress = (request: Request, server: Pick<Server<unknown>, "requestIP">) => string;

/**
 * X-Forwarded-For is believed only as far as it was written by TRUSTED_PROXIES: each proxy appends who spoke to it, so
 * it is read from the right, and the first address that is no proxy of ours is the client. What stands left of it is
 * the client's own invention.
 */
export function createClientAddress(trustedProxies: readonly string[], log: Logger): ClientAddress {
  const trusted = blockList(trustedProxies);
  const isTrusted = (address: string) => trusted.check(address, isIP(address) === 6 ? "ipv6" : "ipv4");
  let warned = false;

  return (request, server) => {
    let address = plainAddress(server.requestIP(request)?.address ?? "");
    if (address === null) return "unknown";
    const forwarded = request.headers.get("x-forwarded-for");
    if (forwarded === null) return limitKey(address);
    if (!isTrusted(address)) {
      warnOnce(address);
      return limitKey(address);
    }
    const hops = forwarded.split(",");
    for (let hop = hops.pop(); hop !== undefined && isTrusted(address); hop = hops.pop()) {
      const next = plainAddress(hop);
      if (next === null) break;
      address = next;
    }
    return limitKey(address);
  };

  /** The operator's mistake that nobody would notice until everybody runs into one limit together. */
  function warnOnce(address: string): void {
    if (warned) return;
    warned = true;
    log.warn(
      "X-Forwarded-For came from an address that TRUSTED_PROXIES does not name: it is not believed, and limits count " +
        "all that comes from there as one client. Behind a proxy, name it.",
      { address },
    );
  }
}

function blockList(blocks: readonly string[]): BlockList {
  const list = new BlockList();
  for (const block of blocks) {
    const [address = "", prefix] = block.split("/");
    const version = isIP(address) === 6 ? "ipv6" : "ipv4";
    if (prefix === undefined) list.addAddress(address, version);
    else list.addSubnet(address, Number(prefix), version);
  }
  return list;
}

/** Without port, brackets and zone; an IPv4 address in IPv6's clothes (RFC 4291 §2.5.5.2) is the IPv4 address. null: no address. */
function plainAddress(text: string): string | null {
  const bare = text
    .trim()
    .replace(/^\[(.*)\](:\d+)?$/, "$1")
    .replace(/^([\d.]+):\d+$/, "$1")
    .replace(/%.*$/, "")
    .replace(/^::ffff:(?=[\d.]+$)/i, "");
  return isIP(bare) === 0 ? null : bare;
}

function limitKey(address: string): string {
  if (isIP(address) === 4) return address;
  const [head = "", tail] = address.toLowerCase().split("::");
  const groups = head.split(":").filter((group) => group !== "");
  const missing = tail === undefined ? 0 : 8 - groups.length - groupCount(tail);
  const all = [...groups, ...Array<string>(missing).fill("0"), ...(tail ?? "").split(":")];
  return `${all
    .slice(0, 4)
    .map((group) => Number.parseInt(group || "0", 16).toString(16))
    .join(":")}::/64`;
}

/** An IPv4 address at the end stands for two groups. */
function groupCount(tail: string): number {
  return tail.split(":").reduce((count, group) => count + (group === "" ? 0 : group.includes(".") ? 2 : 1), 0);
}
