/** The entry point: argv → command → exit code. */
import { ConfigError, loadConfig } from "./config.ts";
import { startServer } from "./cli/serve.ts";
import { bufferedLines, createLogger } from "./log.ts";
import { VERSION } from "./version.ts";

process.exitCode = await serve();

async function serve(): Promise<number> {
  const config = loadConfig(process.env);
  const output = bufferedLines((lines) => process.stdout.write(lines));
  const log = createLogger({ level: config.logLevel, format: process.stdout.isTTY ? "text" : "json", write: output.write });
  const server = await startServer(config, log);
  log.info(`clipslot-server ${VERSION} listens on ${server.url.href}`, { database: server.database, registration: config.registration });
  await new Promise<void>((resolve) => {
    process.once("SIGTERM", resolve);
    process.once("SIGINT", resolve);
  });
  await server.stop();
  output.flush();
  return 0;
}
