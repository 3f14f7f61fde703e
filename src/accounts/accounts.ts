/** The life of an account: registration, login, password, end. */
import type { Config } from "../config.ts";
import { AppError } from "../errors.ts";
import type { AccountSummary, Storage, User } from "../storage/storage.ts";
import { inviteDigest } from "./invites.ts";
import type { Passwords } from "./passwords.ts";
import type { Sessions } from "./sessions.ts";
import { deadToken, type Identity, type Tokens } from "./tokens.ts";

export interface SignedIn {
  token: string;
  userId: string;
}

export interface Accounts {
  /**
   * @param invite uses it up, where registration needs one
   * @throws AppError `email_taken`; `registration_closed`; `invite_invalid`; `busy`
   */
  register(email: string, password: string, invite?: string): Promise<SignedIn>;
  /**
   * The same answer, after the same time, for a wrong password and for an unknown address.
   *
   * @throws AppError `login_failed`; `busy`
   */
  login(email: string, password: string): Promise<SignedIn>;
  /** @throws AppError `token_invalid` when the account is gone */
  describe(identity: Identity): Promise<{ user: User; summary: AccountSummary }>;
  /**
   * Ends every other token and every socket of the account ([R6]).
   *
   * @returns a fresh token of the caller's kind
   * @throws AppError `wrong_password`; `busy`
   */
  changePassword(identity: Identity, currentPassword: string, newPassword: string): Promise<string>;
  /**
   * Erases everything of the account.
   *
   * @throws AppError `wrong_password`; `busy`
   */
  remove(identity: Identity, password: string): Promise<void>;
}

export interface AccountsOptions {
  config: Config;
  storage: Storage;
  passwords: Passwords;
  tokens: Tokens;
  sessions: Sessions;
}

/** Accounts over one database; what each call does and throws stands at Accounts. */
export function createAccounts({ config, storage, passwords, tokens, sessions }: AccountsOptions): Accounts {
  /** What ends tokens of an account, while it runs. */
  const turns = new Map<string, Promise<unknown>>();

  return {
    async register(givenEmail, password, invite) {
      if (config.registration === "closed")
        throw new AppError("registration_closed", "This server takes no new accounts.");
      const email = normaliseEmail(givenEmail);
      const invited = config.registration === "invite" ? inviteOf(invite) : null;
      // Whom nobody invited is not told who has an account.
      if (invited === null && (await storage.userByEmail(email)) !== null) throw emailTaken();
      const user = {
        id: crypto.randomUUID(),
        email,
        passwordHash: await passwords.hash(password),
        createdAt: Date.now(),
      };
      const created =
        invited === null ? await storage.createUser(user) : await storage.createInvitedUser(user, invited);
      if (created === "invite_invalid") throw inviteInvalid();
      if (created === false || created === "taken") throw emailTaken();
      return signIn(user.id, 0);
    },

    async login(email, password) {
      const user = await storage.userByEmail(normaliseEmail(email));
      const matches = await passwords.verify(password, user?.passwordHash ?? null);
      if (user === null || !matches) throw new AppError("login_failed", "The e-mail address or the password is wrong.");
      return signIn(user.id, user.tokenGeneration);
    },

    async describe(identity) {
      const [user, summary] = await Promise.all([storage.userById(identity.userId), storage.summary(identity.userId)]);
      if (user === null || summary === null) throw deadToken();
      return { user, summary };
    },

    async changePassword(identity, currentPassword, newPassword) {
      await confirmPassword(identity, currentPassword);
      const passwordHash = await passwords.hash(newPassword);
      const tokenGeneration = await inTurn(identity, async ({ userId, deviceId }) => {
        const generation = await storage.changePassword(userId, passwordHash, deviceId, Date.now());
        if (generation === null) throw deadToken();
        sessions.end({ userId, deviceId: null, tokenGeneration: generation });
        return generation;
      });
      if (identity.deviceId !== null)
        await storage.extendDevice(identity.userId, identity.deviceId, tokens.deviceTokenEnd(Date.now()));
      return tokens.issue({ ...identity, tokenGeneration });
    },

    async remove(identity, password) {
      await confirmPassword(identity, password);
      await inTurn(identity, async ({ userId }) => {
        await storage.deleteUser(userId);
        sessions.end({ userId, deviceId: null, tokenGeneration: null });
      });
    },
  };

  /** One after the other for each account, and only while the token counts: of two changes that race, the second one's has ended with the first. */
  async function inTurn<Result>(identity: Identity, act: (identity: Identity) => Promise<Result>): Promise<Result> {
    const { userId } = identity;
    const before = turns.get(userId);
    const turn = (async () => {
      await before?.catch(() => {});
      return act(await sessions.confirm(identity));
    })();
    turns.set(userId, turn);
    try {
      return await turn;
    } finally {
      if (turns.get(userId) === turn) turns.delete(userId);
    }
  }

  async function signIn(userId: string, tokenGeneration: number): Promise<SignedIn> {
    return { userId, token: await tokens.issue({ userId, deviceId: null, tokenGeneration }) };
  }

  /** A token is not enough for what can't be undone: it may come from a machine that was left unlocked. */
  async function confirmPassword(identity: Identity, password: string): Promise<void> {
    const user = await storage.userById(identity.userId);
    if (user === null || user.tokenGeneration !== identity.tokenGeneration) throw deadToken();
    if (!(await passwords.verify(password, user.passwordHash)))
      throw new AppError("wrong_password", "The password is wrong.");
  }
}

/**
 * One address, one account: without surrounding space, composed (Unicode NFC), in lower case. RFC 5321 §2.4 would let
 * a mail server tell the cases of the part before the @ apart; none that people use does.
 */
export function normaliseEmail(email: string): string {
  return email.trim().normalize("NFC").toLowerCase();
}

function emailTaken(): AppError {
  return new AppError("email_taken", "There is already an account with this e-mail address.");
}

/** @throws AppError `invite_invalid` where there is none; whether it is a good one, storage knows */
function inviteOf(invite: string | undefined): string {
  if (invite === undefined) throw inviteInvalid();
  return inviteDigest(invite.trim());
}

/** The same for none, a wrong one, a used one and one past its time. */
function inviteInvalid(): AppError {
  return new AppError("invite_invalid", "This server takes new accounts by invite, and this invite is not valid.");
}
