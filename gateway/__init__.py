"""The gateway: OpenAI's API in front of the engines. No Django, no database; imports `wire` only."""
