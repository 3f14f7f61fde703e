import manifest from "../package.json" with { type: "json" };

/** The version of this server, as package.json says. */
export const VERSION: string = manifest.version;

/** Put in by src/build.ts; there is none when the sources run as they are. */
declare const CLIPSLOT_COMMIT: string;

/** The commit this server was built from; of a source checkout, the one that is checked out; "unknown" without git. */
export function readCommit(): string {
  if (typeof CLIPSLOT_COMMIT !== "undefined") return CLIPSLOT_COMMIT;
  return describeCheckout(import.meta.dir);
}

/** Such as "29a4957f0c3d", with "-dirty" when files were changed since. */
export function describeCheckout(folder: string): string {
  try {
    const git = Bun.spawnSync(["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty"], {
      cwd: folder,
    });
    return git.success ? git.stdout.toString().trim() : "unknown";
  } catch {
    return "unknown"; // there is no git here
  }
}
