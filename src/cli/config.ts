/** What is in force, for the operator who wonders; and whether the environment has faults, before a restart finds them. */
import { describeSettings } from "../config.ts";
import type { Command } from "./command.ts";
import { readWords } from "./words.ts";

export const command: Command = {
  summary: "Says which settings are in force, secrets masked.",
  usage: `Usage: clipslot-server config

Reads the environment as the server does, and fails with exit code 1 where the server would. README.md says what each
variable is for.`,
  async run(args, io) {
    readWords(args, [], {});
    for (const { name, value, isSet } of describeSettings(io.env)) {
      const origin = isSet ? "" : value === "" ? "  # not set" : "  # default";
      io.print(`${`${name}=${value}`.padEnd(48)}${origin}`.trimEnd());
    }
    return 0;
  },
};
