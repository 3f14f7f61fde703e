/** Puts a backup back. */
import { existsSync } from "node:fs";
import { loadConfig, type Config } from "../config.ts";
import { sqlitePath } from "../storage/open.ts";
import { OperatorError, UsageError, type Command, type CommandIo } from "./command.ts";
import { percent } from "./progress.ts";
import { readWords } from "./words.ts";

export const command: Command = {
  summary: "Puts a backup back; the server must be stopped.",
  usage: `Usage: clipslot-server restore FILE
       clipslot-server restore --new-epoch

Checks FILE, a backup of a SQLite database, brings it up to date and puts it in the database's place. The database that
was there is kept beside it. What clients have got since the backup was taken is not in it, so a new epoch is drawn:
cursors from before are answered with resync_required, and clients start over instead of missing changes.

--new-epoch draws the epoch alone, for a database that was put back by other means: a snapshot of the disk, or for
PostgreSQL, with all servers stopped:

  pg_restore --clean --if-exists --no-owner --dbname="$DATABASE_URL" FILE
  clipslot-server restore --new-epoch`,
  async run(args, io) {
    const config = loadConfig(io.env);
    if (args.includes("--new-epoch")) {
      readWords(args, [], { "new-epoch": { type: "boolean" } });
      await redrawEpoch(config);
      io.print("Drew a new epoch: cursors from before are answered with resync_required.");
      return 0;
    }
    const { words } = readWords(args, ["FILE"], {});
    return restoreFile(words[0], config, io);
  },
};

async function redrawEpoch(config: Config): Promise<void> {
  if (config.databaseDirectUrl !== undefined) {
    const { redrawPostgresEpoch } = await import("../storage/postgres/transfer.ts");
    return redrawPostgresEpoch(config.databaseDirectUrl);
  }
  const path = sqlitePath(config);
  if (!existsSync(path)) throw new OperatorError(`There is no database at ${path}. Set DATA_DIR as the server has it.`);
  const { redrawSqliteEpoch } = await import("../storage/sqlite/backup.ts");
  redrawSqliteEpoch(path);
}

async function restoreFile(file: string, config: Config, io: CommandIo): Promise<number> {
  if (config.databaseUrl !== undefined) {
    throw new UsageError(`This server keeps its data in PostgreSQL: put its backup back with pg_restore, as below.`);
  }
  if (!existsSync(file)) throw new OperatorError(`There is no file ${file}.`);
  if (existsSync(`${file}-wal`)) {
    throw new OperatorError(
      `${file} is a database in use, not a backup: part of it is in ${file}-wal. Take a backup of it with \`clipslot-server backup\`.`,
    );
  }
  const path = sqlitePath(config);
  const { restoreSqlite } = await import("../storage/sqlite/backup.ts");
  const kept = await restoreSqlite(file, path, new Date(), (step, done, total) => {
    io.progress.at(step === "copying" ? `Copying: ${percent(done, total)}` : "Checking the backup");
  });
  io.progress.done();
  io.print(`Restored ${file} to ${path}. Clients with a cursor are going to start over.`);
  if (kept !== null) io.print(`The database that was there is kept as ${kept}; remove it when all is well.`);
  return 0;
}
