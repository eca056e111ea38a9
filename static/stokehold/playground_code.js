// A chat request as curl, Python and JavaScript. Pure: values in, text out. The key is never in it.
(function () {
  "use strict";

  const VARIABLE = "STOKEHOLD_KEY";

  function shellQuoted(text) {
    return "'" + text.replaceAll("'", "'\\''") + "'";
  }

  // A JSON value as a Python literal.
  function python(value, indent) {
    const inner = indent + "    ";
    if (value === null) return "None";
    if (value === true) return "True";
    if (value === false) return "False";
    if (typeof value !== "object") return JSON.stringify(value);
    const list = Array.isArray(value);
    const items = list
      ? value.map((item) => python(item, inner))
      : Object.entries(value).map(([name, item]) => JSON.stringify(name) + ": " + python(item, inner));
    const [open, close] = list ? "[]" : "{}";
    const short = open + items.join(", ") + close;
    if (short.length + indent.length <= 88 && !short.includes("\n")) return short;
    return open + "\n" + items.map((item) => inner + item + ",\n").join("") + indent + close;
  }

  function curl(base, body) {
    return [
      "curl " + (body.stream ? "-N " : "") + base + "/chat/completions \\",
      '  -H "Authorization: Bearer $' + VARIABLE + '" \\',
      '  -H "Content-Type: application/json" \\',
      "  -d " + shellQuoted(JSON.stringify(body, null, 2)),
    ].join("\n");
  }

  function inPython(base, body) {
    const fields = Object.entries(body).map(([name, value]) => "    " + name + "=" + python(value, "    ") + ",\n").join("");
    const read = body.stream
      ? 'for chunk in answer:\n    for choice in chunk.choices:\n        print(choice.delta.content or "", end="", flush=True)'
      : "print(answer.choices[0].message.content)";
    return "import os\n\nfrom openai import OpenAI\n\nclient = OpenAI(base_url=" + JSON.stringify(base) + ', api_key=os.environ["' + VARIABLE +
      '"])\nanswer = client.chat.completions.create(\n' + fields + ")\n" + read;
  }

  function inJavaScript(base, body) {
    const read = body.stream
      ? 'for await (const chunk of answer) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");'
      : "console.log(answer.choices[0].message.content);";
    return 'import OpenAI from "openai";\n\nconst client = new OpenAI({ baseURL: ' + JSON.stringify(base) + ", apiKey: process.env." + VARIABLE +
      " });\nconst answer = await client.chat.completions.create(" + JSON.stringify(body, null, 2) + ");\n" + read;
  }

  window.playgroundCode = { curl, python: inPython, javascript: inJavaScript };
})();
