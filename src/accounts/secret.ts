/**
 * The server's one secret, and the keys made from it. It comes from JWT_SECRET, or is drawn at the first start and
 * kept in DATA_DIR. Losing it ends every session; whoever has it can sign tokens.
 */
import { hkdfSync, randomBytes, randomUUID } from "node:crypto";
import { link, mkdir, open, readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { ConfigError, type Config } from "../config.ts";
import type { Logger } from "../log.ts";

const FILE_NAME = "jwt-secret";
const SECRET_BYTES = 32;
const KEY_BYTES = 32;

/** One key a purpose, so that no use of one says anything about another. */
export interface ServerKeys {
  /** Signs tokens: HMAC-SHA-256. */
  tokens: CryptoKey;
  /** Digests link codes: HMAC-SHA-256. */
  linkCodes: Buffer;
  /** Seals what a link code stands for: AES-256-GCM. */
  linkKeys: Buffer;
}

/**
 * @throws ConfigError when the kept secret is damaged
 */
export async function loadServerKeys(config: Config, log: Logger): Promise<ServerKeys> {
  return deriveKeys(config.jwtSecret ?? (await keptSecret(config.dataDir, log)));
}

/** HKDF (RFC 5869) with SHA-256; the label names the purpose. */
async function deriveKeys(secret: string): Promise<ServerKeys> {
  const key = (label: string) => Buffer.from(hkdfSync("sha256", secret, "", `clipslot ${label} 1`, KEY_BYTES));
  return {
    tokens: await crypto.subtle.importKey("raw", key("tokens"), { name: "HMAC", hash: "SHA-256" }, false, [
      "sign",
      "verify",
    ]),
    linkCodes: key("link codes"),
    linkKeys: key("link keys"),
  };
}

async function keptSecret(dataDir: string, log: Logger): Promise<string> {
  const path = join(dataDir, FILE_NAME);
  const secret = (await readIfThere(path)) ?? (await drawSecret(dataDir, path));
  if (!/^[A-Za-z0-9_-]{43}$/.test(secret)) {
    throw new ConfigError(
      `${path} is damaged. Put it back from a backup, or remove it to draw a new one: everybody has to log in again.`,
    );
  }
  const { mode } = await stat(path);
  if (process.platform !== "win32" && (mode & 0o077) !== 0) {
    log.warn("others on this machine may read the file that signs tokens: chmod 600 it", { path });
  }
  return secret;
}

async function readIfThere(path: string): Promise<string | null> {
  try {
    return (await readFile(path, "utf8")).trim();
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return null;
    throw error;
  }
}

/**
 * Writes a new secret whole under another name, then gives it its name by a link, which fails when the name is taken:
 * of several processes that start at once one draws and all read the same.
 */
async function drawSecret(dataDir: string, path: string): Promise<string> {
  await mkdir(dataDir, { recursive: true, mode: 0o700 });
  const draft = `${path}.${randomUUID()}`;
  try {
    const file = await open(draft, "wx", 0o600);
    try {
      await file.writeFile(`${randomBytes(SECRET_BYTES).toString("base64url")}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
    await link(draft, path).catch((error: unknown) => {
      if (!(error instanceof Error && "code" in error && error.code === "EEXIST")) throw error;
    });
  } finally {
    await rm(draft, { force: true });
  }
  return (await readFile(path, "utf8")).trim();
}
