/** The devices of an account, as the operator sees them. */
import { formatTime } from "../protocol.ts";
import { findUser, openBeside } from "./beside.ts";
import { OperatorError, type CommandIo } from "./command.ts";
import { readWords, withSubcommands } from "./words.ts";

export const command = withSubcommands({
  summary: "Lists the devices of an account, and cuts one off.",
  usage: `Usage: clipslot-server device list EMAIL
       clipslot-server device revoke EMAIL DEVICE-ID

BEHIND is how many of the account's changes a device has not confirmed yet, at most; a device of protocol 2 confirms
when it connects, so for one that stays connected it grows. The token of a revoked device counts no more; a running
server closes its sockets within a second. What it wrote stays.`,
  subcommands: { list, revoke },
});

async function list(args: string[], io: CommandIo): Promise<number> {
  const { words } = readWords(args, ["EMAIL"], {});
  await using beside = await openBeside(io);
  const { storage } = beside;
  const user = await findUser(storage, words[0]);
  io.print(`${"ID".padEnd(36)}  ${"LAST SEEN".padEnd(24)}  ${"CREATED".padEnd(24)}  BEHIND  TYPE        NAME`);
  for (const device of await storage.devices(user.id, Date.now())) {
    const behind = String(Math.max(0, user.seq - device.confirmedSeq)).padStart(6);
    const times = `${formatTime(device.lastSeen)}  ${formatTime(device.createdAt)}`;
    io.print(`${device.id}  ${times}  ${behind}  ${device.deviceType.padEnd(10)}  ${device.name}`);
  }
  return 0;
}

async function revoke(args: string[], io: CommandIo): Promise<number> {
  const { words } = readWords(args, ["EMAIL", "DEVICE-ID"], {});
  await using beside = await openBeside(io);
  const { storage, tellRevoked } = beside;
  const user = await findUser(storage, words[0]);
  const deviceId = words[1].toLowerCase();
  const device = (await storage.devices(user.id, Date.now())).find(({ id }) => id === deviceId);
  if (device === undefined || !(await storage.revokeDevice(user.id, deviceId, Date.now())))
    throw new OperatorError(`${user.email} has no device ${words[1]}; \`device list\` says which it has.`);
  tellRevoked({ userId: user.id, deviceId, tokenGeneration: null });
  io.print(`Revoked ${device.name} (${device.id}) of ${user.email}.`);
  return 0;
}
