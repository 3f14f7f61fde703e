/** Backups of a running server on SQLite. */
import { existsSync } from "node:fs";
import { constants, setPriority } from "node:os";
import { join } from "node:path";
import { loadConfig } from "../config.ts";
import { sqlitePath } from "../storage/open.ts";
import { OperatorError, type Command } from "./command.ts";
import { formatBytes, percent } from "./progress.ts";
import { readWords } from "./words.ts";

export const command: Command = {
  summary: "Writes a backup of the SQLite database, also while the server runs.",
  usage: `Usage: clipslot-server backup FILE

Writes the database as it stands now to FILE: everything the server has acknowledged is in it. The server goes on
meanwhile. The copy is checked before it gets its name; a FILE that exists is never overwritten. It is readable by its
owner alone. \`clipslot-server restore FILE\` puts it back.

PostgreSQL has its own tool: pg_dump --format=custom --file=FILE "$DATABASE_URL"

Keep a copy of jwt-secret from DATA_DIR too (or of JWT_SECRET): without it everybody has to log in again.`,
  async run(args, io) {
    const { words } = readWords(args, ["FILE"], {});
    const [target] = words;
    const config = loadConfig(io.env);
    if (config.databaseUrl !== undefined) {
      throw new OperatorError(`This server keeps its data in PostgreSQL, which has its own tool for backups:

  pg_dump --format=custom --file=${target} "$DATABASE_URL"`);
    }
    const path = sqlitePath(config);
    if (!existsSync(path))
      throw new OperatorError(`There is no database at ${path}. Set DATA_DIR as the server has it.`);
    // The server beside us comes first.
    setPriority(constants.priority.PRIORITY_LOW);
    const { backupSqlite } = await import("../storage/sqlite/backup.ts");
    const bytes = await backupSqlite(path, target, (step, done, total) => {
      io.progress.at(step === "copying" ? `Copying: ${percent(done, total)}` : "Checking the copy");
    });
    io.progress.done();
    io.print(`Backed up ${path} to ${target} (${formatBytes(bytes)}), checked.`);
    const secret = join(config.dataDir, "jwt-secret");
    if (config.jwtSecret === undefined && existsSync(secret))
      io.print(`Keep a copy of ${secret} too: without it everybody has to log in again.`);
    return 0;
  },
};
