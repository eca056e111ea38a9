"""Anthropic's Messages API for engines that have only OpenAI's chat: requests, answers and streams, translated."""
