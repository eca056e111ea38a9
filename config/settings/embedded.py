"""The default: everything on one machine, started by `./stokehold up`."""

from config.settings.base import *  # noqa: F403
