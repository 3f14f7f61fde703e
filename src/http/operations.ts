/** Every call of the API in words and schemas: what openapi.ts makes the document from. */
import type { z } from "zod";
import type { ErrorCode } from "../errors.ts";
import { socketQuery, uuid, type Protocol } from "../protocol.ts";
import { ANSWERS } from "./answers.ts";

export interface Operation {
  method: "get" | "post" | "put" | "delete";
  /** As in the route table. */
  path: string;
  tag: "Accounts" | "Devices" | "Sync" | "Server";
  summary: string;
  description?: string;
  /** Whose token it takes; left out: none is needed. */
  token?: "account" | "device";
  params?: Record<string, z.ZodType>;
  query?: z.ZodObject;
  body?: z.ZodType;
  answers: Record<number, Answer>;
  errors?: ErrorCode[];
}

export interface Answer {
  description: string;
  /** JSON of this shape; left out: no body, unless `text` names another media type. */
  schema?: z.ZodType;
  text?: string;
  headers?: Record<string, string>;
}

/** A token that names the account alone is enough. */
const SIGNED_IN = { token: "account" } as const;
const GONE: Answer = { description: "Done; the answer has no body." };
const answer = (description: string, schema: z.ZodType): Answer => ({ description, schema });
const LINK_TO_NEXT = { Link: 'A full page names the next one: rel="next" (RFC 8288).' };

/** All of them, in the order of the document. */
export function operations(protocol: Protocol): Operation[] {
  return [...accounts(protocol), ...devices(protocol), ...sync(protocol), ...SERVER];
}

function accounts(protocol: Protocol): Operation[] {
  const tag = "Accounts";
  return [
    {
      method: "post",
      path: "/api/auth/register",
      tag,
      summary: "Creates an account",
      body: protocol.registration,
      answers: { 201: answer("The account, and a token for it.", ANSWERS.SignedIn) },
      errors: ["registration_closed", "invite_invalid", "email_taken", "rate_limited"],
    },
    {
      method: "post",
      path: "/api/auth/login",
      tag,
      summary: "A token for an account",
      description: "It is good for an hour and for registering a device with; devices have tokens of their own.",
      body: protocol.credentials,
      answers: { 200: answer("A token.", ANSWERS.SignedIn) },
      errors: ["login_failed", "rate_limited"],
    },
    {
      method: "post",
      path: "/api/auth/refresh",
      tag,
      summary: "A fresh token for the same device",
      token: "device",
      answers: { 200: answer("The fresh token; the old one counts until its own end.", ANSWERS.Token) },
    },
    {
      method: "post",
      path: "/api/auth/password",
      tag,
      summary: "Changes the password",
      description: "Ends every other token and every socket of the account.",
      ...SIGNED_IN,
      body: protocol.passwordChange,
      answers: { 200: answer("A fresh token of the caller's kind.", ANSWERS.Token) },
      errors: ["wrong_password", "rate_limited"],
    },
    {
      method: "get",
      path: "/api/auth/account",
      tag,
      summary: "The account, what it uses and what it may",
      ...SIGNED_IN,
      answers: { 200: answer("The account.", ANSWERS.Account) },
    },
    {
      method: "delete",
      path: "/api/auth/account",
      tag,
      summary: "Erases the account and everything of it",
      ...SIGNED_IN,
      body: protocol.accountDeletion,
      answers: { 204: GONE },
      errors: ["wrong_password", "rate_limited"],
    },
    {
      method: "get",
      path: "/api/auth/export",
      tag,
      summary: "Everything of the account, as a download",
      ...SIGNED_IN,
      answers: { 200: { ...answer("All of it.", ANSWERS.Export), headers: { "Content-Disposition": "A file name." } } },
      errors: ["rate_limited"],
    },
    {
      method: "post",
      path: "/api/auth/link-code",
      tag,
      summary: "A code that hands a key to another device of the account",
      description:
        "Good for five minutes and one use. The server keeps the key sealed until then; what is sent as it is, the " +
        "server could read, so a client should encrypt it with something the server never learns.",
      ...SIGNED_IN,
      body: protocol.linkCodeRequest,
      answers: { 200: answer("The code, for a person to type.", ANSWERS.LinkCode) },
      errors: ["rate_limited"],
    },
    {
      method: "post",
      path: "/api/auth/redeem-code",
      tag,
      summary: "Takes the key that a code stands for",
      ...SIGNED_IN,
      body: protocol.linkCodeRedemption,
      answers: { 200: answer("The key, as it was sent.", ANSWERS.LinkedKey) },
      errors: ["not_found"],
    },
  ];
}

