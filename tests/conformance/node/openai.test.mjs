// OpenAI's SDK for Node, unchanged but for address and key.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";

const baseURL = process.env.STOKEHOLD_BASE_URL;
const client = new OpenAI({ baseURL, apiKey: process.env.STOKEHOLD_KEY, maxRetries: 0 });
const withKey = (apiKey) => new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const ask = { model: "chat", messages: [{ role: "user", content: "Say hi" }], max_tokens: 12, temperature: 0 };

test("an answer with usage, request id and rate limits", async () => {
  const { data, response, request_id } = await client.chat.completions.create(ask).withResponse();
  assert.equal(data.model, "chat");
  assert.ok(data.choices[0].message.content);
  assert.ok(data.usage.completion_tokens > 0);
  assert.ok(request_id);
  assert.equal(response.headers.get("x-request-id"), request_id);
});

test("a stream gives what the whole answer gives", async () => {
  const whole = await client.chat.completions.create(ask);
  let text = "";
  let usage = null;
  const stream = await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
});

test("without being asked for, no usage chunk comes", async () => {
  for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
    assert.equal(chunk.choices.length, 1);
    assert.ok(!chunk.usage);
  }
});

test("a stream can be left", async () => {
  const stream = await client.chat.completions.create({ ...ask, max_tokens: 500, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk);
    stream.controller.abort();
    break;
  }
});

test("a tool is called", async () => {
  const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
  const answer = await client.chat.completions.create({
    ...ask, model: "caller", tool_choice: "required",
    tools: [{ type: "function", function: { name: "weather", description: "The weather of a city.", parameters } }],
  });
  const call = answer.choices[0].message.tool_calls[0];
  assert.equal(call.function.name, "weather");
  assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });
});

test("a JSON schema is kept", async () => {
  const schema = {
    type: "object", additionalProperties: false, required: ["name", "age"],
    properties: { name: { type: "string", maxLength: 12 }, age: { type: "integer", minimum: 0, maximum: 120 } },
  };
  const answer = await client.chat.completions.create({
    ...ask, max_tokens: 80, response_format: { type: "json_schema", json_schema: { name: "person", strict: true, schema } },
  });
  assert.deepEqual(Object.keys(JSON.parse(answer.choices[0].message.content)).sort(), ["age", "name"]);
});

test("embeddings, in its default base64, too", async () => {
  const answer = await client.embeddings.create({ model: "embed", input: ["a cat", "a dog"] });
  assert.equal(answer.data.length, 2);
  assert.ok(answer.data[0].embedding.length > 100);
});

test("models are listed", async () => {
  const names = [];
  for await (const model of await client.models.list()) names.push(model.id);
  assert.ok(names.includes("chat") && names.includes("down"));
  assert.equal((await client.models.retrieve("chat")).id, "chat");
});

test("errors have their classes", async () => {
  const cases = [
    [withKey("sk-stk-nothere1-x"), {}, OpenAI.AuthenticationError, "invalid_api_key"],
    [withKey(process.env.STOKEHOLD_KEY_NARROW), {}, OpenAI.PermissionDeniedError, "model_not_allowed"],
    [withKey(process.env.STOKEHOLD_KEY_USED_UP), {}, OpenAI.RateLimitError, "rate_limit_exceeded"],
    [client, { model: "nothing" }, OpenAI.NotFoundError, "model_not_found"],
    [client, { messages: [{ role: "user", content: "word ".repeat(3000) }] }, OpenAI.BadRequestError, "context_length_exceeded"],
    [client, { model: "down" }, OpenAI.InternalServerError, "model_not_ready"],
  ];
  for (const [who, changes, type, code] of cases) {
    await assert.rejects(who.chat.completions.create({ ...ask, ...changes }), (error) => {
      assert.ok(error instanceof type, `${code}: ${error}`);
      assert.equal(error.code, code);
      return true;
    });
  }
});
