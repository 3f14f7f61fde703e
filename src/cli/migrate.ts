/** Brings the schema up to date: what a server does at its start, for those who want to do it apart from one. */
import { loadConfig } from "../config.ts";
import { openStorage } from "../storage/open.ts";
import type { Command } from "./command.ts";
import { readWords } from "./words.ts";

export const command: Command = {
  summary: "Brings the database's schema up to date.",
  usage: `Usage: clipslot-server migrate

The server does the same when it starts, so this is for those who deploy in steps. Nothing is changed in a SQLite file
that a server has open: stop it first. A schema is never taken back: keep a backup from before an upgrade.`,
  async run(args, io) {
    readWords(args, [], {});
    const storage = await openStorage(loadConfig(io.env), "command");
    await storage.close();
    io.print(`The schema of the ${storage.dialect === "sqlite" ? "SQLite" : "PostgreSQL"} database is up to date.`);
    return 0;
  },
};