function devices(protocol: Protocol): Operation[] {
  const tag = "Devices";
  return [
    {
      method: "post",
      path: "/api/auth/device",
      tag,
      summary: "Registers a device",
      ...SIGNED_IN,
      body: protocol.device,
      answers: { 201: answer("The device, and its token, which is good for 30 days.", ANSWERS.DeviceCreated) },
      errors: ["rate_limited"],
    },
    {
      method: "get",
      path: "/api/auth/devices",
      tag,
      summary: "The devices of the account, oldest first",
      ...SIGNED_IN,
      answers: { 200: answer("The devices.", ANSWERS.Device.array()) },
    },
    {
      method: "delete",
      path: "/api/auth/device/:id",
      tag,
      summary: "Cuts a device off",
      description: "Its token counts no more; its sockets close within a second (4401).",
      ...SIGNED_IN,
      params: { id: uuid },
      answers: { 204: GONE },
      errors: ["not_found"],
    },
  ];
}

function sync(protocol: Protocol): Operation[] {
  const tag = "Sync";
  const slot = { number: protocol.slotNumber };
  return [
    {
      method: "get",
      path: "/api/sync/slots",
      tag,
      summary: "The slots that have content",
      ...SIGNED_IN,
      answers: { 200: answer("The slots, by number.", ANSWERS.Slot.array()) },
      errors: ["rate_limited"],
    },
    {
      method: "put",
      path: "/api/sync/slots/:number",
      tag,
      summary: "Writes a slot",
      description: "The last write wins, by timestamp, then device, then content. The answer is what stands now.",
      ...SIGNED_IN,
      params: slot,
      body: protocol.slotPut,
      answers: { 200: answer("What stands in the slot.", ANSWERS.SlotWritten) },
      errors: ["quota_exceeded", "rate_limited", "busy", "disk_full"],
    },
    {
      method: "delete",
      path: "/api/sync/slots/:number",
      tag,
      summary: "Clears a slot",
      ...SIGNED_IN,
      params: slot,
      answers: { 204: GONE },
      errors: ["rate_limited", "busy", "disk_full"],
    },
    {
      method: "get",
      path: "/api/sync/history",
      tag,
      summary: "The history, newest first",
      ...SIGNED_IN,
      query: protocol.historyQuery,
      answers: { 200: { ...answer("A page of it.", ANSWERS.HistoryItem.array()), headers: LINK_TO_NEXT } },
      errors: ["rate_limited"],
    },
    {
      method: "post",
      path: "/api/sync/history",
      tag,
      summary: "Adds to the history",
      description:
        "One item, or a list of them: then the answer is a list in the same order. The same content twice is one item; " +
        "an id that was deleted does not come back (stale).",
      ...SIGNED_IN,
      body: protocol.historyPush,
      answers: {
        200: answer("Nothing of it was new.", ANSWERS.HistoryPushed.or(ANSWERS.HistoryPushed.array())),
        201: answer("Some of it was new.", ANSWERS.HistoryPushed.or(ANSWERS.HistoryPushed.array())),
      },
      errors: ["quota_exceeded", "rate_limited", "busy", "disk_full"],
    },
    {
      method: "delete",
      path: "/api/sync/history/:id",
      tag,
      summary: "Deletes an item of the history",
      ...SIGNED_IN,
      params: { id: uuid },
      answers: { 204: GONE },
      errors: ["not_found", "rate_limited", "busy", "disk_full"],
    },
    {
      method: "get",
      path: "/api/sync/changes",
      tag,
      summary: "What changed since a cursor",
      description: "For clients without a socket: the same messages, in the same order.",
      ...SIGNED_IN,
      query: protocol.changesQuery,
      answers: { 200: answer("A page of changes, oldest first.", ANSWERS.Changes) },
      errors: ["resync_required"],
    },
    {
      method: "get",
      path: "/api/sync/ws",
      tag,
      summary: "Opens the WebSocket",
      description:
        "Messages are JSON text: ClientMessage one way, ServerMessage the other. The token stands in Authorization, in " +
        "?token=, or, from a browser, behind the subprotocol: clipslot, TOKEN.",
      token: "device",
      query: socketQuery,
      answers: { 101: { description: "The socket is open." } },
      errors: ["bad_request", "origin_forbidden", "upgrade_required", "rate_limited"],
    },
  ];
}

const SERVER: Operation[] = [
  {
    method: "get",
    path: "/api/info",
    tag: "Server",
    summary: "What this server is, and its limits",
    answers: { 200: answer("The server.", ANSWERS.Info) },
  },
  {
    method: "get",
    path: "/healthz",
    tag: "Server",
    summary: "Whether the process answers",
    answers: { 200: answer("It does.", ANSWERS.Status) },
  },
  {
    method: "get",
    path: "/readyz",
    tag: "Server",
    summary: "Whether the process reaches its database",
    answers: { 200: answer("It does.", ANSWERS.Status) },
    errors: ["unavailable"],
  },
  {
    method: "get",
    path: "/api-docs/openapi.json",
    tag: "Server",
    summary: "This document",
    answers: { 200: { description: "OpenAPI 3.1.", text: "application/json" } },
  },
  {
    method: "get",
    path: "/docs",
    tag: "Server",
    summary: "This document as a page, with the WebSocket protocol",
    answers: { 200: { description: "A page.", text: "text/html" } },
  },
];
