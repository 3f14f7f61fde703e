/** Accounts, as their operator sees them. */
import { normaliseEmail } from "../accounts/accounts.ts";
import { createInviteToken } from "../accounts/invites.ts";
import { createPasswords } from "../accounts/passwords.ts";
import type { Config } from "../config.ts";
import { createProtocol, formatTime } from "../protocol.ts";
import { validate } from "../validate.ts";
import { findUser, openBeside } from "./beside.ts";
import { OperatorError, type CommandIo } from "./command.ts";
import { formatBytes } from "./progress.ts";
import { readWords, withSubcommands } from "./words.ts";

const PASSWORD_BYTES = 12;
const PAGE_USERS = 100;
const PASSWORD_OPTION = { "password-stdin": { type: "boolean", default: false } } as const;

export const command = withSubcommands({
  summary: "Adds, lists and removes accounts; resets passwords; invites.",
  usage: `Usage: clipslot-server user add EMAIL [--password-stdin]
       clipslot-server user list
       clipslot-server user reset-password EMAIL [--password-stdin]
       clipslot-server user remove EMAIL
       clipslot-server user invite

A password is drawn and printed once, or with --password-stdin read from the first line of standard input; it is never
taken from the command line. reset-password ends every session and device token of the account. What it has stored
stays: it is encrypted with a key the server never had. remove erases everything of the account, for good. invite prints
a token with which one person can register while REGISTRATION is "invite".

The server may be running: it closes the sockets of what was removed within a second.`,
  subcommands: { add, list, "reset-password": resetPassword, remove, invite },
});

async function add(args: string[], io: CommandIo): Promise<number> {
  const { words, options } = readWords(args, ["EMAIL"], PASSWORD_OPTION);
  await using beside = await openBeside(io, { mayCreate: true });
  const { config, storage } = beside;
  const given = await choosePassword(io, options["password-stdin"]);
  const { email, password } = validate(createProtocol(config).registration, {
    email: words[0],
    password: given.password,
  });
  const user = {
    id: crypto.randomUUID(),
    email: normaliseEmail(email),
    passwordHash: await createPasswords(config).hash(password),
    createdAt: Date.now(),
  };
  if (!(await storage.createUser(user))) throw new OperatorError(`There is already an account ${user.email}.`);
  io.print(`Added ${user.email} (${user.id}).`);
  tellPassword(io, given);
  return 0;
}

async function list(args: string[], io: CommandIo): Promise<number> {
  readWords(args, [], {});
  await using beside = await openBeside(io);
  const { storage } = beside;
  io.print(`${"ID".padEnd(36)}  ${"CREATED".padEnd(24)}  HISTORY  ${"STORED".padEnd(10)}  EMAIL`);
  for (let after: string | null = null; ;) {
    const users = await storage.users(after, PAGE_USERS);
    for (const user of users) {
      const summary = await storage.summary(user.id);
      if (summary === null) continue; // removed meanwhile
      const items = String(summary.historyItems).padStart(7);
      const stored = formatBytes(summary.storedBytes).padEnd(10);
      io.print(`${user.id}  ${formatTime(user.createdAt)}  ${items}  ${stored}  ${user.email}`);
    }
    after = users.at(-1)?.id ?? null;
    if (after === null || users.length < PAGE_USERS) return 0;
  }
}

async function resetPassword(args: string[], io: CommandIo): Promise<number> {
  const { words, options } = readWords(args, ["EMAIL"], PASSWORD_OPTION);
  await using beside = await openBeside(io);
  const { config, storage, tellRevoked } = beside;
  const user = await findUser(storage, words[0]);
  const given = await choosePassword(io, options["password-stdin"]);
  const hash = await createPasswords(config).hash(checkPassword(config, given.password));
  const tokenGeneration = await storage.changePassword(user.id, hash, null, Date.now());
  if (tokenGeneration === null) throw new OperatorError(`There is no account ${user.email} any more.`);
  tellRevoked({ userId: user.id, deviceId: null, tokenGeneration });
  io.print(`${user.email} has a new password; every device has to log in again.`);
  tellPassword(io, given);
  return 0;
}

async function remove(args: string[], io: CommandIo): Promise<number> {
  const { words } = readWords(args, ["EMAIL"], {});
  await using beside = await openBeside(io);
  const { storage, tellRevoked } = beside;
  const user = await findUser(storage, words[0]);
  await storage.deleteUser(user.id);
  tellRevoked({ userId: user.id, deviceId: null, tokenGeneration: null });
  io.print(`Removed ${user.email} and everything it had stored.`);
  return 0;
}

async function invite(args: string[], io: CommandIo): Promise<number> {
  readWords(args, [], {});
  await using beside = await openBeside(io, { mayCreate: true });
  const { config, storage } = beside;
  const { token, digest } = createInviteToken();
  const createdAt = Date.now();
  const expiresAt = createdAt + config.auth.inviteLifeMs;
  await storage.createInvite({ digest, createdAt, expiresAt });
  io.complain(`For one registration, until ${formatTime(expiresAt)}; it is not shown again:`);
  io.print(token);
  return 0;
}

interface ChosenPassword {
  password: string;
  drawn: boolean;
}

async function choosePassword(io: CommandIo, fromInput: boolean): Promise<ChosenPassword> {
  if (fromInput) return { password: await io.readSecret("Password"), drawn: false };
  const bytes = crypto.getRandomValues(new Uint8Array(PASSWORD_BYTES));
  return { password: Buffer.from(bytes).toString("base64url"), drawn: true };
}

function checkPassword(config: Config, password: string): string {
  return validate(createProtocol(config).registration.shape.password, password, "The password");
}

function tellPassword(io: CommandIo, { password, drawn }: ChosenPassword): void {
  if (drawn) io.print(`Its password, not shown again: ${password}`);
}
