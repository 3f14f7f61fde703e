/** Registration, login, passwords, tokens and link codes. */
import type { Accounts } from "../accounts/accounts.ts";
import type { Devices } from "../accounts/devices.ts";
import type { LinkCodes } from "../accounts/link-codes.ts";
import type { Sessions } from "../accounts/sessions.ts";
import type { Config } from "../config.ts";
import { publicLimits } from "../limits.ts";
import { formatTime, type Protocol } from "../protocol.ts";
import type { ClientAddress } from "./client-address.ts";
import type { AppContext } from "./context.ts";
import type { RateLimits } from "./rate-limits.ts";
import { readBody } from "./read-body.ts";

/** Far above the largest of these bodies: strangers may send them, so they are kept small. */
export const ACCOUNT_BODY_BYTES = 16 * 1024;

export interface AuthDependencies {
  config: Config;
  protocol: Protocol;
  accounts: Accounts;
  devices: Devices;
  linkCodes: LinkCodes;
  sessions: Pick<Sessions, "confirm">;
  limits: RateLimits;
  clientAddress: ClientAddress;
}

/** Handlers of accounts, tokens and link codes, one a route of app.ts. */
export function authHandlers(dependencies: AuthDependencies) {
  const { config, protocol, accounts, devices, linkCodes, sessions, limits } = dependencies;
  const addressOf = (c: AppContext) => dependencies.clientAddress(c.req.raw, c.env.server);
  return {
    register: async (c: AppContext) => {
      const { email, password, invite } = await readBody(c.req.raw, protocol.registration, ACCOUNT_BODY_BYTES);
      limits.registration(addressOf(c));
      const { token, userId } = await accounts.register(email, password, invite);
      return c.json({ token, user_id: userId }, 201);
    },

    login: async (c: AppContext) => {
      const { email, password } = await readBody(c.req.raw, protocol.credentials, ACCOUNT_BODY_BYTES);
      const { token, userId } = await limits.login(addressOf(c), email, () => accounts.login(email, password));
      return c.json({ token, user_id: userId });
    },

    account: async (c: AppContext) => {
      const { user, summary } = await accounts.describe(c.var.identity);
      return c.json({
        user_id: user.id,
        email: user.email,
        created_at: formatTime(user.createdAt),
        usage: { stored_bytes: summary.storedBytes, history_items: summary.historyItems },
        limits: publicLimits(config),
      });
    },

    changePassword: async (c: AppContext) => {
      const body = await readBody(c.req.raw, protocol.passwordChange, ACCOUNT_BODY_BYTES);
      const { identity } = c.var;
      const token = await limits.confirmation(identity.userId, () =>
        accounts.changePassword(identity, body.current_password, body.new_password),
      );
      return c.json({ token });
    },

    refresh: async (c: AppContext) => {
      return c.json({ token: await devices.refresh(c.var.identity) });
    },

    removeAccount: async (c: AppContext) => {
      const { password } = await readBody(c.req.raw, protocol.accountDeletion, ACCOUNT_BODY_BYTES);
      const { identity } = c.var;
      await limits.confirmation(identity.userId, () => accounts.remove(identity, password));
      return c.body(null, 204);
    },

    createLinkCode: async (c: AppContext) => {
      const body = await readBody(c.req.raw, protocol.linkCodeRequest, ACCOUNT_BODY_BYTES);
      const { userId } = await sessions.confirm(c.var.identity);
      limits.linkCode(userId);
      return c.json({ code: await linkCodes.create(userId, body.encrypted_key) });
    },

    redeemLinkCode: async (c: AppContext) => {
      const { code } = await readBody(c.req.raw, protocol.linkCodeRedemption, ACCOUNT_BODY_BYTES);
      const { userId } = await sessions.confirm(c.var.identity);
      return c.json({ encrypted_key: await linkCodes.redeem(userId, code) });
    },
  };
}
