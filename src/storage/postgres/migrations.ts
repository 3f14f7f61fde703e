/** The PostgreSQL migrations, embedded. */
import initial from "../../../drizzle/postgres/0000_initial.sql" with { type: "text" };
import presence from "../../../drizzle/postgres/0002_presence.sql" with { type: "text" };
import functions from "../../../drizzle/postgres/0001_functions.sql" with { type: "text" };
import heads from "../../../drizzle/postgres/0003_heads.sql" with { type: "text" };
import upkeep from "../../../drizzle/postgres/0004_upkeep.sql" with { type: "text" };

/** In order; a new one is appended after `drizzle-kit generate` wrote it. */
export const POSTGRES_MIGRATIONS = [
  { name: "0000_initial", sql: initial },
  { name: "0001_functions", sql: functions },
  { name: "0002_presence", sql: presence },
  { name: "0003_heads", sql: heads },
  { name: "0004_upkeep", sql: upkeep },
] as const;
